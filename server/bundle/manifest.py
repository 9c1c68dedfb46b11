"""The format of a bundle, which the exporter writes and the server reads.

A bundle is a folder. `manifest.json` describes a twin; the ONNX graphs beside it hold all of its numerics; one
`neurons.npz` per mouse holds the arrays that belong to its neurons.

    graph      file per             from -> to
    stem       mouse (and member,   image (B, C, H, W), behavior (B, 3), pupil_center (B, 2), in the recording's units
               if it has a shifter)  -> core_image (B, C', h, w), core_behavior (B, K), core_pupil_center (B, 2)
    core       member               core_image, core_behavior, mouse_index (B,) -> feature_map (B, rows, columns, D)
    attention  member               as the core -> attention_rollout (B, h, w), at the core's image size
    readout    mouse and member     feature_map, core_pupil_center, neurons (n,) -> pre_activation (B, n)
    ensemble   mouse                pre_activation (M, B, n) -> response (B, n), spread (B, n)

Optional graphs. To compute the core's last block only for the tokens that few neurons read:

    touched_tokens  mouse and member  core_pupil_center, neurons (n,) -> tokens (B or 1, 4 n), -1 outside the map
    token_core      member            as the core, and tokens (B, R), distinct -> feature_map, zero at other tokens

To run in half precision where a device is faster at it, with LayerNorm and the residual stream in float32:

    half_core       member            as the core, float32 outside and float16 inside

For gradients, the backward pass of each graph, where d_x is d(sum of weights times responses) / dx:

    ensemble_gradient  mouse            pre_activation, weights (B, n) -> response, d_pre_activation (M, B, n)
    readout_gradient   mouse, member    as the readout, and d_pre_activation -> d_feature_map, d_core_pupil_center
    core_tape          member           as the token core (or the core) -> feature_map, and tensors named tape.*
    core_gradient      member           as the core tape, its tape.*, d_feature_map -> d_core_image, d_core_behavior
    stem_gradient      as the stem      as the stem, d_core_* -> d_image, d_behavior, d_pupil_center

For use with onnxruntime alone, one graph per mouse with everything inside:

    twin       mouse                image, behavior, pupil_center -> response (B, N)

A graph lists only the inputs that it uses: a core without behaviour has no core_behavior, and so on.

B batch, C channels, H W image, K behaviour, D embedding, N neurons, M members. All floats are float32, `neurons` and
`mouse_index` int64, as are `tokens`, positions in the map's rows. `neurons` are positions 0..N-1; neuron ids are a
matter of `neurons.npz`.
Large tensors that graphs of one folder share lie in its `weights.bin` (ONNX external data).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.errors import BundleError

__all__ = [
    "ATTENTION_ROLLOUT",
    "BEHAVIOR",
    "BEHAVIOR_CHANNELS",
    "CORE_BEHAVIOR",
    "CORE_IMAGE",
    "CORE_PUPIL_CENTER",
    "FEATURE_MAP",
    "IMAGE",
    "MANIFEST",
    "MOUSE_INDEX",
    "NEURONS",
    "PRE_ACTIVATION",
    "PUPIL_CENTER",
    "PUPIL_CENTER_CHANNELS",
    "RESPONSE",
    "SCHEMA_VERSION",
    "SPREAD",
    "TAPE",
    "TOKENS",
    "WEIGHTS",
    "Channel",
    "File",
    "GradientParity",
    "Manifest",
    "MouseRecord",
    "NeuronTable",
    "Parity",
    "Provenance",
    "gradient_of",
    "hash_file",
    "load_manifest",
    "load_neurons",
    "verify_files",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

# Tensor names, in every graph.
IMAGE = "image"
BEHAVIOR = "behavior"
PUPIL_CENTER = "pupil_center"
CORE_IMAGE = "core_image"
CORE_BEHAVIOR = "core_behavior"
CORE_PUPIL_CENTER = "core_pupil_center"
MOUSE_INDEX = "mouse_index"
FEATURE_MAP = "feature_map"
NEURONS = "neurons"
PRE_ACTIVATION = "pre_activation"
RESPONSE = "response"
SPREAD = "spread"
TOKENS = "tokens"
WEIGHTS = "weights"
TAPE = "tape."  # how the names of what a forward pass keeps for the backward pass begin
ATTENTION_ROLLOUT = "attention_rollout"

# The order on disk (Sensorium 2022): name, unit.
BEHAVIOR_CHANNELS = (
    ("pupil_dilation", "eye-camera px"),
    ("pupil_dilation_derivative", "eye-camera px/s"),
    ("running_speed", "cm/s"),
)
PUPIL_CENTER_CHANNELS = (("pupil_center_x", "eye-camera px"), ("pupil_center_y", "eye-camera px"))


def gradient_of(name: str) -> str:
    """The name of the tensor that holds the derivative with respect to another."""
    return f"d_{name}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Parity(_Frozen):
    """Largest absolute difference between the exported graphs and torch, in responses, on random inputs."""

    max_abs_error: float = Field(ge=0)
    bound: float = Field(gt=0)
    samples: int = Field(gt=0)
    worst_neuron: int


class GradientParity(_Frozen):
    """Largest difference between the gradient graphs and torch's autograd, on random inputs and weights."""

    max_relative_error: float = Field(ge=0, description="relative to the largest derivative by the same input")
    bound: float = Field(gt=0)
    samples: int = Field(gt=0)


class Provenance(_Frozen):
    """How the weights came to be."""

    created: str = Field(description="UTC, ISO 8601")
    source: str = Field(description="'trained', or what was imported")
    seeds: list[int] = Field(default_factory=list)
    data_hashes: dict[str, str] = Field(default_factory=dict, description="mouse_id -> SHA-256 of its recording")
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoints: list[str] = Field(default_factory=list, description="SHA-256 of each member's weights")


