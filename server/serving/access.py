"""API keys, compared in constant time, and the rule that without keys only loopback is served."""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import SecretStr

from server.errors import NotFound, Unauthorized
from server.settings import PREFIX, Settings, SettingsError, as_key

__all__ = ["Access", "is_loopback", "listening_hosts", "port_problem", "refusal"]

logger = logging.getLogger("bentoml.v1t")

_MAX_FILE = 1024**2  # bytes

_Digests = dict[bytes, str]  # SHA-256 of each key -> the key's name in the log, made of a few digits of the hash


class Access:
    """The keys of one service.

    Without API keys, all requests are allowed as long as the server listens on loopback only. Admin routes have keys of
    their own, and do not exist without them.

    Raises:
        SettingsError: a file of keys cannot be read, or is empty.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = _Keys("api_keys", settings.api_keys, settings.api_keys_file)
        self._admin_keys = _Keys("admin_keys", settings.admin_keys, settings.admin_keys_file)
        self._anonymous = settings.allow_anonymous
        self._exposed: list[str] = []

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._keys.given

    @property
    def key_problems(self) -> list[str]:
        """Why files of keys cannot be used as they are now; the keys that were read before are kept."""
        return [keys.problem for keys in (self._keys, self._admin_keys) if keys.problem is not None]

    @property
    def problem(self) -> str | None:
        """Why all requests are refused: other machines can reach this process, and it has no keys."""
        return refusal(self._exposed) if self._exposed and not self.may_listen(self._exposed) else None

    def may_listen(self, hosts: Iterable[str]) -> bool:
        return self.required or self._anonymous or all(map(is_loopback, hosts))

    def listen(self, hosts: Iterable[str]) -> None:
        """Records the addresses that this process listens on."""
        self._exposed = [host for host in hosts if not is_loopback(host)]

    def check(self, authorization: str | None) -> str | None:
        """The name of the request's key; None where no key is needed.

        Args:
            authorization: the header, "Bearer <key>".

        Raises:
            Unauthorized: the key is missing or unknown.
        """
        if (problem := self.problem) is not None:
            raise Unauthorized("the server refuses all requests", hint=problem)
        return self._keys.check(authorization) if self.required else None

    def check_admin(self, authorization: str | None) -> str:
        """The name of the request's admin key; other keys do not open admin routes.

        Raises:
            NotFound: the server has no admin keys.
            Unauthorized: the key is missing or unknown.
        """
        if not self._admin_keys.given:
            raise NotFound("this server has no admin routes", hint=f"Start it with {PREFIX}ADMIN_KEYS to enable them.")
        return self._admin_keys.check(authorization)


class _Keys:
    """The keys of a setting, and of a file that may change.

    Args:
        setting: its name; the file's setting is the same with _file.
    """

    def __init__(self, setting: str, keys: Iterable[SecretStr], file: Path | None) -> None:
        self._fixed = _digests(key.get_secret_value() for key in keys)
        self._file = file
        self._from_file: _Digests = {}
        self.problem: str | None = None  # why the file cannot be used as it is now
        self._seen: tuple[int, int, int] | None = None  # the file's state at the last look
        if file is not None:
            variable = f"{PREFIX}{setting.upper()}_FILE"
            try:
                self._seen = _state(file)
                self._from_file = self._read(file)
            except (OSError, ValueError) as error:
                raise SettingsError(f"{variable} is {str(file)!r}: {error}") from None

    @property
    def given(self) -> bool:
        return bool(self._fixed) or self._file is not None

    def check(self, authorization: str | None) -> str:
        """The name of the request's key. Raises Unauthorized if the key is missing or unknown."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        hint = "Send the header Authorization: Bearer <key>; the server's operator hands out keys."
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("an API key is needed", expected="Authorization: Bearer <key>", hint=hint)
        asked = _digest(key.strip())
        name = None
        for known in (self._fixed, self._from_file):
            for digest, known_name in known.items():  # always all of them, so that the time reveals nothing
                if hmac.compare_digest(asked, digest):
                    name = known_name
        if name is None:
            raise Unauthorized("unknown API key", hint=hint)
        return name

    def _reload(self) -> None:
        """Reads the file again if it changed. If it cannot be used, the keys stay as they were."""
        if self._file is None:
            return
        try:
            state = _state(self._file)
        except OSError as error:
            if self._seen is not None:
                self._keep(f"it is gone: {error}")
            self._seen = None
            return
        if state == self._seen:
            return
        self._seen = state
        try:
            self._from_file = self._read(self._file)
        except (OSError, ValueError) as error:
            self._keep(str(error))
        else:
            self.problem = None
            logger.info("read the file of API keys again: %d keys", len(self._from_file))

    def _read(self, file: Path) -> _Digests:
        if not (keys := _read(file)) and not self._fixed:
            raise ValueError("it holds no key")
        return keys

    def _keep(self, problem: str) -> None:
        self.problem = f"{self._file}: {problem}"
        logger.error("the file of API keys cannot be used; the keys stay as they were: %s", self.problem)


def refusal(hosts: Iterable[str]) -> str:
    """Why the server does not serve these addresses, and what to set."""
    return (
        f"The server is bound to {', '.join(hosts)}, which other machines can reach, and has no API keys. "
        f"Set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE, or {PREFIX}ALLOW_ANONYMOUS=true to serve without keys, "
        "or bind it to 127.0.0.1."
    )


def port_problem(host: str, port: int, setting: str | None = None) -> str | None:
    """Why the server cannot listen on an address, or None.

    Args:
        setting: that has the address; None: the options --host and --port.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return f"{setting or '--host'} is {host!r}, which is not an IP address, such as 127.0.0.1 or 0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server's own socket
        try:
            probe.bind((host, port))
        except OverflowError as error:
            return f"{setting or '--port'} is {port}: {error}"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                other = f"--port {port + 1}"
                choice = f'bentoml serve {other}, or make serve SERVE_ARGS="{other}"'
                if setting is not None:
                    choice = f"{setting}={host}:{port + 1}"
                return f"port {port} of {host} is in use. Stop the program that uses it, or choose another: {choice}"
            return f"it cannot listen on port {port} of {host}: {error.strerror}"
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def listening_hosts() -> set[str]:
    """The addresses of this process's listening sockets, including inherited ones."""
    connections = psutil.Process().net_connections("tcp")
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _digests(keys: Iterable[str]) -> _Digests:
    return {(digest := _digest(key)): f"key-{digest.hex()[:8]}" for key in keys}


def _state(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> _Digests:
    """The keys of a file: the first word of each line. Comments start with #.

    Raises:
        ValueError: the file is not a regular one, is too large, or holds something else than keys.
    """
    keys = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        key, _, rest = line.strip().partition(" ")
        if not key or key.startswith("#"):
            continue
        try:
            keys.append(as_key(key))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if rest.strip() and not rest.strip().startswith("#"):
            raise ValueError(f"line {number}: text after the key must start with #")
    return _digests(keys)


def _text(file: Path) -> str:
    """The text of a regular file; nothing else is read, since it may never end or never begin."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(_MAX_FILE + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_FILE:
        raise ValueError(f"it is larger than {_MAX_FILE} bytes")
    return content.decode("utf-8")
