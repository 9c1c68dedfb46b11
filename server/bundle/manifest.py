"""`manifest.json`: what a bundle is and what it holds.

A bundle is a folder. `manifest.json` describes a twin; the ONNX graphs beside it hold all of its numerics
(`server.bundle.tensor_names`); one `neurons.npz` per mouse holds the arrays that belong to its neurons
(`server.bundle.neurons`). Large tensors that graphs of one folder share lie in its `weights.bin` (ONNX external data).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from server.errors import BundleError, brief

__all__ = [
    "MANIFEST",
    "PUPIL_CENTER_CHANNELS",
    "SCHEMA_VERSIONS",
    "BehaviorState",
    "Channel",
    "Crop",
    "Distillation",
    "File",
    "GradientParity",
    "Manifest",
    "MouseRecord",
    "Parity",
    "Provenance",
    "channels_text",
    "hash_file",
    "load_manifest",
    "open_regular",
]

# 2: the behaviour channels of a mouse are not those of Sensorium 2022, which older servers take for granted.
SCHEMA_VERSIONS = (1, 2)
MANIFEST = "manifest.json"

PUPIL_CENTER_CHANNELS = (("pupil_center_x", "eye-camera px"), ("pupil_center_y", "eye-camera px"))


_MOST_BYTES = 64 * 1024**2  # of a manifest
_MOST_NEURONS = 10_000_000  # of a mouse
_MOST_PIXELS = 64 * 1024**2  # of an image, over all channels


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class File(_Frozen):
    """A file of the bundle, by its path inside the bundle."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise ValueError(f"path {path!r} leaves the bundle")
        return path


class Channel(_Frozen):
    """One input channel: its unit and what it was over the training trials (None where that is not known)."""

    name: str
    unit: str
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    median: float | None = None
    percentiles: dict[str, float] = Field(
        default_factory=dict, description="of the training trials, such as {'5': 12.1}"
    )
    image_mean: tuple[float, float] | None = Field(
        default=None, description="of an image channel: the smallest and largest mean of a training image"
    )
    image_contrast: tuple[float, float] | None = Field(
        default=None,
        description="of an image channel: the smallest and largest std over the pixels of one",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.std is not None and self.std <= 0:
            raise ValueError(f"the std of {self.name!r} is not positive: {self.std:g}")
        for name, range_ in (
            ("min and max", (self.min, self.max)),
            ("image_mean", self.image_mean),
            ("image_contrast", self.image_contrast),
        ):
            if range_ is not None and None not in range_ and range_[0] > range_[1]:  # type: ignore[operator]
                raise ValueError(f"{name} of {self.name!r} are not a range: {range_}")
        return self


def channels_text(channels: Sequence[Channel]) -> str:
    """ "pupil_dilation [eye-camera px], running_speed [cm/s]"."""
    return ", ".join(f"{channel.name} [{channel.unit}]" for channel in channels)


class BehaviorState(_Frozen):
    """A named behavioural state: medians over the training trials in which the mouse was in that state."""

    name: Literal["rest", "running"]
    definition: str = Field(description="which trials count, in words")
    trials: int = Field(gt=0, description="training trials in this state")
    behavior: list[float] = Field(description="per behaviour channel, in the order of `behavior`")
    pupil_center: list[float] = Field(description="x and y; empty where the recording has none")


class Parity(_Frozen):
    """Largest absolute difference between the exported graphs and torch, in responses, on random inputs."""

    max_abs_error: float = Field(ge=0, allow_inf_nan=True, description="infinite while it is not measured")
    bound: float = Field(gt=0)
    samples: int = Field(gt=0)
    worst_neuron: int


class GradientParity(_Frozen):
    """Largest difference between the gradient graphs and torch's autograd, on random inputs and weights."""

    max_relative_error: float = Field(ge=0, description="relative to the largest derivative by the same input")
    bound: float = Field(gt=0)
    samples: int = Field(gt=0)


class Distillation(_Frozen):
    """A student's teacher, and how far the student answers like it."""

    teacher: list[str] = Field(min_length=1, description="SHA-256 of the weights of each of the teacher's members")
    budget: float = Field(gt=0, description="how many times fewer operations than the teacher were asked for")
    speedup: float = Field(gt=0, description="the teacher's operations of one image, divided by the student's")
    images: Literal["both", "own", "generated"] = Field(
        description="what the teacher was shown: images of the recording, generated ones, or both"
    )
    generated: int = Field(ge=0, description="number of generated images of each mouse")
    agreement: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="mouse_id -> what was compared, on held-out images -> over its neurons, such as "
        "{'natural_median': 0.98}",
    )


