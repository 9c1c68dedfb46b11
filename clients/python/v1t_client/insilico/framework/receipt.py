"""Receipts: the JSON beside every result that says how it was made, so that it can be repeated."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from v1t_client._answers.notes import Note
from v1t_client._errors import InvalidArgument
from v1t_client._version import __version__

__all__ = ["RECEIPT", "Receipt", "versions"]

RECEIPT = "receipt.json"
_PACKAGES = ("numpy", "scipy", "xarray", "httpx")


def versions() -> dict[str, str]:
    """The versions of Python, this client and its dependencies."""
    found = {"python": platform.python_version(), "v1t_client": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How a result was made.

    Attributes:
        experiment: name in `EXPERIMENTS`.
        parameters: all parameters of the experiment, including mouse, monitor and seed.
        screen: image size, luminance, unit, and the conversion from degrees to pixels.
        model: name, hash, members, simulated, notice of the bundle.
        assumed: what the server filled in, without repetitions.
        held: what behaviour and gaze were held at, by channel, unless the experiment varied it; as far as it is known.
        notes: what the server said about the inputs, such as that they are outside what was recorded.
        standardized_inputs: True if the mouse takes standardised inputs.
        predictor: URL, or folder of the bundle.
        command: the command line, if there was one.
        versions: of Python and packages.
        created: UTC, ISO 8601. seconds: run time, including that of interrupted runs.
    """

    experiment: str
    parameters: dict[str, Any]
    model: dict[str, Any]
    screen: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    standardized_inputs: bool = False
    predictor: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    created: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def lines(self) -> list[str]:
        """What the terminal shows: whether it is simulated, what was assumed, and notes."""
        kind, notice = "simulated" if self.model.get("simulated") else "notice", self.model.get("notice")
        return [
            *([f"{kind}: {notice}"] if notice else []),
            *(f"assumed: {line}" for line in self.assumed),
            *(f"note: {Note(**note)}" for note in self.notes),
        ]

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """The inverse of `to_json`. Fields of later versions are ignored.

        Raises:
            InvalidArgument: this is not a receipt.
        """
        try:
            content = json.loads(text)
            receipt = cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})
            if "mouse" in receipt.parameters:  # receipts from before named states: the server filled in the mean
                receipt.parameters.setdefault("state", "mean")
            if receipt.experiment == "rf":  # receipts from before other noise
                receipt.parameters.setdefault("noise", "white")
            if receipt.experiment == "mei":  # receipts from before searches ended on their own
                receipt.parameters.setdefault("window", 0)
            return receipt
        except (AttributeError, ValueError, TypeError) as error:
            raise InvalidArgument(f"this is not a receipt: {error}", expected="a receipt.json of `v1t`") from error

    @classmethod
    def load(cls, path: Path) -> Receipt:
        """Reads a receipt.json, or that of a result's folder."""
        file = path / RECEIPT if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"the receipt cannot be read: {error.strerror or error}", got=file) from error
        return cls.from_json(text)
