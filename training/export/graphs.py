"""The graphs of a bundle as torch modules, and their export to ONNX.

`server.contract` says what each takes and gives.
."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from server import contract
from training.ensemble import Combination
from training.export.folded import FoldedViT, can_fold
from training.models import Twin
from training.models.twin import response_from
from training.models.vit import ViTCore

__all__ = ["export_attention", "export_core", "export_ensemble", "export_readout", "export_stem", "has_attention"]

OPSET = 20
# Sizes of the examples that tracing sees. They must differ from every other dimension of a graph, which a traced size
# would otherwise be confused with.
_BATCH, _NEURONS = 7, 11


class _Stem(nn.Module):
    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        self.twin = twin
        self.mouse_id = mouse_id

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        core_image, core_behavior, core_pupil_center = self.twin.stem(self.mouse_id, image, behavior, pupil_center)
        return core_image, core_behavior, core_pupil_center


class _PlainCore(nn.Module):
    """Any core as it was trained, channel-last: (B, D, rows, columns) -> (B, rows, columns, D)."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        return self.core(image, behavior, mouse_index).permute(0, 2, 3, 1)


class _Attention(nn.Module):
    def __init__(self, core: ViTCore) -> None:
        super().__init__()
        self.core = core

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        return self.core.attention_rollout(image, behavior, mouse_index)


class _Readout(nn.Module):
    """The Gaussian readout at `mu`, for any list of neurons.

    On channel-last features the bilinear sample is four gathered rows and a weighted sum; a corner outside the map has
    weight zero, which is grid_sample's zero padding.
    """

    mu: Tensor
    features: Tensor
    bias: Tensor

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        readout = twin.readout(mouse_id)
        _, self.rows, self.columns = twin.core.output_shape
        for name, tensor in (("mu", readout.mu), ("features", readout.features), ("bias", readout.bias)):
            self.register_buffer(name, tensor.detach().clone())
        self.shifter = twin.shifter(mouse_id)

    def forward(self, feature_map: Tensor, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        batch = feature_map.shape[0]
        tokens = feature_map.flatten(0, 2)  # (B rows columns, D)
        first = torch.arange(batch, device=tokens.device)[:, None] * (self.rows * self.columns)  # (B, 1)
        mu = self.mu.index_select(0, neurons)[None]  # (1, n, 2)
        if self.shifter is not None:
            mu = mu + self.shifter(pupil_center)[:, None]  # (B, n, 2)
        # [-1, 1] is from the first to the last row's centre (align_corners).
        x = (mu[..., 0] + 1) * (0.5 * (self.columns - 1))
        y = (mu[..., 1] + 1) * (0.5 * (self.rows - 1))
        left, top = x.floor(), y.floor()
        features = self.features.index_select(0, neurons)  # (n, D)
        total = self.bias.index_select(0, neurons)[None]
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column <= self.columns - 1) & (row >= 0) & (row <= self.rows - 1)
                token = torch.where(inside, row * self.columns + column, 0.0).to(torch.int64)
                index = (first + token).flatten()  # (B n,)
                sample = tokens.index_select(0, index).unflatten(0, (batch, -1))  # (B, n, D)
                weight = torch.where(inside, weight_x * weight_y, 0.0)
                total = total + weight * (sample * features).sum(-1)
        return total  # (B, n)


class _Ensemble(nn.Module):
    """Members' pre-activations (M, B, n), combined, to responses; the spread is over the members' own responses."""

    weights: Tensor

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(combination.weights).reshape(-1, 1, 1))
        self.bias = combination.bias

    def forward(self, pre_activation: Tensor) -> tuple[Tensor, Tensor]:
        combined = (pre_activation * self.weights).sum(0) + self.bias
        members = response_from(pre_activation)
        spread = (members - members.mean(0, keepdim=True)).square().mean(0).sqrt()
        return response_from(combined), spread


