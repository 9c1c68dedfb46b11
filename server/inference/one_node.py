"""ONNX models of one node, written by hand: the server does not need the onnx package for anything else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["GATHER", "MATMUL"]

_ELEMENT = {np.dtype(np.float32): 1, np.dtype(np.int64): 7, np.dtype(np.float16): 10}  # onnx.TensorProto.DataType
_OPSET = 13


def _field(number: int, content: bytes | int) -> bytes:
    """A field of a protobuf message: a varint below 128, or bytes with their length."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    length = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 127 | 128, len(content) >> 7])
    return bytes([number << 3 | 2]) + length + content


def _value(name: str, dtype: npt.DTypeLike, rank: int) -> bytes:
    axes = b"".join(_field(1, _field(2, f"{name}{axis}".encode())) for axis in range(rank))  # all dynamic
    tensor = _field(1, _ELEMENT[np.dtype(dtype)]) + _field(2, axes)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _one_node(
    operator: str, inputs: Mapping[str, tuple[npt.DTypeLike, int]], output: tuple[str, npt.DTypeLike, int]
) -> bytes:
    """The model output = operator(inputs), with the type and the number of axes of each."""
    name, dtype, rank = output
    node = b"".join(_field(1, one.encode()) for one in inputs) + _field(2, name.encode())
    graph = _field(1, node + _field(4, operator.encode())) + _field(2, b"g")
    graph += b"".join(_field(11, _value(one, *kind)) for one, kind in inputs.items())
    graph += _field(12, _value(name, dtype, rank))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, _OPSET))


# y = a @ b
MATMUL = _one_node("MatMul", {"a": (np.float32, 2), "b": (np.float32, 2)}, ("y", np.float32, 2))
# Type of the elements -> selected (n, ...) = feature_map (B, rows, columns, D) at rows (n,) of its first axis
GATHER = {
    f"tensor({name})": _one_node("Gather", {"feature_map": (dtype, 4), "rows": (np.int64, 1)}, ("selected", dtype, 4))
    for name, dtype in (("float", np.float32), ("float16", np.float16))
}
