"""Exporting a trained twin: the bundle says what it is, answers as torch does, and is refused where it does not."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.checkout import ROOT
from support.tiny_twins import (
    tiny_checkpoint,
    tiny_config,
    tiny_inputs,
    tiny_mouse,
    tiny_recordings,
    tiny_run,
    tiny_twin,
)

from server.bundle.manifest import load_manifest
from server.bundle.neurons import load_neurons
from server.bundle.snapshot import Snapshot
from server.inference.engine import Engine
from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.config import TrainingConfig
from training.data.layout import PUPIL_CENTER_NAMES, SENSORIUM_BEHAVIOR
from training.data.mouse import Mouse, by_mouse
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.evaluation.evaluate import evaluate
from training.export import bundle as bundle_module
from training.export import export_bundle
from training.export import parity as parity_module
from training.export import progress as progress_module
from training.export.bundle import BundleOptions
from training.export.graphs.forward import core, stem
from training.export.parity import float64_response, random_inputs
from training.export.tracing.templates import Templates
from training.trainer.run import train_ensemble

ONE_BLOCK = tiny_config({"n_blocks": 1})
WITHOUT_GRADIENTS = BundleOptions(gradients=False)


class Trained:
    """Two members, trained on two simulated mice, exported by the command."""

    def __init__(self, folder: Path) -> None:
        self.recordings = tiny_recordings(folder / "recordings")
        training = TrainingConfig(batch_size=8, learning_rate=0.01, max_epochs=2, readout_start="random")
        self.run = folder / "run"
        self.checkpoints = train_ensemble(
            tiny_run(by_mouse(self.recordings), ONE_BLOCK, training=training, members=2, seed=4), self.run
        )
        self.bundle = folder / "bundle"
        sources = [str(recording.path) for recording in self.recordings]
        arguments = ["export", str(self.run), "--output", str(self.bundle), "--recordings", *sources]
        assert main([*arguments, "--name", "tiny", "--licence", "CC0-1.0", "--citation", "Nobody, 2026"]) == 0
        self.ensemble = load_ensemble([self.run])
        self.manifest = load_manifest(self.bundle)
        self.engine = Engine.load(self.bundle, provider="cpu", threads=1, max_batch=3)

    def recording(self, mouse_id: str) -> Recording:
        return next(recording for recording in self.recordings if recording.mouse_id == mouse_id)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def inputs_of(path: Path) -> set[str]:
    return {value.name for value in onnx.load(path).graph.input}


@pytest.mark.slow
def test_a_trained_twin_answers_in_the_recordings_own_units(trained: Trained) -> None:
    for recording in trained.recordings:
        batch = recording.batch(recording.tier("test").indices[:7])
        inputs = batch.image, batch.behavior, batch.pupil_center
        with torch.inference_mode():
            expected = trained.ensemble(recording.mouse_id, *map(torch.from_numpy, inputs)).numpy()
        np.testing.assert_allclose(trained.engine.predict(recording.mouse_id, *inputs), expected, rtol=0, atol=1e-4)
        assert np.ptp(expected, axis=0).min() > 1e-3  # the image matters


@pytest.mark.slow
def test_the_manifest_says_how_the_twin_was_made(trained: Trained) -> None:
    manifest = trained.manifest
    assert (manifest.name, manifest.licence, manifest.citation) == ("tiny", "CC0-1.0", "Nobody, 2026")
    assert manifest.members == 2
    assert manifest.simulated
    assert manifest.notice is not None
    assert manifest.notice.startswith("Simulated")
    assert manifest.configs == [ONE_BLOCK.model_dump(mode="json")] * 2
    made = manifest.provenance
    assert (made.source, made.seeds) == ("trained", [4, 5])
    assert made.data_hashes == {recording.mouse_id: recording.data_hash for recording in trained.recordings}
    assert made.checkpoints == [load_checkpoint(path).weights_hash for path in trained.checkpoints]
    assert {"torch", "numpy", "onnx"} <= made.versions.keys()


@pytest.mark.slow
def test_the_manifest_says_the_units_and_statistics_of_every_input(trained: Trained) -> None:
    for mouse_id, mouse in trained.manifest.mice.items():
        recording = trained.recording(mouse_id)
        assert mouse.image_shape == recording.image_shape == (1, 18, 32)
        assert mouse.uses == ["image", "behavior", "pupil_center"]
        assert not mouse.standardized_inputs
        assert (mouse.data_key, mouse.n_neurons) == (recording.data_key, recording.n_neurons)
        percentiles = recording.behavior_percentiles()
        statistics = recording.statistics
        for channels, names, values in (
            (mouse.image_channels, ("gray",), statistics.images),
            (mouse.behavior, [name for name, _ in SENSORIUM_BEHAVIOR], statistics.behavior),
            (mouse.pupil_center, PUPIL_CENTER_NAMES, statistics.pupil_center),
        ):
            assert [channel.name for channel in channels] == list(names)
            for i, channel in enumerate(channels):
                assert channel.unit != "standardized"
                for statistic in ("mean", "std", "min", "max", "median"):
                    assert getattr(channel, statistic) == pytest.approx(float(getattr(values, statistic)[i]))
                assert channel.percentiles == percentiles.get(channel.name, {})


@pytest.mark.slow
def test_the_bundle_keeps_each_neurons_id_place_and_scores(trained: Trained) -> None:
    scores = evaluate(trained.ensemble, trained.recordings)
    for mouse_id, mouse in trained.manifest.mice.items():
        recording = trained.recording(mouse_id)
        table = load_neurons(trained.bundle, mouse)
        np.testing.assert_array_equal(table.ids, recording.neuron_ids)
        np.testing.assert_array_equal(table.coordinates, recording.neuron_coordinates)
        np.testing.assert_array_equal(table.response_std, recording.response_std)
        assert table.scores.keys() == scores[mouse_id].neurons.keys()
        assert mouse.scores == pytest.approx(scores[mouse_id].summary, rel=1e-5)
        for name, score in table.scores.items():
            np.testing.assert_allclose(score, scores[mouse_id].neurons[name], rtol=1e-5)
            assert len(np.unique(score)) > 1


@pytest.mark.slow
def test_every_file_of_the_bundle_is_in_the_manifest(trained: Trained) -> None:
    Snapshot(trained.bundle, trained.manifest)  # verifies them
    named = {file.path for file in trained.manifest.files()} | {"manifest.json"}
    found = {str(path.relative_to(trained.bundle)) for path in trained.bundle.rglob("*") if path.is_file()}
    assert found == named
    for mouse in trained.manifest.mice.values():
        assert len(mouse.stems) == 1  # the members crop alike
        assert mouse.parity.max_abs_error <= mouse.parity.bound
        assert mouse.gradient_parity is not None
        assert 0 < mouse.gradient_parity.max_relative_error <= mouse.gradient_parity.bound


@pytest.fixture(scope="module")
def small() -> Ensemble:
    """One mouse and few graphs: quick to export."""
    config = tiny_config({"kind": "cnn", "n_layers": 1}, behavior="none")
    return Ensemble([tiny_checkpoint(config, [tiny_mouse("A")])])


@pytest.fixture(scope="module")
def exported(small: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small twin, to be copied."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(small, folder, options=WITHOUT_GRADIENTS)
    return folder


@pytest.mark.slow
def test_parity_beyond_the_bound_writes_nothing_and_names_the_neuron(
    small: Ensemble, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    worst = load_manifest(exported).mice["A"].parity.worst_neuron
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(bundle_module, "PARITY_BOUND", -1.0)  # less than any difference
    for name in ("bundle", "other"):
        with pytest.raises(ConfigError, match=r"mouse 'A' differ from torch; nothing was written") as caught:
            export_bundle(small, tmp_path / name, options=WITHOUT_GRADIENTS, force=True)
        assert f"at neuron {small.mice['A'].neuron_ids[worst]}; expected at most" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_gradients_beyond_the_bound_write_nothing(
    small: Ensemble, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_module, "PARITY_BOUND", 1e-30)  # less than any rounding
    with pytest.raises(ConfigError, match=r"gradients of mouse 'A' differ from autograd's; nothing was written"):
        export_bundle(small, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
    manifest = load_manifest(exported)  # without gradients there is nothing to compare
    assert (manifest.has_gradients, manifest.mice["A"].gradient_parity) == (False, None)


@pytest.mark.slow
def test_a_bundle_is_replaced_whole(small: Ensemble, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    (folder / "left_over.onnx").write_bytes(b"...")
    manifest = export_bundle(
        small, folder, name="again", options=BundleOptions(gradients=False, notice="Not for sale."), force=True
    )
    assert not (folder / "left_over.onnx").exists()
    assert load_manifest(folder) == manifest
    assert (manifest.name, manifest.notice, manifest.simulated) == ("again", "Not for sale.", False)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert folder.stat().st_mode & 0o555 == 0o555  # whoever serves it can read it


@pytest.mark.slow
def test_a_twin_without_statistics_says_that_inputs_are_standardized(tmp_path: Path) -> None:
    mouse = Mouse.without_recording("B", (2, 18, 32), 4)
    config = tiny_config({"kind": "cnn"}, behavior="none", shifter=False, readout={"position": "free"})
    manifest = export_bundle(Ensemble([tiny_checkpoint(config, [mouse])]), tmp_path / "bundle")
    record = manifest.mice["B"]
    assert record.standardized_inputs
    assert record.uses == ["image"]
    assert manifest.attention == []
    channels = [*record.image_channels, *record.behavior, *record.pupil_center]
    assert [channel.name for channel in record.image_channels] == ["channel_0", "channel_1"]
    assert all(channel.unit == "standardized" and channel.mean is None for channel in channels)
    assert np.isnan(load_neurons(tmp_path / "bundle", record).response_std).all()
    engine = Engine.load(tmp_path / "bundle", provider="cpu", threads=1)
    image, behavior, pupil_center = (tensor.numpy() for tensor in tiny_inputs(mouse, 2))
    response = engine.predict("B", image, behavior, pupil_center)
    np.testing.assert_array_equal(engine.predict("B", image, behavior + 1, pupil_center - 1), response)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"core_image", "core_behavior"}),
        ({"b_mlp": {"mice": "per_mouse"}}, {"core_image", "core_behavior", "mouse_index"}),
        ({"behavior": "channels"}, {"core_image"}),
        ({"core": {"kind": "cnn"}}, {"core_image"}),
    ],
)
def test_a_core_lists_only_the_inputs_that_it_uses(tmp_path: Path, options: dict[str, Any], expected: set[str]) -> None:
    Templates().write(core(tiny_twin(tiny_config(**options))), tmp_path / "core.onnx")
    assert inputs_of(tmp_path / "core.onnx") == expected


@pytest.mark.slow
def test_a_stem_takes_the_recordings_inputs_at_any_batch(tmp_path: Path) -> None:
    Templates().write(stem(tiny_twin(tiny_config()), "A"), tmp_path / "stem.onnx")
    graph = onnx.load(tmp_path / "stem.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert shapes == {"image": ["batch", 1, 18, 32], "behavior": ["batch", 3], "pupil_center": ["batch", 2]}


def test_a_folder_that_is_no_bundle_is_refused_before_any_work(tmp_path: Path) -> None:
    ensemble = Ensemble([tiny_checkpoint(tiny_config())])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("...")
    (tmp_path / "file").write_text("...")
    for name in ("mine", "file"):
        with pytest.raises(CheckpointError, match=f"{name} exists and is not a bundle"):
            export_bundle(ensemble, tmp_path / name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_command_refuses_members_with_other_mice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        str(save_checkpoint(tmp_path / mouse_id, tiny_checkpoint(tiny_config(), [tiny_mouse(mouse_id)])))
        for mouse_id in ("A", "B")
    ]
    assert main(["export", *paths, "--output", str(tmp_path / "bundle")]) == 1
    assert "member 1 has other mice than member 0; got ['B']; expected ['A']" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_the_float64_judge_of_parity_computes_what_torch_does() -> None:
    ensemble = Ensemble([tiny_checkpoint(tiny_config()), tiny_checkpoint(tiny_config())])
    mouse_id, mouse = next(iter(ensemble.mice.items()))
    inputs = [torch.from_numpy(array) for array in random_inputs(mouse, 3, np.random.default_rng(1))]
    with torch.inference_mode():
        judged = float64_response(ensemble, mouse_id, inputs)
        assert judged.dtype == torch.float64
        np.testing.assert_allclose(judged, ensemble(mouse_id, *inputs), rtol=0, atol=1e-5)
    assert all(p.dtype == torch.float32 for p in ensemble.parameters())  # the members stay what they were


def test_a_bundle_is_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(tiny_config(), [tiny_mouse("A")]))
    bundle = shutil.copytree(ROOT / "exported_models" / "demo", tmp_path / "bundle")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["export", str(checkpoint), "--output", str(bundle)]) == 1
    error = capsys.readouterr().err
    made = load_manifest(bundle).provenance.created
    assert f"{bundle} already holds a bundle; got 'demo', 3 members, exported {made}; expected a new folder" in error
    assert "Add --force to replace it, or give another --output." in error
    (bundle / "manifest.json").write_text("{")
    assert main(["export", str(checkpoint), "--output", str(bundle)]) == 1
    assert "got a damaged bundle: " in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "manifest.json"} == {
        path: time for path, time in before.items() if path.name != "manifest.json"
    }


def test_progress_says_where_it_is_and_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["members/0/core.onnx", "members/1/core.onnx", "mice/A/member0.readout.onnx", "mice/A/ensemble.onnx"]
    paths += ["mice/v1.2/member0.readout.onnx"]
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        progress = progress_module.Progress(paths, stream)
        for path in paths:
            progress.before(path)
            now[0] += progress.costs[path]  # as fast as expected
            progress.after(path)
        progress.finish()
        printed = stream.getvalue()
        assert "5 graphs exported in 4.1 s" in printed
        if terminal:
            lines = printed.replace("\r\x1b[K", "\n").split("\n")
            assert lines[1] == "[1/5] member 0: core, 0 s"
            assert lines[3] == "[3/5] mouse A, member 0: readout, 2 s, about 2 s left"
            assert lines[5] == "[5/5] mouse v1.2, member 0: readout, 4 s, about 0 s left"
        else:
            assert printed.split("\n")[:3] == [
                "[2/5] cores: 2.0 s, about 2 s left",
                "[4/5] mouse A: 2.0 s, about 0 s left",
                "[5/5] mouse v1.2: 0.0 s",
            ]
