"""Exports modules to ONNX files. Weights that several graphs of a folder share are written once, in their own file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn
from torch.export import Dim

__all__ = ["BATCH", "NEURONS", "SharedWeights", "export_program", "optimized"]

OPSET = 20
# Sizes of the examples for tracing. They must differ from all other dimensions of a graph, or tracing confuses them.
BATCH, NEURONS = 7, 11


def export_program(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, dict[int, Dim]], outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """The module's graph, not optimised yet.

    Args:
        examples: input name -> example, in the order of the module's arguments.
        shapes: input name -> its dynamic axes.
    """
    with _quiet(), _operators_built_once():
        program = torch.onnx.export(
            module.eval(),
            tuple(examples.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=tuple(shapes[name] for name in examples),
            verbose=False,
            optimize=False,
        )
    assert program is not None
    return program


def optimized(program: torch.onnx.ONNXProgram, shapes: Mapping[str, dict[int, Dim]]) -> onnx.ModelProto:
    """The program's graph, optimised, without inputs that it does not use and without the exporter's notes."""
    with _quiet():
        program.optimize()
    model = program.model_proto
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        axes = shapes.get(value.name, {})
        assert all(sizes[axis].dim_param for axis in axes), f"tracing has fixed an axis of {value.name}"
    _drop_unused_inputs(model)
    drop_origins(model)
    return model


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
def _table(build: Callable[..., object], **options: object) -> object:
    return build(**options)


@contextlib.contextmanager
def _operators_built_once() -> Iterator[None]:
    """Caches torch's table of about 500 operators, which it otherwise rebuilds for each export.

    Building it takes most of the time of a small graph. The registry is internal to torch (2.6 to 2.13): where it is
    missing, exports are only slower.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original, build = ONNXRegistry.__dict__["from_torchlib"], ONNXRegistry.from_torchlib
    except (ImportError, AttributeError, KeyError):
        yield
        return
    ONNXRegistry.from_torchlib = functools.partial(_table, build)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


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