class MouseRecord(_Frozen):
    """One mouse: its inputs and their statistics, and its graphs."""

    mouse_id: str
    data_key: str | None = Field(default=None, description="animal-session-scan, such as '21067-10-18'")
    mouse_index: int = Field(ge=0, description="the core's mouse_index for this mouse")
    image_shape: tuple[int, int, int] = Field(description="(C, H, W), the recording's own")
    image_channels: list[Channel]
    behavior: list[Channel]
    pupil_center: list[Channel]
    uses: list[Literal["image", "behavior", "pupil_center"]] = Field(description="inputs that change the responses")
    standardized_inputs: bool = Field(description="True: no statistics are known, inputs must be standardised already")
    n_neurons: int = Field(gt=0)
    neurons: File
    stems: list[File] = Field(min_length=1, description="one for all members, or one per member")
    readouts: list[File] = Field(min_length=1, description="one per member")
    ensemble: File
    touched_tokens: list[File] = Field(default_factory=list, description="one per member, where there are token cores")
    stem_gradients: list[File] = Field(default_factory=list, description="as the stems; empty: no gradients")
    readout_gradients: list[File] = Field(default_factory=list, description="one per member")
    ensemble_gradient: File | None = None
    twin: File | None = Field(default=None, description="one self-contained graph, raw inputs to responses")
    parity: Parity
    gradient_parity: GradientParity | None = Field(default=None, description="where there are gradients")
    scores: dict[str, float] = Field(default_factory=dict, description="over the neurons, on the test set, where known")


class Manifest(_Frozen):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
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
            files += [mouse.neurons, *mouse.stems, *mouse.readouts, mouse.ensemble, *mouse.touched_tokens]
            files += [*mouse.stem_gradients, *mouse.readout_gradients]
            files += [file for file in (mouse.ensemble_gradient, mouse.twin) if file is not None]
        yield from {file.path: file for file in files}.values()

    @property
    def has_gradients(self) -> bool:
        return bool(self.core_gradients)

    @property
    def hash(self) -> str:
        """SHA-256 over the manifest; it covers every graph through its own hash."""
        # What a bundle does not have is left out, so that its hash outlives new fields.
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()


class NeuronTable:
    """The neurons of a mouse, one row each.

    Attributes:
        ids: (N,) int64, the recording's unit ids, or 0..N-1 where there was no recording.
        coordinates: (N, 3) float32, cortical position [um], NaN where unknown.
        response_std: (N,) float32; a raw response is the standardised one times this. NaN where unknown.
        scores: name -> (N,) float32, per-neuron test scores, where known.
    """

    def __init__(
        self, ids: np.ndarray, coordinates: np.ndarray, response_std: np.ndarray, scores: dict[str, np.ndarray]
    ) -> None:
        self.ids = ids
        self.coordinates = coordinates
        self.response_std = response_std
        self.scores = scores
        self._position = {int(neuron_id): i for i, neuron_id in enumerate(ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, neuron_id: int) -> int | None:
        """The neuron's position 0..N-1, or None if this mouse has no such neuron."""
        return self._position.get(neuron_id)

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "ids": self.ids.astype(np.int64),
            "coordinates": self.coordinates.astype(np.float32),
            "response_std": self.response_std.astype(np.float32),
        }
        arrays |= {f"score.{name}": score.astype(np.float32) for name, score in self.scores.items()}
        np.savez(path, **arrays)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_manifest(bundle: Path) -> Manifest:
    """Reads and validates a bundle's manifest.

    Raises:
        BundleError: the folder, the manifest or its schema is not one that this server knows; the message says which.
    """
    path = bundle / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"bundle {bundle.name!r} has no {MANIFEST}", hint="Export it again.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"bundle {bundle.name!r}: {MANIFEST} cannot be read: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"bundle {bundle.name!r} has an unknown schema_version",
            got=version,
            expected=SCHEMA_VERSION,
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


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Checks that every file is there and has the bytes that the manifest promises.

    Raises:
        BundleError: names the first file that is missing or changed.
    """
    for file in manifest.files():
        path = bundle / file.path
        if not path.is_file():
            raise BundleError(f"bundle {bundle.name!r} lacks {file.path}", hint="Copy or export the bundle again.")
        if path.stat().st_size != file.bytes or hash_file(path) != file.sha256:
            raise BundleError(
                f"bundle {bundle.name!r}: {file.path} is not the file that the manifest describes (SHA-256 differs)",
                hint="Copy or export the bundle again.",
            )


def load_neurons(bundle: Path, mouse: MouseRecord) -> NeuronTable:
    """Reads a mouse's `neurons.npz` (without pickle).

    Raises:
        BundleError: an array is missing or has another length than the mouse has neurons.
    """
    try:
        with np.load(bundle / mouse.neurons.path, allow_pickle=False) as arrays:
            table = NeuronTable(
                ids=arrays["ids"],
                coordinates=arrays["coordinates"],
                response_std=arrays["response_std"],
                scores={
                    name.removeprefix("score."): arrays[name] for name in arrays.files if name.startswith("score.")
                },
            )
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"bundle {bundle.name!r}: {mouse.neurons.path} cannot be read: {error}") from error
    lengths = {len(table.ids), len(table.coordinates), len(table.response_std), *map(len, table.scores.values())}
    if lengths != {mouse.n_neurons}:
        raise BundleError(
            f"bundle {bundle.name!r}: {mouse.neurons.path} does not fit mouse {mouse.mouse_id!r}",
            got=f"rows {sorted(lengths)}",
            expected=f"{mouse.n_neurons} neurons",
        )
    return table