class Provenance(_Frozen):
    """How the weights came to be."""

    created: str = Field(description="UTC, ISO 8601")
    source: str = Field(description="'trained', or what was imported")
    seeds: list[int] = Field(default_factory=list)
    data_hashes: dict[str, str] = Field(default_factory=dict, description="mouse_id -> SHA-256 of its recording")
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoints: list[str] = Field(default_factory=list, description="SHA-256 of each member's weights")
    distillation: Distillation | None = Field(default=None, description="of a student that learned from a teacher")


class Crop(_Frozen):
    """The part of an image that a core sees (paper, section 5)."""

    fraction: float = Field(gt=0, le=1, description="of the height and of the width, around the centre")
    follows_gaze: bool = Field(description="whether an image shifter moves it with the gaze")


class MouseRecord(_Frozen):
    """One mouse: its inputs and their statistics, and its graphs."""

    mouse_id: str
    data_key: str | None = Field(default=None, description="animal-session-scan, such as '21067-10-18'")
    mouse_index: int = Field(ge=0, description="the core's mouse_index for this mouse")
    image_shape: tuple[int, int, int] = Field(description="(C, H, W), the recording's own")
    image_channels: list[Channel]
    behavior: list[Channel] = Field(min_length=1, description="in the order of the graphs' tensor `behavior`")
    pupil_center: list[Channel]
    states: list[BehaviorState] = Field(
        default_factory=list, description="those that the training trials hold; empty where they are not known"
    )
    uses: list[Literal["image", "behavior", "pupil_center"]] = Field(description="inputs that change the responses")
    standardized_inputs: bool = Field(description="True: no statistics are known, inputs must be standardised already")
    n_neurons: int = Field(gt=0, le=_MOST_NEURONS)
    neurons: File
    stems: list[File] = Field(min_length=1, description="one for all members, or one per member")
    readouts: list[File] = Field(min_length=1, description="one per member")
    half_readouts: list[File] = Field(default_factory=list, description="one per member, of the half cores' maps")
    ensemble: File
    touched_tokens: list[File] = Field(default_factory=list, description="one per member, where there are token cores")
    stem_gradients: list[File] = Field(default_factory=list, description="as the stems; empty: no gradients")
    readout_gradients: list[File] = Field(default_factory=list, description="one per member")
    ensemble_gradient: File | None = None
    twin: File | None = Field(default=None, description="one self-contained graph, raw inputs to responses")
    parity: Parity
    gradient_parity: GradientParity | None = Field(default=None, description="where there are gradients")
    scores: dict[str, float] = Field(default_factory=dict, description="over the neurons, on the test set, where known")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if min(self.image_shape) < 1 or math.prod(self.image_shape) > _MOST_PIXELS:
            raise ValueError(f"image_shape {self.image_shape} is not (C, H, W) of at most {_MOST_PIXELS} pixels")
        if len(self.image_channels) != self.image_shape[0]:
            raise ValueError(f"{len(self.image_channels)} image_channels do not fit image_shape {self.image_shape}")
        if not self.standardized_inputs and any(None in (one.mean, one.std) for one in self.image_channels):
            raise ValueError("image_channels lack mean or std, and standardized_inputs is false")
        names = [one.name for one in (*self.image_channels, *self.behavior, *self.pupil_center)]
        if len(set(names)) < len(names):
            raise ValueError(f"a channel's name is given twice: {', '.join(names)}")
        for state in self.states:
            if (len(state.behavior), len(state.pupil_center)) != (len(self.behavior), len(self.pupil_center)):
                raise ValueError(f"state {state.name!r} does not fit the channels of behavior and pupil_center")
        return self


