"""A bundle with a graph that never ends."""

from __future__ import annotations

import json

import onnx
from onnx import TensorProto, helper, numpy_helper
from support.tiny_bundle import TinyTwin

from server.bundle.manifest import MANIFEST, hash_file

__all__ = ["make_endless"]


def make_endless(twin: TinyTwin) -> None:
    """Has the ensemble's graph of mouse A add zero, over and over again."""
    path = twin.folder / twin.manifest.mice["A"].ensemble.path
    model = onnx.load(path)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["go_on"]),
            helper.make_node("Add", ["value", "nothing"], ["next_value"]),
        ],
        "again",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next_value", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]) * 0, "nothing")],
    )
    last = model.graph.node[-1]
    spread = last.output[0]
    last.output[0] = "finite_spread"
    model.graph.node.append(helper.make_node("Loop", ["turns", "", "finite_spread"], [spread], body=body))
    model.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, (), [2**62]))
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((twin.folder / MANIFEST).read_text())
    manifest["mice"]["A"]["ensemble"].update(sha256=hash_file(path), bytes=path.stat().st_size)
    (twin.folder / MANIFEST).write_text(json.dumps(manifest))
