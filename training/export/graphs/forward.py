"""The graphs of a bundle as torch modules, with examples of their inputs.

`server.bundle.tensor_names` describes the inputs and outputs of each graph.
."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from server.bundle import tensor_names
from training.checkpoints.ensemble import Combination
from training.data.mouse import Mouse
from training.export.modules.aligned import AlignedViT, aligned_width
from training.export.modules.aligned_readout import AlignedReadout
from training.export.modules.folded import FoldedViT, can_fold
from training.export.modules.readout import GatherReadout, TouchedTokens
from training.export.tracing.onnx_files import BATCH, NEURONS
from training.export.tracing.templates import Graph
from training.models import Twin
from training.models.twin import core_inputs, response_from
from training.models.vit import ViTCore

__all__ = [
    "Stem",
    "attention",
    "batched",
    "core",
    "core_examples",
    "core_module",
    "ensemble",
    "half_core",
    "half_readout",
    "has_attention",
    "raw_examples",
    "readout",
    "readout_examples",
    "stem",
    "token_core",
    "token_examples",
    "touched_tokens",
]


class Stem(nn.Module):
    """One mouse's raw inputs to the inputs of the core and of the readout."""

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        self.standardizer = twin.standardizer(mouse_id)
        self.cropper = twin.cropper
        self.config = twin.config
        self.mouse_id = mouse_id

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return core_inputs(self.config, self.standardizer, self.cropper, self.mouse_id, image, behavior, pupil_center)


class _PlainCore(nn.Module):
    """A core as it was trained, but with a channel-last feature map (B, rows, columns, D)."""

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


class _Ensemble(nn.Module):
    """Pre-activations of members (M, B, n) -> responses of the ensemble, and the spread of the members' responses."""

    weights: Tensor
    bias: Tensor

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(combination.weights).reshape(-1, 1, 1))
        self.register_buffer("bias", torch.tensor(combination.bias))

    def forward(self, pre_activation: Tensor) -> tuple[Tensor, Tensor]:
        combined = (pre_activation * self.weights).sum(0) + self.bias
        if len(self.weights) == 1:
            return response_from(combined), torch.zeros_like(combined)
        members = response_from(pre_activation)
        spread = (members - members.mean(0, keepdim=True)).square().mean(0).sqrt()
        return response_from(combined), spread


def stem(twin: Twin, mouse_id: str) -> Graph:
    """One mouse's stem graph."""
    examples = raw_examples(twin.mice[mouse_id])
    outputs = [tensor_names.CORE_IMAGE, tensor_names.CORE_BEHAVIOR, tensor_names.CORE_PUPIL_CENTER]
    mouse = twin.mouse_indices[mouse_id]
    return Graph(Stem(twin, mouse_id), examples, batched(examples), outputs, mouse=mouse)


def core_module(twin: Twin, *, portable: bool) -> nn.Module:
    """A member's core for serving: folded if possible, otherwise as it was trained."""
    if isinstance(twin.core, ViTCore) and can_fold(twin.core):
        return FoldedViT(twin.core, fused=not portable)
    return _PlainCore(twin.core)


def core(twin: Twin, *, portable: bool = False) -> Graph:
    """A member's core graph."""
    examples = core_examples(twin)
    return Graph(core_module(twin, portable=portable), examples, batched(examples), [tensor_names.FEATURE_MAP])


def half_core(twin: Twin, *, portable: bool = False) -> Graph:
    """A folded core in half precision, for GPUs."""
    assert isinstance(twin.core, ViTCore)
    module = AlignedViT(twin.core, fused=not portable, dtype=torch.float16)
    examples = core_examples(twin)
    return Graph(module, examples, batched(examples), [tensor_names.FEATURE_MAP])


def half_readout(twin: Twin, mouse_id: str) -> Graph:
    """A member's readout graph for one mouse, of the feature map of a core in half precision."""
    examples, shapes = readout_examples(twin, mouse_id)
    feature_map = examples[tensor_names.FEATURE_MAP]
    more = aligned_width(feature_map.shape[-1]) - feature_map.shape[-1]
    examples[tensor_names.FEATURE_MAP] = F.pad(feature_map, (0, more)).to(torch.float16)
    readout = AlignedReadout(twin, mouse_id, dtype=torch.float16)
    return Graph(readout, examples, shapes, [tensor_names.PRE_ACTIVATION])