class Manifest(_Frozen):
    """`manifest.json`."""

    schema_version: Literal[1, 2] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    members: int = Field(ge=1)
    simulated: bool = False
    notice: str | None = Field(default=None, description="said on every reply")
    configs: list[dict[str, Any]] = Field(min_length=1, description="each member's configuration, as trained")
    cores: list[File] = Field(min_length=1)
    attention: list[File] = Field(default_factory=list, description="one per member; empty where the core has none")
    token_cores: list[File] = Field(default_factory=list, description="one per member; empty where cores do not fold")
    half_cores: list[File] = Field(default_factory=list, description="one per member, in fp16 inside; may be left out")
    core_tapes: list[File] = Field(default_factory=list, description="one per member, maybe the core; or no gradients")
    core_gradients: list[File] = Field(default_factory=list, description="one per member")
    weights: list[File] = Field(default_factory=list, description="tensors that graphs of one folder share")
    mice: dict[str, MouseRecord] = Field(min_length=1)
    provenance: Provenance
    licence: str
    citation: str

    def files(self) -> Iterator[File]:
        """Every file that the manifest names, once."""
        files = [*self.cores, *self.half_cores, *self.attention, *self.token_cores]
        files += [*self.core_tapes, *self.core_gradients, *self.weights]
        for mouse in self.mice.values():
            files += [mouse.neurons, *mouse.stems, *mouse.readouts, *mouse.half_readouts, mouse.ensemble]
            files += [*mouse.touched_tokens, *mouse.stem_gradients, *mouse.readout_gradients]
            files += [file for file in (mouse.ensemble_gradient, mouse.twin) if file is not None]
        yield from {file.path: file for file in files}.values()

    @property
    def crop(self) -> Crop | None:
        """The part of the image that every member's core sees; None where that is not known, or members differ."""
        try:
            croppers = [config["cropper"] for config in self.configs]
            crops = {Crop(fraction=one["crop"], follows_gaze=one["shifter"] != "none") for one in croppers}
        except (KeyError, TypeError, ValidationError):
            return None
        return crops.pop() if len(crops) == 1 else None

    @property
    def has_gradients(self) -> bool:
        return bool(self.core_gradients)

    @property
    def hash(self) -> str:
        """SHA-256 over the manifest; it covers every graph through its own hash."""
        # What a bundle does not have is left out, so that its hash outlives new fields.
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file for reading. A pipe or a device, which could block for ever, is refused.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def load_manifest(bundle: Path) -> Manifest:
    """Reads and validates a bundle's manifest.

    Raises:
        BundleError: the folder, the manifest or its schema is not one that this server knows; the message says which.
    """
    try:
        with open_regular(bundle / MANIFEST) as stream:
            text = stream.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise BundleError(f"bundle {bundle.name!r}: {MANIFEST} has more than {_MOST_BYTES} bytes")
        content = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise BundleError(f"bundle {bundle.name!r} has no {MANIFEST}", hint="Export it again.") from None
    except RecursionError:
        raise BundleError(f"bundle {bundle.name!r}: {MANIFEST} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.name!r}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"bundle {bundle.name!r}: {MANIFEST} is not a JSON object", hint="Export it again.")
    version = content.get("schema_version")
    if version not in SCHEMA_VERSIONS:
        raise BundleError(
            f"bundle {bundle.name!r}: {MANIFEST} has an unknown schema_version",
            got=brief(version),
            expected=" or ".join(map(str, SCHEMA_VERSIONS)),
            hint="Export it again with this version of the exporter, or upgrade the server.",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"bundle {bundle.name!r}: {MANIFEST}: {where}: {first['msg']}") from error
    _check_counts(bundle, manifest)
    return manifest


def _check_counts(bundle: Path, manifest: Manifest) -> None:
    members = manifest.members
    counts = {"cores": (len(manifest.cores), {members}), "configs": (len(manifest.configs), {members})}
    optional = ("attention", "token_cores", "half_cores")
    counts |= {name: (len(getattr(manifest, name)), {0, members}) for name in optional}
    gradients = members if manifest.has_gradients else 0
    counts |= {name: (len(getattr(manifest, name)), {gradients}) for name in ("core_tapes", "core_gradients")}
    for mouse_id, mouse in manifest.mice.items():
        if mouse_id != mouse.mouse_id:
            raise BundleError(f"bundle {bundle.name!r}: mouse {mouse_id!r} calls itself {mouse.mouse_id!r}")
        graphs = {
            "stems": {1, members},
            "readouts": {members},
            "half_readouts": {0, len(manifest.half_cores)},
            "touched_tokens": {len(manifest.token_cores)},
            "readout_gradients": {gradients},
            "stem_gradients": {len(mouse.stems) if gradients else 0},
        }
        counts |= {f"mice.{mouse_id}.{name}": (len(getattr(mouse, name)), sizes) for name, sizes in graphs.items()}
        if gradients and mouse.ensemble_gradient is None:
            raise BundleError(f"bundle {bundle.name!r}: mice.{mouse_id}.ensemble_gradient is missing")
    for where, (got, expected) in counts.items():
        if got not in expected:
            raise BundleError(
                f"bundle {bundle.name!r}: {where} does not fit its {members} members",
                got=got,
                expected=" or ".join(map(str, sorted(expected))),
            )
