"""The graphs of the backward passes in `training.export.modules.gradients`, and of the forward passes before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from server.bundle import tensor_names
from server.bundle.tensor_names import gradient_of
from training.checkpoints.ensemble import Combination
from training.export.graphs.forward import (
    batched,
    core_examples,
    core_module,
    raw_examples,
    readout_examples,
    token_examples,
)
from training.export.modules.folded import FoldedViT
from training.export.modules.gradients import (
    EnsembleGradient,
    FoldedViTGradient,
    PlainCoreGradient,
    ReadoutGradient,
    StemGradient,
)
from training.export.tracing.onnx_files import BATCH, NEURONS
from training.export.tracing.templates import Graph
from training.models import Twin

__all__ = [
    "core_gradient",
    "core_tape",
    "ensemble_gradient",
    "readout_gradient",
    "stem_gradient",
]

_D_CORE = [gradient_of(tensor_names.CORE_IMAGE), gradient_of(tensor_names.CORE_BEHAVIOR)]


class _Tape(nn.Module):
    def __init__(self, folded: FoldedViT) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        feature_map, tape = self.folded.with_tape(image, behavior, mouse_index, at)
        return feature_map, *(tensor for block in tape for tensor in block)


def tape_names(folded: FoldedViT) -> list[str]:
    """Names of the tensors that the forward pass keeps for the backward pass, in the order of blocks."""
    return [f"tape.{i}.{name}" for i in range(len(folded.mlps)) for name in ("input", "heads")]


def core_tape(twin: Twin, *, portable: bool = False) -> Graph:
    """A folded core that also returns its tape, and whose last block computes only the given tokens."""
    folded = core_module(twin, portable=portable)
    assert isinstance(folded, FoldedViT)
    examples, shapes = token_examples(twin)
    return Graph(_Tape(folded), examples, shapes, [tensor_names.FEATURE_MAP, *tape_names(folded)])


def core_gradient(twin: Twin) -> Graph:
    """A core's backward pass, which starts from the tape of a folded core, or from the inputs of any other."""
    core = core_module(twin, portable=True)
    dim, rows, columns = twin.core.output_shape
    d_feature_map = torch.randn(BATCH, rows, columns, dim)
    if not isinstance(core, FoldedViT):
        examples = {**core_examples(twin), gradient_of(tensor_names.FEATURE_MAP): d_feature_map}
        shapes = batched(examples)
        return Graph(PlainCoreGradient(twin.core), examples, shapes, _D_CORE, backward=True)
    examples, shapes = token_examples(twin)
    batch, n_tokens = shapes[tensor_names.TOKENS].values()
    examples[gradient_of(tensor_names.FEATURE_MAP)] = d_feature_map
    n_heads, tokens = core.folded_attentions()[0].n_heads, 1 + core.n_tokens
    for i, name in enumerate(tape_names(core)):
        length = tokens if i % 2 == 0 else tokens * n_heads
        examples[name] = torch.randn(BATCH, length, dim)
    examples[tape_names(core)[-1]] = torch.randn(BATCH, NEURONS * n_heads, dim)
    shapes |= {name: {0: batch} for name in examples if name not in shapes}
    shapes[tape_names(core)[-1]][1] = n_heads * n_tokens
    return Graph(FoldedViTGradient(core), examples, shapes, _D_CORE, backward=True)


def readout_gradient(twin: Twin, mouse_id: str) -> Graph:
    """The backward pass of one mouse's readout."""
    examples, shapes = readout_examples(twin, mouse_id)
    examples[gradient_of(tensor_names.PRE_ACTIVATION)] = torch.randn(BATCH, NEURONS)
    shapes[gradient_of(tensor_names.PRE_ACTIVATION)] = {
        0: shapes[tensor_names.FEATURE_MAP][0],
        1: shapes[tensor_names.NEURONS][0],
    }
    outputs = [gradient_of(tensor_names.FEATURE_MAP), gradient_of(tensor_names.CORE_PUPIL_CENTER)]
    return Graph(ReadoutGradient(twin, mouse_id), examples, shapes, outputs)


def stem_gradient(twin: Twin, mouse_id: str) -> Graph:
    """The backward pass of one mouse's stem."""
    core = core_examples(twin)
    examples = {
        **raw_examples(twin.mice[mouse_id]),
        gradient_of(tensor_names.CORE_IMAGE): core[tensor_names.CORE_IMAGE],
        gradient_of(tensor_names.CORE_BEHAVIOR): core[tensor_names.CORE_BEHAVIOR],
        gradient_of(tensor_names.CORE_PUPIL_CENTER): torch.randn(BATCH, 2),
    }
    outputs = [gradient_of(name) for name in (tensor_names.IMAGE, tensor_names.BEHAVIOR, tensor_names.PUPIL_CENTER)]
    return Graph(StemGradient(twin, mouse_id), examples, batched(examples), outputs)


def ensemble_gradient(combination: Combination) -> Graph:
    """The graph that combines members, and its backward pass for weights of the responses."""
    members = len(combination.weights)
    examples = {
        tensor_names.PRE_ACTIVATION: torch.randn(members, BATCH + members, NEURONS + members),
        tensor_names.WEIGHTS: torch.randn(BATCH + members, NEURONS + members),
    }
    batch, n = Dim("batch"), Dim("n")
    shapes = {tensor_names.PRE_ACTIVATION: {1: batch, 2: n}, tensor_names.WEIGHTS: {0: batch, 1: n}}
    outputs = [tensor_names.RESPONSE, gradient_of(tensor_names.PRE_ACTIVATION)]
    return Graph(EnsembleGradient(combination), examples, shapes, outputs)
