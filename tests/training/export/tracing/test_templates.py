"""Graphs of equal structure share a template, and each computes what it computes when it is exported alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.tiny_twins import tiny_config, tiny_mouse, tiny_twin

from training.checkpoints.ensemble import Combination
from training.export.graphs import backward, forward
from training.export.tracing.templates import Graph, Templates
from training.models import Twin

MICE = [tiny_mouse("A", n_neurons=5), tiny_mouse("B", n_neurons=8)]
CROPPED = {"cropper": {"size": (12, 20), "crop": 0.8, "shifter": "behavior_and_pupil_center"}}
CASES: dict[str, tuple[dict[str, Any], Callable[[Twin, str], Graph]]] = {
    "core": ({}, lambda twin, mouse_id: forward.core(twin)),
    "attention": ({}, lambda twin, mouse_id: forward.attention(twin)),
    "cnn": ({"core": {"kind": "cnn"}}, lambda twin, mouse_id: forward.core(twin)),
    "cnn gradient": ({"core": {"kind": "cnn"}}, lambda twin, mouse_id: backward.core_gradient(twin)),
    "core gradient": ({"core": {"n_blocks": 1}}, lambda twin, mouse_id: backward.core_gradient(twin)),
    "stem": (CROPPED, forward.stem),
    "stem gradient": (CROPPED, backward.stem_gradient),
    "readout": ({}, forward.readout),
    "readout gradient": ({}, backward.readout_gradient),
    "touched tokens": ({}, forward.touched_tokens),
}


def run(path: Path, graph: Graph) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    return session.run(None, {name: x.numpy() for name, x in graph.examples.items() if name in used})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_graph_from_a_template_computes_what_torch_does(case: str, tmp_path: Path) -> None:
    options, make = CASES[case]
    twins = [tiny_twin(tiny_config(**options), MICE, seed=seed) for seed in (0, 1)]
    templates = Templates()
    answers = []
    for twin in twins:
        for mouse in MICE:  # another number of neurons, and the second of the mice
            graph = make(twin, mouse.mouse_id)
            templates.write(graph, tmp_path / "graph.onnx")
            got = run(tmp_path / "graph.onnx", graph)
            expected = graph.module.eval()(*graph.examples.values()) if case != "core" else unfused(graph)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for one, exact in zip(got, expected, strict=True):
                np.testing.assert_allclose(one, exact.detach().numpy(), rtol=1e-4, atol=1e-4)
            answers.append(got[0])
    assert len(templates) == 1
    assert len({answer.tobytes() for answer in answers}) > 1  # the examples are random, and so are the twins


def unfused(graph: Graph) -> torch.Tensor:
    """The core's answer without onnxruntime's own operator, which torch cannot compute."""
    for attention in graph.module.folded_attentions():  # type: ignore[operator]
        attention.fused = False
    return graph.module.eval()(*graph.examples.values())


@pytest.mark.slow
def test_graphs_of_another_structure_do_not_share_a_template(tmp_path: Path) -> None:
    templates = Templates()
    for n, config in enumerate([tiny_config(), tiny_config({"n_heads": 1}), tiny_config({"patch_stride": 2})], start=1):
        templates.write(forward.core(tiny_twin(config, MICE)), tmp_path / "core.onnx")
        assert len(templates) == n
    for n, weights in enumerate([(0.5, 0.5), (0.3, 0.9), (1.0,)]):
        graph = forward.ensemble(Combination(weights, bias=0.25 * n))
        templates.write(graph, tmp_path / "ensemble.onnx")
        members = graph.examples["pre_activation"].numpy()
        x = np.einsum("mbn,m->bn", members.astype(np.float64), weights) + 0.25 * n
        exact = np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1
        np.testing.assert_allclose(run(tmp_path / "ensemble.onnx", graph)[0], exact, rtol=0, atol=1e-5)
    assert len(templates) == 5  # of two and of one member


@pytest.mark.slow
def test_a_file_holds_the_metadata_that_it_is_given(tmp_path: Path) -> None:
    Templates().write(forward.ensemble(Combination((1.0,))), tmp_path / "graph.onnx", metadata={"mouse": "A"})
    model = onnx.load(tmp_path / "graph.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"mouse": "A"}
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"mouse": "A"}
