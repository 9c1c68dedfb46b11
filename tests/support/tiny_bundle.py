"""A bundle of hand-made graphs for tests of the service: two mice, two members, random weights, and numpy's own answer.

Mouse A has one channel and uses everything; mouse B has two channels and ignores the pupil centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from server.bundle.manifest import (
    MANIFEST,
    PUPIL_CENTER_CHANNELS,
    BehaviorState,
    Channel,
    File,
    Manifest,
    MouseRecord,
    Parity,
    Provenance,
    hash_file,
)
from server.bundle.neurons import NeuronTable

__all__ = ["TinyTwin", "with_ranges", "write_tiny_bundle"]

MEMBERS = 2
CORE = (4, 6)  # the core's image size
D = 3
BEHAVIOR = (  # of Sensorium 2022
    ("pupil_dilation", "eye-camera px"),
    ("pupil_dilation_derivative", "eye-camera px/s"),
    ("running_speed", "cm/s"),
)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class TinyMouse:
    """What the graphs of one mouse hold, in numpy."""

    mouse_id: str
    image_shape: tuple[int, int, int]
    uses: list[str]
    image_mean: np.ndarray  # (C,)
    image_std: np.ndarray  # (C,)
    mix: np.ndarray  # (1, C): channels to the core's one
    behavior_mean: np.ndarray  # (K,)
    behavior_std: np.ndarray  # (K,)
    pupil_mean: np.ndarray  # (2,)
    pupil_std: np.ndarray  # (2,)
    weights: list[np.ndarray]  # per member (N, 4 * 6 * D)
    pupil_weights: list[np.ndarray]  # per member (N, 2)
    bias: list[np.ndarray]  # per member (N,)
    neurons: NeuronTable


@dataclass
class TinyTwin:
    """The bundle's folder, its manifest, and what it must answer."""

    folder: Path
    manifest: Manifest
    mice: dict[str, TinyMouse]
    core_weights: list[np.ndarray]  # per member (D,): of the 1 x 1 convolution
    core_behavior: list[np.ndarray]  # per member (K, D)

    def member_responses(
        self, mouse_id: str, image: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray
    ) -> np.ndarray:
        """(M, B, N) in float64."""
        mouse = self.mice[mouse_id]
        image = (np.asarray(image, float) - mouse.image_mean[:, None, None]) / mouse.image_std[:, None, None]
        image = np.einsum("oc,bchw->bohw", mouse.mix, image)[:, 0]  # (B, H, W)
        factor = image.shape[1] // CORE[0]
        B = len(image)
        image = image.reshape(B, CORE[0], factor, CORE[1], factor).mean((2, 4))  # (B, 4, 6)
        behavior = (np.asarray(behavior, float) - mouse.behavior_mean) / mouse.behavior_std
        pupil = (np.asarray(pupil_center, float) - mouse.pupil_mean) / mouse.pupil_std
        responses = []
        for m in range(MEMBERS):
            features = np.tanh(image[..., None] * self.core_weights[m])
            features = features + (behavior @ self.core_behavior[m])[:, None, None]
            x = features.reshape(B, -1) @ mouse.weights[m].T + pupil @ mouse.pupil_weights[m].T + mouse.bias[m]
            responses.append(np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1)
        return np.stack(responses)

    def answer(self, mouse_id: str, image: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """(B, N), the mean over members."""
        return self.member_responses(mouse_id, image, behavior, pupil_center).mean(0)

    def draw(self, mouse_id: str, rng: np.random.Generator, B: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random image, behaviour and pupil centre in the mouse's units, float32."""
        mouse = self.mice[mouse_id]
        image = rng.uniform(0, 255, (B, *mouse.image_shape))
        behavior = mouse.behavior_mean + mouse.behavior_std * rng.standard_normal((B, len(mouse.behavior_mean)))
        pupil = mouse.pupil_mean + mouse.pupil_std * rng.standard_normal((B, 2))
        return image.astype(np.float32), behavior.astype(np.float32), pupil.astype(np.float32)


def write_tiny_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    seed: int = 0,
    mice: tuple[str, ...] = ("A", "B"),
    standardized: bool = False,
    alike: bool = False,
    ranges: bool = False,
    shape: tuple[int, int, int] = (1, 8, 12),
    n_neurons: int = 7,
    crop: float = 1.0,
    behavior: tuple[tuple[str, str], ...] = BEHAVIOR,
) -> TinyTwin:
    """Writes a bundle.

    Args:
        folder: where; made if need be.
        mice: the first is like A, any other like B.
        standardized: as imported without recordings: no statistics are known.
        alike: every mouse is like B, and their stems make the same of an image.
        ranges: the manifest has medians, the ranges of the training trials (see `with_ranges`), and states.
        shape, n_neurons: of the mouse like A; H to W as 2 to 3.
        crop: what the configuration says that the core sees.
        behavior: name and unit of the K behaviour channels.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    core_weights = [rng.standard_normal(D) for _ in range(MEMBERS)]
    K = len(behavior)
    core_behavior = [0.3 * rng.standard_normal((K, D)) for _ in range(MEMBERS)]
    tiny = {
        mouse_id: _draw_mouse(mouse_id, rng, i == 0 and not alike, standardized, shape, n_neurons, K)
        for i, mouse_id in enumerate(mice)
    }
    if alike:
        first = tiny[mice[0]]
        for mouse in tiny.values():
            mouse.mix, mouse.image_mean, mouse.image_std = first.mix, first.image_mean, first.image_std
    cores = [_save(folder, f"core.{m}.onnx", _core(core_weights[m], core_behavior[m])) for m in range(MEMBERS)]
    records = {}
    for index, (mouse_id, mouse) in enumerate(tiny.items()):
        mouse.neurons.save(folder / f"{mouse_id}.neurons.npz")
        records[mouse_id] = MouseRecord(
            mouse_id=mouse_id,
            data_key=f"1000{index}-1-1",
            mouse_index=index,
            image_shape=mouse.image_shape,
            image_channels=_channels(
                [(f"image_{c}", "grey level") for c in range(mouse.image_shape[0])],
                mouse.image_mean,
                mouse.image_std,
                standardized,
            ),
            behavior=_channels(behavior, mouse.behavior_mean, mouse.behavior_std, standardized),
            pupil_center=_channels(PUPIL_CENTER_CHANNELS, mouse.pupil_mean, mouse.pupil_std, standardized),
            uses=mouse.uses,
            standardized_inputs=standardized,
            n_neurons=len(mouse.neurons),
            neurons=_file(folder, f"{mouse_id}.neurons.npz"),
            stems=[_save(folder, f"{mouse_id}.stem.onnx", _stem(mouse))],
            readouts=[_save(folder, f"{mouse_id}.readout.{m}.onnx", _readout(mouse, m)) for m in range(MEMBERS)],
            ensemble=_save(folder, f"{mouse_id}.ensemble.onnx", _ensemble()),
            parity=Parity(max_abs_error=0.0, bound=1e-4, samples=1, worst_neuron=0),
            scores={"single_trial_correlation": 0.25},
        )
        if ranges:
            records[mouse_id] = with_ranges(records[mouse_id])
    manifest = Manifest(
        schema_version=1 if behavior == BEHAVIOR else 2,
        name=name,
        members=MEMBERS,
        simulated=True,
        notice="Random weights: for tests only.",
        configs=[{"core": {"kind": "tiny"}, "cropper": {"crop": crop, "shifter": "none"}}] * MEMBERS,
        cores=cores,
        mice=records,
        provenance=Provenance(created="2024-01-01T00:00:00Z", source="hand-made", seeds=[seed]),
        licence="MIT",
        citation="none",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return TinyTwin(folder, manifest, tiny, core_weights, core_behavior)


def with_ranges(record: MouseRecord) -> MouseRecord:
    """The mouse with medians, ranges and states.

    Images: pixels 10 to 240, means 90 to 150, contrasts 20 to 80. Others: the mean and 3 std to each side, and a median
    of half a std below it. Its two states lie 0.1 std below and 1 std above the mean.
    """

    def ranged(channel: Channel) -> Channel:
        mean, std = float(channel.mean or 0), float(channel.std or 0)
        return channel.model_copy(update={"min": mean - 3 * std, "max": mean + 3 * std, "median": mean - std / 2})

    def state(name: Literal["rest", "running"], std: float) -> BehaviorState:
        behavior, pupil_center = (
            [float(channel.mean or 0) + std * float(channel.std or 0) for channel in channels]
            for channels in (record.behavior, record.pupil_center)
        )
        return BehaviorState(name=name, definition=name, trials=30, behavior=behavior, pupil_center=pupil_center)

    shown = {"min": 10.0, "max": 240.0, "image_mean": (90.0, 150.0), "image_contrast": (20.0, 80.0)}
    return record.model_copy(
        update={
            "image_channels": [channel.model_copy(update=shown) for channel in record.image_channels],
            "behavior": [ranged(channel) for channel in record.behavior],
            "pupil_center": [ranged(channel) for channel in record.pupil_center],
            "states": [state("rest", -0.1), state("running", 1.0)],
        }
    )


def _draw_mouse(
    mouse_id: str,
    rng: np.random.Generator,
    like_a: bool,
    standardized: bool,
    shape: tuple[int, int, int],
    n_neurons: int,
    K: int,
) -> TinyMouse:
    C, H, W, N = (*shape, n_neurons) if like_a else (2, 4, 6, 5)
    uses = ["image", "behavior", "pupil_center"] if like_a else ["image", "behavior"]
    zero, one = np.zeros, np.ones
    return TinyMouse(
        mouse_id=mouse_id,
        image_shape=(C, H, W),
        uses=uses,
        image_mean=zero(C) if standardized else rng.uniform(100, 130, C),
        image_std=one(C) if standardized else rng.uniform(50, 70, C),
        mix=rng.uniform(0.5, 1.5, (1, C)),
        behavior_mean=zero(K) if standardized else np.resize([40.0, 0.5, 3.0], K),
        behavior_std=one(K) if standardized else np.resize([8.0, 2.0, 5.0], K),
        pupil_mean=zero(2) if standardized else np.array([250.0, 180.0]),
        pupil_std=one(2) if standardized else np.array([15.0, 10.0]),
        weights=[0.2 * rng.standard_normal((N, CORE[0] * CORE[1] * D)) for _ in range(MEMBERS)],
        pupil_weights=[0.3 * rng.standard_normal((N, 2)) * like_a for _ in range(MEMBERS)],
        bias=[rng.standard_normal(N) for _ in range(MEMBERS)],
        neurons=NeuronTable(
            ids=rng.permutation(np.arange(100, 100 + 3 * N))[:N],
            coordinates=rng.uniform(0, 300, (N, 3)) if like_a else np.full((N, 3), np.nan),
            response_std=rng.uniform(1, 5, N) if like_a else np.full(N, np.nan),
            scores={"single_trial_correlation": rng.uniform(0, 1, N)} if like_a else {},
            readout_position=np.random.default_rng(N).uniform(0, (W - 1, H - 1), (N, 2)) if like_a else None,
        ),
    )


def _channels(
    names: list[tuple[str, str]] | tuple[tuple[str, str], ...], mean: np.ndarray, std: np.ndarray, standardized: bool
) -> list[Channel]:
    if standardized:
        return [Channel(name=name, unit="standard deviations") for name, _ in names]
    return [
        Channel(name=name, unit=unit, mean=float(mean[i]), std=float(std[i])) for i, (name, unit) in enumerate(names)
    ]


# Graphs


def _constant(name: str, values: np.ndarray, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values, dtype=dtype), name)


def _value(name: str, shape: tuple[int | str, ...], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _stem(mouse: TinyMouse) -> onnx.GraphProto:
    (C, H, W), K = mouse.image_shape, len(mouse.behavior_mean)
    factor = H // CORE[0]
    return helper.make_graph(
        [
            helper.make_node("Sub", ["image", "image_mean"], ["centred"]),
            helper.make_node("Div", ["centred", "image_std"], ["standard"]),
            helper.make_node("Conv", ["standard", "mix"], ["mixed"]),
            helper.make_node(
                "AveragePool", ["mixed"], ["core_image"], kernel_shape=[factor, factor], strides=[factor, factor]
            ),
            helper.make_node("Sub", ["behavior", "behavior_mean"], ["behavior_centred"]),
            helper.make_node("Div", ["behavior_centred", "behavior_std"], ["core_behavior"]),
            helper.make_node("Sub", ["pupil_center", "pupil_mean"], ["pupil_centred"]),
            helper.make_node("Div", ["pupil_centred", "pupil_std"], ["core_pupil_center"]),
        ],
        "stem",
        [_value("image", ("B", C, H, W)), _value("behavior", ("B", K)), _value("pupil_center", ("B", 2))],
        [
            _value("core_image", ("B", 1, *CORE)),
            _value("core_behavior", ("B", K)),
            _value("core_pupil_center", ("B", 2)),
        ],
        [
            _constant("image_mean", mouse.image_mean[:, None, None]),
            _constant("image_std", mouse.image_std[:, None, None]),
            _constant("mix", mouse.mix[..., None, None]),
            _constant("behavior_mean", mouse.behavior_mean),
            _constant("behavior_std", mouse.behavior_std),
            _constant("pupil_mean", mouse.pupil_mean),
            _constant("pupil_std", mouse.pupil_std),
        ],
    )


def _core(weights: np.ndarray, behavior: np.ndarray) -> onnx.GraphProto:
    return helper.make_graph(
        [
            helper.make_node("Conv", ["core_image", "weights"], ["convolved"]),
            helper.make_node("Tanh", ["convolved"], ["features"]),
            helper.make_node("Transpose", ["features"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", ["core_behavior", "behavior_weights"], ["shift"]),
            helper.make_node("Unsqueeze", ["shift", "axes"], ["shift_everywhere"]),
            helper.make_node("Add", ["last", "shift_everywhere"], ["feature_map"]),
        ],
        "core",
        [_value("core_image", ("B", 1, *CORE)), _value("core_behavior", ("B", len(behavior)))],
        [_value("feature_map", ("B", *CORE, D))],
        [
            _constant("weights", weights[:, None, None, None]),
            _constant("behavior_weights", behavior),
            _constant("axes", np.array([1, 2]), np.int64),
        ],
    )


def _readout(mouse: TinyMouse, member: int) -> onnx.GraphProto:
    return helper.make_graph(
        [
            helper.make_node("Flatten", ["feature_map"], ["flat"], axis=1),
            helper.make_node("Gather", ["weights", "neurons"], ["rows"], axis=0),
            helper.make_node("Gather", ["pupil_weights", "neurons"], ["pupil_rows"], axis=0),
            helper.make_node("Gather", ["bias", "neurons"], ["offsets"], axis=0),
            helper.make_node("Gemm", ["flat", "rows", "offsets"], ["from_image"], transB=1),
            helper.make_node("Gemm", ["core_pupil_center", "pupil_rows"], ["from_pupil"], transB=1),
            helper.make_node("Add", ["from_image", "from_pupil"], ["pre_activation"]),
        ],
        "readout",
        [
            _value("feature_map", ("B", *CORE, D)),
            _value("core_pupil_center", ("B", 2)),
            _value("neurons", ("n",), INT64),
        ],
        [_value("pre_activation", ("B", "n"))],
        [
            _constant("weights", mouse.weights[member]),
            _constant("pupil_weights", mouse.pupil_weights[member]),
            _constant("bias", mouse.bias[member]),
        ],
    )


def _ensemble() -> onnx.GraphProto:
    return helper.make_graph(
        [
            helper.make_node("Elu", ["pre_activation"], ["elu"]),
            helper.make_node("Add", ["elu", "one"], ["responses"]),
            helper.make_node("ReduceMean", ["responses"], ["response"], axes=[0], keepdims=0),
            helper.make_node("Sub", ["responses", "response"], ["deviations"]),
            helper.make_node("Mul", ["deviations", "deviations"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[0], keepdims=0),
            helper.make_node("Sqrt", ["variance"], ["spread"]),
        ],
        "ensemble",
        [_value("pre_activation", (MEMBERS, "B", "n"))],
        [_value("response", ("B", "n")), _value("spread", ("B", "n"))],
        [_constant("one", np.ones(()))],
    )


def _save(folder: Path, name: str, graph: onnx.GraphProto) -> File:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / name).write_bytes(model.SerializeToString())
    return _file(folder, name)


def _file(folder: Path, name: str) -> File:
    path = folder / name
    return File(path=name, sha256=hash_file(path), bytes=path.stat().st_size)
