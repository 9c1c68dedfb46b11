"""A module is traced once, with named dynamic axes, and computes the same for sizes other than the examples'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from training.export.modules.gradients import vector_jacobian
from training.export.tracing.templates import Graph, Templates
from training.export.tracing.traced import trace

BATCH, N = Dim("batch"), Dim("n")


class Pooled(nn.Module):
    """The gradient of a maximum, which autograd writes in place, of rows that are picked from the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(5, 4))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        x = x.detach().requires_grad_()  # (B, 3, 5)
        with torch.enable_grad():
            at = (torch.arange(x.shape[0])[:, None] * 3 + rows).flatten()
            picked = x.flatten(0, 1).index_select(0, at).unflatten(0, (x.shape[0], -1)) @ self.weight  # (B, n, 4)
            y = torch.maximum(picked[..., :2], picked[..., 2:])
        return vector_jacobian([y], [x], [torch.ones_like(y)])[0]


def pooled(batch: int, n: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, 5), "rows": torch.randint(0, 3, (batch, n))}


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_torch_does_not_trace_again_and_other_sizes_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced_again(*_: object, **__: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(torch.export, "export", traced_again)
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", traced_again)
    module, path = Pooled(), tmp_path / "graph.onnx"
    shapes = {"x": {0: BATCH}, "rows": {0: BATCH, 1: N}}
    Templates().write(Graph(module, pooled(7, 11), shapes, ["d_x"], backward=True), path)
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*onnx.load(path).graph.input, *onnx.load(path).graph.output)
    }
    assert sizes == {"x": ["batch", 3, 5], "rows": ["batch", "n"], "d_x": ["batch", 3, 5]}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, n in ((1, 1), (2, 5), (13, 3)):
        given = pooled(batch, n)
        (got,) = session.run(None, {name: x.numpy() for name, x in given.items()})
        picked = np.take_along_axis(given["x"].numpy(), given["rows"].numpy()[..., None], 1)
        weight = module.weight.numpy()
        left, right = np.split(picked @ weight, 2, axis=-1)
        slope = np.where((left > right)[..., None, :], weight[:, :2], weight[:, 2:]).sum(-1)  # (B, n, 5)
        exact = np.zeros((batch, 3, 5))
        for b in range(batch):
            np.add.at(exact[b], given["rows"][b].numpy(), slope[b])
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)


def test_an_axis_that_the_module_fixes_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(7, 3) + 1

    with pytest.raises(AssertionError, match="fixed axis 0 of x"):
        trace(Fixed(), {"x": torch.randn(7, 3)}, {"x": {0: BATCH}}, backward=False)


def test_a_write_into_memory_that_is_shared_is_refused() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            first = y[:, :2]
            y.copy_(x * 3)
            return first * 2

    with pytest.raises(AssertionError, match="share the memory"):
        trace(Shared(), {"x": torch.randn(7, 3)}, {"x": {0: BATCH}}, backward=True)
