"""Where the gRPC service listens, and why it cannot; imports no gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from server.serving.access import port_problem
from server.settings import SettingsError

__all__ = ["address_problem", "check_installed", "hosts"]


def check_installed() -> None:
    """Raises SettingsError if a package of the extra `grpc` is missing."""
    missing = [name for name in ("google.protobuf", "grpc", "grpc_health", "grpc_reflection") if not _is_found(name)]
    if missing:
        raise SettingsError(
            f"V1T_GRPC is set, and not installed: {', '.join(missing)}. pip install -r server/requirements-grpc.txt"
        )


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def hosts(addresses: Iterable[str]) -> list[str]:
    """The IP addresses of those that other machines may reach: a Unix socket is not one of them."""
    return [_split(address)[0] for address in addresses if not address.startswith("unix:")]


def address_problem(addresses: Iterable[str]) -> str | None:
    """Why the service cannot listen on all of its addresses, or None."""
    for address in addresses:
        if not address.startswith("unix:") and (problem := port_problem(*_split(address), "V1T_GRPC")) is not None:
            return problem
    return None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
