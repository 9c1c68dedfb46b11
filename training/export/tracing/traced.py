"""Tracing of modules, also of those that contain a backward pass, to operators that ONNX has.

Each operator of a backward pass is decomposed into simpler ones. This file has the decompositions that torch lacks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, ExportGraphSignature, ModuleCallEntry
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.onnx._internal.exporter import _decomp

from training.export.tracing.onnx_files import operators

__all__ = ["trace"]


def trace(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, Mapping[int, object]], *, backward: bool
) -> ExportedProgram:
    """The module as a program of operators that ONNX has.

    `torch.onnx.export` would trace the module four times, which takes most of the time of an export. This traces it
    once, with symbolic sizes and with all decompositions.

    Args:
        examples: input name -> example, in the order of the module's arguments.
        shapes: input name -> its dynamic axes; dynamic axes of the same size are treated as the same axis.
        backward: the module contains a backward pass.
    """
    module = module.eval().requires_grad_(False)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)  # the weights are not fake
    inputs = []
    for name, tensor in examples.items():
        sizes = [DimDynamic.DUCK if axis in shapes[name] else DimDynamic.STATIC for axis in range(tensor.ndim)]
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
        inputs.append(mode.from_tensor(tensor, source=ConstantSource(name), symbolic_context=context))
    with mode, torch.set_grad_enabled(backward):
        traced = make_fx(
            lambda *tensors: module(*tensors),
            decomposition_table=_decompositions(backward=backward),
            pre_dispatch=not backward,  # keeps operators such as linear whole, but does not see a backward pass
            _allow_non_fake_inputs=True,
        )(*inputs)
    dynamic = [
        (f"axis {i} of {name}", x.shape[i]) for (name, x) in zip(examples, inputs, strict=True) for i in shapes[name]
    ]
    fixed = [words for words, size in dynamic if not getattr(_expression(size), "free_symbols", None)]
    assert not fixed, f"tracing has fixed {', '.join(fixed)}"
    graph = traced.graph
    _drop_writes(graph)
    _share_sizes(graph)
    _simplify_shapes(graph)
    graph.eliminate_dead_code()
    return _program(traced, mode)


def _program(traced: fx.GraphModule, mode: FakeTensorMode) -> ExportedProgram:
    """The traced graph as torch's exporter takes it: the tensors that the module holds are inputs, too."""
    graph, tensors, lifted = traced.graph, dict[str, Tensor](), dict[int, fx.Node]()
    arguments = graph.find_nodes(op="placeholder")
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(traced, str(node.target))
        if id(tensor) not in lifted:
            with graph.inserting_before(arguments[0]):
                value = graph.placeholder(f"held_{len(tensors)}")
            value.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
            lifted[id(tensor)], tensors[value.name] = value, tensor
        node.replace_all_uses_with(lifted[id(tensor)])
        graph.erase_node(node)
    output = graph.output_node()
    results: Any = output.args[0] if isinstance(output.args[0], list | tuple) else (output.args[0],)
    output.args = (tuple(results),)
    held = [InputSpec(InputKind.BUFFER, TensorArgument(name), name, persistent=True) for name in tensors]
    given = [InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in arguments]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    return ExportedProgram(
        root={},
        graph=graph,
        graph_signature=ExportGraphSignature([*held, *given], outputs),
        state_dict=tensors,
        range_constraints={},
        module_call_graph=[ModuleCallEntry("")],
    )


def _drop_writes(graph: fx.Graph) -> None:
    """Takes the new values in place of a tensor that a backward pass overwrites, such as that of a maximum."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        written, values = node.args
        others = [written, *(user for user in written.users if user is not node)]
        assert _shape(written) == _shape(values), "the values would have to be expanded"
        assert not any(_may_be_view(one) or one > node for one in others), "another tensor may share the memory"
        node.replace_all_uses_with(values)
        graph.erase_node(node)


def _may_be_view(node: fx.Node) -> bool:
    return node.op != "call_function" or any(one.alias_info for one in node.target._schema.returns)  # type: ignore[union-attr]


def _share_sizes(graph: fx.Graph) -> None:
    """Computes each size once, and the number of a tensor's elements, which ONNX lacks, from its sizes."""
    first: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            continue
        same = first.setdefault(_expression(value), node)
        if same is node and node.target is torch.ops.aten.sym_numel.default:
            with graph.inserting_before(node):
                same = first[_expression(value)] = _product_of_sizes(graph, node.args[0])
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _product_of_sizes(graph: fx.Graph, tensor: Any) -> fx.Node:
    product: fx.Node | None = None
    for axis, size in enumerate(tensor.meta["val"].shape):
        factor = graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
        factor.meta["val"] = size
        if product is not None:
            value = product.meta["val"] * size
            factor = graph.call_function(operator.mul, (product, factor))
            factor.meta["val"] = value
        product = factor
    assert product is not None, "a tensor without axes has a known number of elements"
    return product


def _simplify_shapes(graph: fx.Graph) -> None:
    """Drops views of views, and views and expansions that change nothing; a view infers its only dynamic size."""
    view, expand = torch.ops.aten.view.default, torch.ops.aten.expand.default
    for node in list(graph.nodes):
        if node.target not in (view, expand):
            continue
        x, sizes = node.args
        if node.target is view:
            while x.target is view:
                x = x.args[0]
            if sum(isinstance(size, fx.Node) for size in sizes) == 1:
                sizes = [-1 if isinstance(size, fx.Node) else size for size in sizes]
            node.args = (x, sizes)
        if _shape(x) == _shape(node):
            node.replace_all_uses_with(x)
            graph.erase_node(node)


def _shape(node: fx.Node) -> list[object]:
    return [_expression(size) for size in node.meta["val"].shape]


def _expression(size: int | torch.SymInt) -> Any:
    """A size as a number, or as an expression of sympy; equal expressions are equal sizes."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


@functools.cache
def _decompositions(*, backward: bool) -> dict[Any, Any]:
    """Decompositions of the operators that ONNX lacks; of a backward pass, into the core operators."""
    known = set(_decomp.get_onnx_implemented_overloads(operators()))
    table = dict(_decomp.create_onnx_friendly_decomposition_table(known))
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"):
        operator_name, _, overload = name.removeprefix("aten::").partition(".")
        if name.startswith("aten::"):
            composite = getattr(getattr(torch.ops.aten, operator_name), overload or "default")
            # Like torch.export: those that may return a view are always decomposed.
            if composite not in known or any(result.alias_info for result in composite._schema.returns):
                table.setdefault(composite, composite.decompose)
    if backward:
        table |= core_aten_decompositions()
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
