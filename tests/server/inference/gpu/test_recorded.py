"""Batches padded to a few sizes, in buffers that stay, as CUDA graphs need them; here on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.bundle import tensor_names
from server.errors import BundleError
from server.inference import core_inputs
from server.inference.core import Core
from server.inference.engine import Engine
from server.inference.gpu.batch_sizes import batch_sizes, padded_size
from server.inference.gpu.recorded import RecordedSession
from server.inference.one_node import GATHER
from server.inference.sessions import Session, Slot, Stop


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(twin: TinyTwin) -> Engine:
    """An engine whose cores pad their batches."""
    engine = Engine.load(twin.folder, provider="cpu", max_batch=6)
    for i, file in enumerate(engine.manifest.cores):
        recorded = RecordedSession(twin.folder / file.path, wanted="cpu", threads=1, largest=6)
        engine.cores[i] = Core(recorded, None, max_batch=6)
    return engine


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 3, 4, 6, 7]), (16, [1, 2, 3, 4, 6, 8, 12, 16])]
)
def test_batches_come_in_few_sizes(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes
    for n in range(1, largest + 1):
        assert n <= padded_size(n, largest) <= max(n * 3 / 2, 2)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 13])
def test_padded_batches_give_the_same_answers(engine: Engine, twin: TinyTwin, batch: int) -> None:
    rng = np.random.default_rng(batch)
    for _ in range(3):  # the buffers are used again
        inputs = twin.draw("A", rng, batch)
        np.testing.assert_allclose(engine.predict("A", *inputs), twin.answer("A", *inputs), atol=1e-5)


def test_padded_batches_of_several_mice_give_the_same_answers(engine: Engine, twin: TinyTwin) -> None:
    rng = np.random.default_rng(1)
    asked = [(mouse_id, twin.draw(mouse_id, rng, n)) for mouse_id, n in (("A", 2), ("B", 1), ("A", 2))]
    answers = engine.predict_many([engine.check(mouse_id, *inputs) for mouse_id, inputs in asked])
    for (mouse_id, inputs), answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer.response, twin.answer(mouse_id, *inputs), atol=1e-5)


def test_outputs_that_do_not_stay_are_the_callers_own(twin: TinyTwin, engine: Engine) -> None:
    session = engine.cores[0].session
    rng = np.random.default_rng(2)

    def run() -> np.ndarray:
        stems = engine._forward.run_stems(engine.check("A", *twin.draw("A", rng, 3)))
        (output,) = session.run(stems[0]).values()
        return np.asarray(output)

    first = run()
    kept = first.copy()
    assert first.shape[0] == 3
    assert not np.allclose(run(), kept)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("batch", [1, 5, 13])
def test_on_a_gpu_cores_run_in_few_sizes(twin: TinyTwin, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Here on the CPU: only where a graph reads from is said to be otherwise."""
    monkeypatch.setattr(core_inputs, "on_device", lambda array, device: array)
    engine = Engine.load(twin.folder, provider="cpu", max_batch=7)
    ran: list[int] = []
    for core in engine.cores:
        session = core.session
        session.reads_from = "cuda"
        run = session.run

        def counted(tensors: Any, stay: Any = (), run: Any = run) -> Any:
            ran.append(len(tensors[tensor_names.CORE_IMAGE]))
            return run(tensors, stay)

        monkeypatch.setattr(session, "run", counted)
    inputs = twin.draw("A", np.random.default_rng(batch), batch)
    np.testing.assert_allclose(engine.predict("A", *inputs), twin.answer("A", *inputs), atol=1e-5)
    assert sum(ran) >= batch
    assert set(ran) <= set(batch_sizes(7))


def test_cuda_graphs_are_refused_without_a_gpu(twin: TinyTwin) -> None:
    with pytest.raises(BundleError, match="CUDA graphs need a GPU"):
        Engine.load(twin.folder, provider="cpu", cuda_graphs=True)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(BundleError, match="provider 'cuda' is required"):
            Engine.load(twin.folder, provider="auto", cuda_graphs=True)


def test_tf32_is_refused_without_a_gpu(twin: TinyTwin) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(BundleError, match="tf32"):
        Engine.load(twin.folder, precision="tf32")


def test_gather_takes_rows_in_their_order() -> None:
    feature_map = np.random.default_rng(3).standard_normal((5, 2, 3, 4)).astype(np.float32)
    session = Session(GATHER["tensor(float)"], wanted="cpu", threads=1)
    for rows in ([4, 0, 0, 2], [1]):
        taken = session.run({"feature_map": feature_map, "rows": np.array(rows)})["selected"]
        np.testing.assert_array_equal(taken, feature_map[rows])


def test_stop_ends_runs_of_sessions_opened_before_and_after(twin: TinyTwin, tmp_path: Path) -> None:
    stop = Stop()
    feature_map, rows = np.zeros((1, 1, 1, 1), np.float32), np.array([0])
    before = Session(GATHER["tensor(float)"], wanted="cpu", threads=1, stop=stop)
    before.run({"feature_map": feature_map, "rows": rows})
    stop.set()
    for session in (before, Session(GATHER["tensor(float)"], wanted="cpu", threads=1, stop=stop)):
        with pytest.raises(Exception, match=r"[Tt]erminat"):
            session.run({"feature_map": feature_map, "rows": rows})


def test_an_output_goes_into_its_slot_of_a_larger_tensor() -> None:
    feature_map = np.random.default_rng(4).standard_normal((5, 2, 3, 4)).astype(np.float32)
    session = Session(GATHER["tensor(float)"], wanted="cpu", threads=1)
    whole = ort.OrtValue.ortvalue_from_numpy(np.zeros((3, 2, 2, 3, 4), np.float32))
    for index, rows in ((2, [0, 4]), (0, [3, 1])):
        given = {"feature_map": feature_map, "rows": np.array(rows)}
        assert session.run(given, into={"selected": Slot(whole, index)}) == {}
    expected = np.stack([feature_map[[3, 1]], np.zeros((2, 2, 3, 4)), feature_map[[0, 4]]])
    np.testing.assert_array_equal(whole.numpy(), expected)
