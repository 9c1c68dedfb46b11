"""Graphs of equal structure are exported once, to a template; then each takes the template with its own tensors.

Tracing takes seconds, and most graphs of a bundle differ only in their tensors: those of members with the same
configuration, and those of mice. A template is exported with these tensors as inputs, so nothing in it depends on
their values.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from pydantic import BaseModel
from torch import Tensor, nn
from torch.export import Dim

from training.export.modules.readout import GatherReadout
from training.export.tracing.onnx_files import export_program, optimized
from training.export.tracing.traced import trace

__all__ = ["Graph", "Templates"]


@dataclass(frozen=True)
class Graph:
    """A graph to be exported.

    Attributes:
        examples: input name -> example, in the order of the module's arguments.
        shapes: input name -> its dynamic axes.
        outputs: their names.
        mouse: the position of the graph's mouse among the mice of the module.
        backward: the module contains a backward pass, and is traced to simple operators first.
    """

    module: nn.Module
    examples: Mapping[str, Tensor]
    shapes: Mapping[str, dict[int, Dim]]
    outputs: Sequence[str]
    mouse: int = 0
    backward: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """The module's parameters and buffers by path, in which the graph's own mouse is always number 0."""
        return dict(_tensors(self.module, self.mouse))


@dataclass(frozen=True)
class _Template:
    """Attributes:
    model: without the tensors that are put in.
    slots: name in the model -> path in the module.
    """

    model: onnx.ModelProto
    slots: dict[str, str]


class Templates:
    """The templates of one export."""

    def __init__(self) -> None:
        self._templates: dict[Hashable, _Template] = {}

    def __len__(self) -> int:
        return len(self._templates)

    def write(self, graph: Graph, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
        """Writes one self-contained graph, with `metadata` in its metadata_props."""
        key = _structure(graph)
        if key not in self._templates:
            self._templates[key] = _export(graph)
        template, tensors = self._templates[key], graph.tensors()
        model = onnx.ModelProto()
        model.CopyFrom(template.model)
        for name, source in template.slots.items():
            array = tensors[source].detach().contiguous().numpy()
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        if metadata:
            onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=False)
        onnx.save_model(model, str(path))


def _export(graph: Graph) -> _Template:
    traced = trace(graph.module, graph.examples, graph.shapes, backward=graph.backward)
    program = export_program(traced, list(graph.examples), graph.outputs)
    paths = {_identity(tensor): path for path, tensor in graph.tensors().items()}
    values = program.model.graph
    slots = {}
    for name, value in list(values.initializers.items()):
        tensor = getattr(value.const_value, "raw", None)
        path = paths.get(_identity(tensor)) if isinstance(tensor, Tensor) else None
        assert path is not None or value.const_value is None or value.const_value.size <= 1, f"{name} has no source"
        if path is not None:
            del values.initializers[name]
            value.const_value = None  # known only later, so nothing is computed from it now
            values.inputs.append(value)
            slots[name] = path
    model = optimized(program, graph.shapes)
    used = {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name in slots]:
        model.graph.input.remove(value)
    return _Template(model, {name: path for name, path in slots.items() if name in used})


def _tensors(module: nn.Module, mouse: int, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    own = {**module._parameters, **module._buffers}
    yield from ((f"{prefix}{name}", tensor) for name, tensor in own.items() if tensor is not None)
    for position, (name, child) in enumerate(module._modules.items()):
        if prefix.endswith("shifters."):  # the cropper's, one per mouse, in the order of the mice
            name = str((position - mouse) % len(module._modules))
        if child is not None:
            yield from _tensors(child, mouse, f"{prefix}{name}.")


def _identity(tensor: Tensor) -> Hashable:
    """Equal for tensors that share their memory."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _structure(graph: Graph) -> Hashable:
    """Equal for graphs that differ only in the values of their tensors, and in the number of neurons."""
    readouts = [module for module in graph.module.modules() if isinstance(module, GatherReadout)]
    tables = {_identity(table) for readout in readouts for table in readout.tables()}

    def shape(tensor: Tensor) -> Hashable:
        several = _identity(tensor) in tables and len(tensor) > 1
        return ("neurons", *tensor.shape[1:]) if several else tuple(tensor.shape)

    return (
        frozenset((path, shape(tensor), tensor.dtype) for path, tensor in graph.tensors().items()),
        tuple(_options(module) for module in graph.module.modules()),
        tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in graph.examples.items()),
        tuple(graph.outputs),
        graph.backward,
    )


def _options(module: nn.Module) -> Hashable:
    """A module's class and public attributes. One that is not plain data is only equal to itself."""
    left_out = ("training", "mouse_id")
    options = {name: value for name, value in vars(module).items() if name[0] != "_" and name not in left_out}
    plain = {name: repr(value) if _is_plain(value) else id(value) for name, value in options.items()}
    return type(module), tuple(plain.items())


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | BaseModel)