def export_stem(twin: Twin, mouse_id: str, path: Path) -> None:
    """Writes one mouse's stem graph."""
    channels, height, width = twin.mice[mouse_id].image_shape
    examples = {
        contract.IMAGE: torch.randn(_BATCH, channels, height, width),
        contract.BEHAVIOR: torch.randn(_BATCH, 3),
        contract.PUPIL_CENTER: torch.randn(_BATCH, 2),
    }
    outputs = [contract.CORE_IMAGE, contract.CORE_BEHAVIOR, contract.CORE_PUPIL_CENTER]
    _export(_Stem(twin, mouse_id), examples, _batched(examples), outputs, path)


def export_core(twin: Twin, path: Path, *, portable: bool = False) -> None:
    """Writes a member's core graph: folded where the fold fits, as it was trained elsewhere."""
    core: nn.Module
    if isinstance(twin.core, ViTCore) and can_fold(twin.core):
        core = FoldedViT(twin.core, fused=not portable)
    else:
        core = _PlainCore(twin.core)
    examples = _core_examples(twin)
    _export(core, examples, _batched(examples), [contract.FEATURE_MAP], path)


def has_attention(twin: Twin) -> bool:
    """Whether there is a rollout: only a ViT core has a cls token to look from."""
    return isinstance(twin.core, ViTCore)


def export_attention(twin: Twin, path: Path) -> None:
    """Writes a member's attention rollout graph."""
    assert isinstance(twin.core, ViTCore)
    examples = _core_examples(twin)
    shapes = _batched(examples)
    _export(_Attention(twin.core), examples, shapes, [contract.ATTENTION_ROLLOUT], path)


def export_readout(twin: Twin, mouse_id: str, path: Path) -> None:
    """Writes one mouse's readout graph of a member."""
    dim, rows, columns = twin.core.output_shape
    examples = {
        contract.FEATURE_MAP: torch.randn(_BATCH, rows, columns, dim),
        contract.CORE_PUPIL_CENTER: torch.randn(_BATCH, 2),
        contract.NEURONS: torch.arange(_NEURONS) % twin.mice[mouse_id].n_neurons,
    }
    batch = Dim("batch")
    shapes = {contract.FEATURE_MAP: {0: batch}, contract.CORE_PUPIL_CENTER: {0: batch}, contract.NEURONS: {0: Dim("n")}}
    _export(_Readout(twin, mouse_id), examples, shapes, [contract.PRE_ACTIVATION], path)


def export_ensemble(combination: Combination, path: Path) -> None:
    """Writes the graph that combines members."""
    members = len(combination.weights)
    examples = {contract.PRE_ACTIVATION: torch.randn(members, _BATCH + members, _NEURONS + members)}
    shapes = {contract.PRE_ACTIVATION: {1: Dim("batch"), 2: Dim("n")}}
    _export(_Ensemble(combination), examples, shapes, [contract.RESPONSE, contract.SPREAD], path)


def _batched(examples: dict[str, Tensor]) -> dict[str, dict[int, Dim]]:
    batch = Dim("batch")
    return {name: {0: batch} for name in examples}


def _core_examples(twin: Twin) -> dict[str, Tensor]:
    n_behavior = 5 if twin.config.b_mlp.inputs == "behavior_and_pupil_center" else 3
    return {
        contract.CORE_IMAGE: torch.randn(_BATCH, *twin.cropper.output_shape),
        contract.CORE_BEHAVIOR: torch.randn(_BATCH, n_behavior),
        contract.MOUSE_INDEX: torch.zeros(_BATCH, dtype=torch.int64),
    }


def _export(
    module: nn.Module, examples: dict[str, Tensor], shapes: dict[str, dict[int, Dim]], outputs: list[str], path: Path
) -> None:
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(examples.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=outputs,
            dynamic_shapes=tuple(shapes.values()),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _drop_unused_inputs(model)
    onnx.checker.check_model(model, full_check=False)
    onnx.save_model(model, str(path))


def _drop_unused_inputs(model: onnx.ModelProto) -> None:
    """A graph lists only the inputs that it uses, so that nobody computes or sends the others."""
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    for value in [value for value in model.graph.input if value.name not in used]:
        model.graph.input.remove(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress prints and its advice to developers are not ours to show."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
