"""Exports modules to ONNX files. Weights that several graphs of a folder share are written once, in their own file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch.export import Dim, ExportedProgram
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

__all__ = ["BATCH", "NEURONS", "SharedWeights", "export_program", "operators", "optimized"]

OPSET = 20
# Sizes of the examples for tracing. They must differ from all other dimensions of a graph, or tracing confuses them.
BATCH, NEURONS = 7, 11


def export_program(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    """The program as a graph, not optimised yet."""
    with _quiet(), _only_translated():
        result = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
            optimize=False,
        )
    assert result is not None
    return result


def optimized(program: torch.onnx.ONNXProgram, shapes: Mapping[str, dict[int, Dim]]) -> onnx.ModelProto:
    """The program's graph, optimised, without inputs that it does not use and without the exporter's notes."""
    with _quiet():
        program.optimize()
    model = program.model_proto
    _name_axes(model, shapes)
    _drop_unused_inputs(model)
    drop_origins(model)
    return model


def _name_axes(model: onnx.ModelProto, shapes: Mapping[str, Mapping[int, Dim]]) -> None:
    """Gives dynamic axes their own names, in place of the tracer's."""
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        for axis, dim in shapes.get(value.name, {}).items():
            traced = value.type.tensor_type.shape.dim[axis].dim_param
            if traced.isidentifier():  # not a multiple of another axis
                names[traced] = dim.__name__
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), size.dim_param)


def drop_origins(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes on the origin of each node: stack traces, with paths of this machine."""
    graph = model.graph
    parts = (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in parts:
        del part.metadata_props[:]
        part.ClearField("doc_string")


class SharedWeights:
    """The `weights.bin` of a folder of graphs, which contains each distinct tensor once."""

    NAME = "weights.bin"
    SMALLEST = 1024  # bytes; onnxruntime needs smaller tensors, such as shapes, in the graphs
    ALIGNMENT = 64  # bytes; onnxruntime maps the file into memory and computes from there

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self._offsets: dict[bytes, int] = {}

    def take_from(self, graph: Path) -> None:
        """Moves a graph's large tensors out of its file."""
        model = onnx.load_model(str(graph))
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= self.SMALLEST:
                offset, length = self._store(tensor.raw_data), len(tensor.raw_data)
                set_external_data(tensor, location=self.NAME, offset=offset, length=length)
                tensor.ClearField("raw_data")
        onnx.save_model(model, str(graph))

    def _store(self, content: bytes) -> int:
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            with self.path.open("ab") as stream:
                end = stream.tell()
                offset = -(-end // self.ALIGNMENT) * self.ALIGNMENT
                stream.write(b"\0" * (offset - end) + content)
            self._offsets[key] = offset
        return self._offsets[key]


def _drop_unused_inputs(model: onnx.ModelProto) -> None:
    """Removes the inputs that a graph does not use, so that the server does not compute them."""
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    for value in [value for value in model.graph.input if value.name not in used]:
        model.graph.input.remove(value)


@functools.cache
def operators() -> ONNXRegistry:
    """torch's table of the operators that ONNX has, which it otherwise rebuilds for each export."""
    build = ONNXRegistry.from_torchlib
    with _quiet():
        return build(opset_version=OPSET) if "opset_version" in inspect.signature(build).parameters else build()


@contextlib.contextmanager
def _only_translated() -> Iterator[None]:
    """Lets torch's exporter take a traced program as it is: it would trace it again to decompose it.

    Both names are internal to torch; 2.6 to 2.13 have them.
    """
    with (
        mock.patch.object(ONNXRegistry, "from_torchlib", return_value=operators()),
        mock.patch.object(_fx_passes, "decompose_with_registry", side_effect=_as_it_is),
    ):
        yield


def _as_it_is(program: ExportedProgram, registry: ONNXRegistry) -> ExportedProgram:
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporter's progress and its advice to developers."""
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