def token_core(twin: Twin, *, portable: bool = False) -> Graph:
    """A folded core whose last block computes only the given tokens."""
    examples, shapes = token_examples(twin)
    return Graph(core_module(twin, portable=portable), examples, shapes, [tensor_names.FEATURE_MAP])


def touched_tokens(twin: Twin, mouse_id: str) -> Graph:
    """The graph that computes which tokens the readouts of given neurons read."""
    examples, shapes = readout_examples(twin, mouse_id)
    del examples[tensor_names.FEATURE_MAP]
    return Graph(TouchedTokens(twin, mouse_id), examples, shapes, [tensor_names.TOKENS])


def has_attention(twin: Twin) -> bool:
    """Whether a twin has attention rollouts, which need the cls token of a ViT core."""
    return isinstance(twin.core, ViTCore)


def attention(twin: Twin) -> Graph:
    """A member's attention rollout graph."""
    assert isinstance(twin.core, ViTCore)
    examples = core_examples(twin)
    shapes = batched(examples)
    return Graph(_Attention(twin.core), examples, shapes, [tensor_names.ATTENTION_ROLLOUT])


def readout(twin: Twin, mouse_id: str) -> Graph:
    """A member's readout graph for one mouse."""
    examples, shapes = readout_examples(twin, mouse_id)
    return Graph(GatherReadout(twin, mouse_id), examples, shapes, [tensor_names.PRE_ACTIVATION])


def ensemble(combination: Combination) -> Graph:
    """The graph that combines members."""
    members = len(combination.weights)
    examples = {tensor_names.PRE_ACTIVATION: torch.randn(members, BATCH + members, NEURONS + members)}
    shapes = {tensor_names.PRE_ACTIVATION: {1: Dim("batch"), 2: Dim("n")}}
    return Graph(_Ensemble(combination), examples, shapes, [tensor_names.RESPONSE, tensor_names.SPREAD])


def batched(examples: dict[str, Tensor]) -> dict[str, dict[int, Dim]]:
    """Dynamic axes for examples of which only the first axis is dynamic."""
    batch = Dim("batch")
    return {name: {0: batch} for name in examples}


def raw_examples(mouse: Mouse) -> dict[str, Tensor]:
    """Random raw inputs of a mouse."""
    return {
        tensor_names.IMAGE: torch.randn(BATCH, *mouse.image_shape),
        tensor_names.BEHAVIOR: torch.randn(BATCH, mouse.n_behavior),
        tensor_names.PUPIL_CENTER: torch.randn(BATCH, 2),
    }


def core_examples(twin: Twin, batch: int = BATCH) -> dict[str, Tensor]:
    """Random inputs of a core."""
    return {
        tensor_names.CORE_IMAGE: torch.randn(batch, *twin.cropper.output_shape),
        tensor_names.CORE_BEHAVIOR: torch.randn(batch, twin.n_core_behavior),
        tensor_names.MOUSE_INDEX: torch.zeros(batch, dtype=torch.int64),
    }


def token_examples(twin: Twin) -> tuple[dict[str, Tensor], dict[str, dict[int, Dim]]]:
    """Random inputs of a core that computes only some tokens, and their dynamic axes."""
    _, rows, columns = twin.core.output_shape
    examples = core_examples(twin)
    examples[tensor_names.TOKENS] = torch.arange(NEURONS).expand(BATCH, -1) % (rows * columns)
    shapes = batched(examples)
    shapes[tensor_names.TOKENS][1] = Dim("asked")
    return examples, shapes


def readout_examples(twin: Twin, mouse_id: str) -> tuple[dict[str, Tensor], dict[str, dict[int, Dim]]]:
    """Random inputs of a readout, and their dynamic axes."""
    dim, rows, columns = twin.core.output_shape
    examples = {
        tensor_names.FEATURE_MAP: torch.randn(BATCH, rows, columns, dim),
        tensor_names.CORE_PUPIL_CENTER: torch.randn(BATCH, 2),
        tensor_names.NEURONS: torch.arange(NEURONS) % twin.mice[mouse_id].n_neurons,
    }
    batch = Dim("batch")
    shapes = {
        tensor_names.FEATURE_MAP: {0: batch},
        tensor_names.CORE_PUPIL_CENTER: {0: batch},
        tensor_names.NEURONS: {0: Dim("n")},
    }
    return examples, shapes
