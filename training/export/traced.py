"""Tracing of functions that contain a backward pass, to operators that ONNX has.

Functions with `torch.autograd.grad` are traced with symbolic sizes, and each operator of the backward pass is
decomposed into simpler ones. This file has the decompositions that torch lacks for ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

__all__ = ["trace", "vector_jacobian"]


def vector_jacobian(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """d(sum of outputs times cotangents) / d(inputs); zeros for inputs that the outputs do not depend on."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    ys, cs = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ys, list(inputs), cs, allow_unused=True, materialize_grads=True))


def trace(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, Mapping[int, object]]
) -> fx.GraphModule:
    """The module as a graph of simple operators.

    Args:
        examples: input name -> example, in the order of the module's arguments.
        shapes: input name -> its dynamic axes; dynamic axes of the same size are treated as the same axis.
    """
    module = module.eval().requires_grad_(False)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)  # the weights are not fake
    inputs = []
    for name, tensor in examples.items():
        sizes = [DimDynamic.DUCK if axis in shapes[name] else DimDynamic.STATIC for axis in range(tensor.ndim)]
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
        inputs.append(mode.from_tensor(tensor, source=ConstantSource(name), symbolic_context=context))
    with mode:
        return make_fx(
            lambda *tensors: module(*tensors), decomposition_table=_decompositions(), _allow_non_fake_inputs=True
        )(*inputs)


def _decompositions() -> dict[Any, Any]:
    table = dict(core_aten_decompositions())
    table[torch.ops.aten.constant_pad_nd.default] = _constant_pad_nd
    table[torch.ops.aten.convolution_backward.default] = _convolution_backward
    return table


def _convolution_backward(
    grad: Tensor,
    image: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of the image only: the transposed convolution, with the size of the image."""
    assert not transposed
    assert not mask[1]
    rest = [
        image.shape[2 + i]
        - ((grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + (weight.shape[2 + i] - 1) * dilation[i] + 1)
        for i in range(2)
    ]
    image_grad = torch.ops.aten.convolution(
        grad, weight, None, stride, padding, dilation, True, [int(r) for r in rest], groups
    )
    return image_grad, None, None


def _constant_pad_nd(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads, or crops where `pad` is negative, with cat and slices: torch's decomposition fixes the batch size."""
    for i in range(len(pad) // 2):
        axis, before, after = x.ndim - 1 - i, pad[2 * i], pad[2 * i + 1]
        x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
        edges = [x.new_full([*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :]], value) for n in (before, after)]
        x = torch.cat([edges[0], x, edges[1]], dim=axis)
    return x
