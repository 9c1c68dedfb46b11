"""What was done: enough to do it again, as JSON beside every result."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from v1t_client._errors import InvalidArgument
from v1t_client._version import __version__

__all__ = ["RECEIPT", "Receipt", "versions"]

RECEIPT = "receipt.json"
_PACKAGES = ("numpy", "scipy", "xarray", "httpx")


def versions() -> dict[str, str]:
    """Of Python, this client and what it computes with."""
    found = {"python": platform.python_version(), "v1t_client": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How a result came to be.

    Attributes:
        experiment: its name in `EXPERIMENTS`.
        parameters: of the experiment, all of them, seed and monitor and mouse included.
        screen: image size, luminance, unit and the conversion from degrees to pixels that was used.
        model: name, hash, members, simulated, notice of the bundle that answered.
        assumed: what the server filled in, once each.
        predictor: URL or bundle folder that was asked.
        command: what was typed, if it was typed.
        versions: of Python and packages.
        created: UTC, ISO 8601. seconds: from the start, over all of the run's sittings.
    """

    experiment: str
    parameters: dict[str, Any]
    model: dict[str, Any]
    screen: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    predictor: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    created: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Fields of later versions are ignored.

        Raises:
            InvalidArgument: it is no receipt.
        """
        try:
            content = json.loads(text)
            return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"this is no receipt: {error}", expected="a receipt.json of `v1t`") from error

    @classmethod
    def load(cls, path: Path) -> Receipt:
        """Of a receipt.json, or of the result's folder."""
        file = path / RECEIPT if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"the receipt cannot be read: {error.strerror or error}", got=file) from error
        return cls.from_json(text)
