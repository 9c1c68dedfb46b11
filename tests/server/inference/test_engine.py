"""The engine on exported graphs: few neurons, many mice, split batches, one file per mouse."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from support.checkout import ROOT
from support.closed_pipe import closed_pipe
from support.tiny_twins import tiny_mouse

from server.bundle import tensor_names
from server.bundle.manifest import MANIFEST, load_manifest
from server.bundle.neurons import load_neurons
from server.errors import BundleError
from server.inference import benchmark as bench
from server.inference.core import WORTH_RESTRICTING, distinct_tokens
from server.inference.core_inputs import CoreInputs, mask_of
from server.inference.engine import Engine
from server.inference.one_node import MATMUL
from server.inference.sessions import Session
from server.inference.stimulus import Stimulus, merged
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.ensemble import Combination, Ensemble
from training.config import ModelConfig, with_options
from training.data.mouse import Mouse
from training.export import export_bundle
from training.export.bundle import BundleOptions
from training.export.graphs.single_file import metadata
from training.models import Twin

pytestmark = pytest.mark.slow  # exports a bundle first

MICE = {"A": 40, "B": 25}
SMALL = {"core.patch_stride": 3, "core.n_blocks": 2, "core.n_heads": 3, "core.dim": 24, "core.mlp_dim": 40}


def make_ensemble() -> Ensemble:
    """Two members with random weights. Their readouts are all over the map and outside it, and shift with the gaze."""
    rng = np.random.default_rng(0)
    mice = [
        dataclasses.replace(
            Mouse.without_recording(mouse_id, (1, 144, 256), n),
            neuron_coordinates=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        )
        for mouse_id, n in MICE.items()
    ]
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        twin = Twin(with_options(ModelConfig(), SMALL), mice).eval()
        for mouse_id in MICE:
            readout = twin.readout(mouse_id)
            readout.features.data.normal_()
            readout.bias.data.normal_()
            assert readout.position_network is not None
            readout.position_network[0].weight.data.normal_(0, 2)
            readout.position_network[2].weight.data.normal_(0, 1)
        members.append(Checkpoint(twin=twin))
    return Ensemble(members, {"A": Combination((0.7, 0.5), 0.1), "B": Combination((0.2, -0.4))}).eval()


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return make_ensemble()


@pytest.fixture(scope="module")
def folder(ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(ensemble, folder, options=BundleOptions(gradients=False, single_file=True))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, provider="cpu", threads=1, max_batch=4)


def draw(batch: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, *shape)).astype(np.float32) for shape in ((1, 144, 256), (3,), (2,))]


def expected(ensemble: Ensemble, mouse_id: str, inputs: list[np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return ensemble(mouse_id, *map(torch.from_numpy, inputs)).numpy()


@pytest.mark.parametrize("n", [1, 3, 10])
def test_few_neurons_get_the_same_as_all(n: int, ensemble: Ensemble, engine: Engine) -> None:
    inputs = draw(6, seed=n)  # gazes differ, so each sample needs tokens of its own
    neurons = np.random.default_rng(n).permutation(MICE["A"])[:n]
    response = engine.predict("A", *inputs, neurons)
    np.testing.assert_allclose(response, expected(ensemble, "A", inputs)[:, neurons], rtol=1e-5, atol=1e-5)


def test_few_neurons_take_the_restricted_core_and_all_the_full_one(folder: Path) -> None:
    engine = Engine.load(folder, provider="cpu", threads=1)
    ran: list[int] = []  # tokens of each restricted run
    core = engine.cores[0]
    inner = core._open_restricted
    assert inner is not None

    def opened() -> Session:
        session = inner()
        run = session.run
        session.run = lambda tensors, stay=(): (ran.append(tensors[tensor_names.TOKENS].shape[1]), run(tensors, stay))[
            1
        ]
        return session

    core._open_restricted = opened
    inputs = draw(1, seed=1)
    engine.predict("A", *inputs, np.array([5]))
    assert ran[0] <= 4
    engine.predict("A", *inputs, np.array([5, 7, 9]))
    assert ran[1] <= 12
    few = len(ran)
    everywhere = np.arange(core.n_tokens)[None]
    stems = engine._forward.run_stems(engine.check("A", *inputs))
    core.feature_maps(CoreInputs(stems, core.session.inputs), [everywhere])
    assert len(ran) == few


def test_mice_on_one_stimulus_share_a_core_pass_with_few_neurons_each(ensemble: Ensemble, engine: Engine) -> None:
    inputs = draw(1, seed=7)
    asked = {"A": np.array([31, 2]), "B": np.array([0])}
    predictions = engine.predict_many([engine.check(mouse_id, *inputs, neurons) for mouse_id, neurons in asked.items()])
    for (mouse_id, neurons), prediction in zip(asked.items(), predictions, strict=True):
        want = expected(ensemble, mouse_id, inputs)[:, neurons]
        np.testing.assert_allclose(prediction.response, want, rtol=1e-5, atol=1e-5)


def test_tokens_are_distinct_and_hold_all_that_is_touched() -> None:
    touched = np.array([[3, -1, 3, 5], [0, 1, 2, 8]])
    mask = mask_of(touched, 2, 9)
    assert [list(np.flatnonzero(row)) for row in mask] == [[3, 5], [0, 1, 2, 8]]
    tokens = distinct_tokens(mask)
    assert tokens.shape == (2, 4)
    assert {3, 5} <= set(tokens[0])
    assert len(set(tokens[0])) == 4
    assert sorted(tokens[1]) == [0, 1, 2, 8]


def test_a_neuron_outside_the_map_still_uses_a_token() -> None:
    assert distinct_tokens(mask_of(np.full((2, 4), -1), 2, 9)).shape == (2, 1)


def test_one_gaze_for_all_samples_gives_one_mask_to_each() -> None:
    assert mask_of(np.array([[1, 2]]), 3, 4).sum(axis=1).tolist() == [2, 2, 2]
    assert WORTH_RESTRICTING < 1


def test_graphs_of_a_folder_share_their_weights(folder: Path) -> None:
    def stored(graph: str) -> set[tuple[str, ...]]:
        model = onnx.load(folder / graph, load_external_data=False)
        return {
            tuple(sorted((entry.key, entry.value) for entry in tensor.external_data))
            for tensor in model.graph.initializer
            if tensor.external_data
        }

    core, restricted = stored("members/0/core.onnx"), stored("members/0/token_core.onnx")
    assert core
    assert core <= restricted


def test_changed_shared_weights_are_refused(ensemble: Ensemble, folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "members/1/weights.bin"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"members/1/weights\.bin"):
        Engine.load(copy, provider="cpu")


def test_a_manifest_from_before_gradients_is_still_read(folder: Path, tmp_path: Path) -> None:
    """New fields are optional: without them, the engine uses the graphs that every bundle has."""
    import json
    import shutil

    copy = shutil.copytree(folder, tmp_path / "old")
    manifest = json.loads((copy / MANIFEST).read_text())
    for name in ("token_cores", "core_tapes", "core_gradients"):
        del manifest[name]
    for mouse in manifest["mice"].values():
        for name in ("touched_tokens", "stem_gradients", "readout_gradients", "ensemble_gradient", "twin"):
            del mouse[name]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    old, new = (Engine.load(path, provider="cpu", threads=1) for path in (copy, folder))
    inputs = draw(2, seed=11)
    np.testing.assert_allclose(old.predict("B", *inputs, [1]), new.predict("B", *inputs, [1]), rtol=1e-5, atol=1e-5)


def test_one_file_per_mouse_needs_onnxruntime_alone(ensemble: Ensemble, folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(folder)
    for mouse_id, mouse in manifest.mice.items():
        assert mouse.twin is not None
        alone = tmp_path / f"{mouse_id}.onnx"
        alone.write_bytes((folder / mouse.twin.path).read_bytes())  # no weights beside it
        session = ort.InferenceSession(alone, providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            inputs = draw(batch, seed=batch)
            names = ("image", "behavior", "pupil_center")
            (response,) = session.run(["response"], dict(zip(names, inputs, strict=True)))
            np.testing.assert_allclose(response, expected(ensemble, mouse_id, inputs), rtol=0, atol=1e-4)


def test_one_file_per_mouse_has_standard_operators_only(folder: Path) -> None:
    model = onnx.load(folder / "mice/A/twin.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    onnx.checker.check_model(model)


def test_the_example_of_onnxruntime_alone_runs_and_is_short(folder: Path) -> None:
    example = ROOT / "docs" / "onnxruntime_alone.py"
    code = [line for line in example.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 15
    done = subprocess.run(
        [sys.executable, example, folder / "mice/B/twin.onnx"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("25 neurons, mean response ")
    assert "mouse B of model small\ntakes standardised inputs: image gray [standardized]\n" in done.stdout


def test_a_single_file_says_what_it_is_and_whether_it_takes_standardised_inputs(folder: Path, tmp_path: Path) -> None:
    about = ort.InferenceSession(folder / "mice/A/twin.onnx").get_modelmeta().custom_metadata_map
    manifest = load_manifest(folder)
    assert (about["mouse"], about["model"], about["simulated"]) == ("A", "small", "false")
    assert (about["standardized_inputs"], about["image"]) == ("true", "gray [standardized]")
    assert (about["licence"], about["citation"]) == (manifest.licence, manifest.citation)
    ids = [int(word) for word in about["neuron_ids"].split()]
    assert ids == load_neurons(folder, manifest.mice["A"]).ids.tolist()

    mouse = dataclasses.replace(tiny_mouse("Z"), simulated=True)
    about = metadata(mouse, model="m", notice="Not real.", licence="MIT", citation="Nobody")
    assert (about["standardized_inputs"], about["notice"]) == ("false", "Not real.")
    assert about["pupil_center"] == "pupil_center_x [eye-camera px], pupil_center_y [eye-camera px]"
    model = onnx.load(folder / "mice/A/twin.onnx")
    onnx.helper.set_model_props(model, about)
    onnx.save(model, tmp_path / "twin.onnx")
    example = ROOT / "docs" / "onnxruntime_alone.py"
    done = subprocess.run([sys.executable, example, tmp_path / "twin.onnx"], capture_output=True, text=True, check=True)
    assert "mouse Z (simulated) of model m\ntakes inputs as recorded: image gray [grey level]\n" in done.stdout


def test_bench_prints_its_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from server.__main__ import main

    assert main(["bench", str(folder), "--rounds", "1", "--threads", "1", "--max-batch", "2"]) == 0
    out = capsys.readouterr().out
    for expected_text in ("ceiling", "GFLOP/s", "batch 1, all neurons", "batch 2", "1 neuron", "2 mice, one stimulus"):
        assert expected_text in out
    assert "gradient" not in out  # the bundle has none


def test_bench_ends_quietly_when_its_reader_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.__main__ import main

    with closed_pipe(monkeypatch):
        assert main(["bench", str(folder), "--rounds", "1", "--threads", "1", "--max-batch", "1"]) == 1


def test_bench_names_a_missing_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    from server.__main__ import main

    assert main(["bench", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_bench_help_runs_without_a_bundle() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ceiling" in done.stdout


def test_the_published_configuration_is_34_gflop() -> None:
    config = ModelConfig().model_dump(mode="json")
    assert bench.core_gflop(config, 29 * 57) == pytest.approx(34.3, abs=0.1)


def test_the_handmade_product_is_right() -> None:
    session = ort.InferenceSession(MATMUL, providers=["CPUExecutionProvider"])
    a, b = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"a": a, "b": b[:, :3]})[0], a @ b[:, :3], rtol=1e-5, atol=1e-6)


def of_all_mice(engine: Engine, inputs: tuple[np.ndarray, ...]) -> list[Stimulus]:
    """One stimulus for every mouse, image by image, as the batcher runs it."""
    stimuli = [engine.check(mouse_id, *inputs) for mouse_id in MICE]
    return [stimulus[i : i + 1] for i in range(len(inputs[0])) for stimulus in stimuli]


def test_one_stimulus_for_many_mice_gives_each_its_own_responses(ensemble: Ensemble, engine: Engine) -> None:
    inputs = draw(5, seed=31)  # more than a batch
    responses = [prediction.response for prediction in engine.predict_many(of_all_mice(engine, inputs))]
    for k, mouse_id in enumerate(MICE):
        response = np.concatenate(responses[k :: len(MICE)])
        np.testing.assert_allclose(response, expected(ensemble, mouse_id, inputs), rtol=1e-5, atol=1e-5)


def test_one_stimulus_for_many_mice_runs_each_core_once_an_image(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.inference.core.WORTH_RESTRICTING", -1)  # the full core, always
    ran = []
    core = engine.cores[0].session
    run = core.run

    def counted(tensors: dict[str, np.ndarray], stay: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        ran.append(len(tensors[tensor_names.CORE_IMAGE]))
        return run(tensors, stay)

    monkeypatch.setattr(core, "run", counted)
    engine.predict_many(of_all_mice(engine, draw(4, seed=32)))
    assert sum(ran) == 4


def test_requests_of_one_mouse_are_read_out_together(ensemble: Ensemble, engine: Engine) -> None:
    asked = [("A", 2, None), ("B", 1, None), ("A", 1, np.array([3, 1])), ("A", 1, None), ("A", 2, np.array([3, 1]))]
    inputs = [draw(n, seed=40 + i) for i, (_, n, _) in enumerate(asked)]
    stimuli = [engine.check(mouse_id, *x, neurons) for (mouse_id, _, neurons), x in zip(asked, inputs, strict=True)]
    assert [places for _, places in merged(stimuli)] == [[0, 3], [1], [2, 4]]
    for (mouse_id, _, neurons), x, got in zip(asked, inputs, engine.predict_many(stimuli), strict=True):
        want = expected(ensemble, mouse_id, x)
        want = want if neurons is None else want[:, neurons]
        np.testing.assert_allclose(got.response, want, rtol=1e-5, atol=1e-5)
