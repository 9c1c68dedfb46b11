"""Importing other people's weights: nothing is executed, nothing is guessed, and every refusal names its reason."""

from __future__ import annotations

import hashlib
import operator
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.reference_run import reference_state, write_reference_run
from support.tiny_twins import tiny_config, tiny_inputs, tiny_twin

from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.importer import import_weights
from training.checkpoints.safe_pickle import load_pickle
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import CheckpointError
from training.models import Twin


@pytest.fixture
def twin() -> Twin:
    """A V1T of two mice without recordings, in the reference's own grid and size."""
    mice = [Mouse.without_recording(name, (1, 36, 64), n) for name, n in (("A", 5), ("B", 3))]
    # Of a mouse without a recording nobody knows the coordinates; the weights hold them.
    config = tiny_config({"patch_stride": 4, "token_grid": "nearest_square"}, cropper={}, readout={})
    twin = tiny_twin(config, mice)
    torch.manual_seed(1)
    for mouse_id, mouse in twin.mice.items():
        twin.readout(mouse_id).source_grid.copy_(torch.rand(mouse.n_neurons, 2) * 2 - 1)
    return twin


class Executes:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_run_gives_its_own_responses(twin: Twin, tmp_path: Path) -> None:
    imported = import_weights(write_reference_run(tmp_path / "run", twin)).twin
    assert imported.config == twin.config.model_copy(update={"core": imported.config.core})
    for mouse_id, mouse in twin.mice.items():
        inputs = tiny_inputs(mouse, 3)
        with torch.inference_mode():
            assert torch.equal(imported(mouse_id, *inputs), twin(mouse_id, *inputs))
    assert all(mouse.standardized_inputs for mouse in imported.mice.values())


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {marker}",), "system"),
        (eval, ("open('{marker}', 'w')",), "eval"),
        (exec, ("open('{marker}', 'w')",), "exec"),
        (getattr, ("", "join"), "getattr"),
        (os.makedirs, ("{marker}",), "os.makedirs"),
        (operator.methodcaller, ("touch",), "operator.methodcaller"),
    ],
)
@pytest.mark.parametrize("where", ["optimizer", "model", "nested"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(
    twin: Twin, tmp_path: Path, function: Any, arguments: tuple[str, ...], name: str, where: str
) -> None:
    marker = tmp_path / "marker"
    evil = Executes(function, *(argument.format(marker=marker) for argument in arguments))
    more: dict[str, Any] = {
        "optimizer": {"optimizer": evil},
        "model": {"model": {**reference_state(twin), "extra": evil}},
        "nested": {"optimizer": {"state": {0: {"step": [1, (2, {"deep": evil})]}}}},
    }[where]
    run = write_reference_run(tmp_path / "run", twin, **more)
    with pytest.raises(CheckpointError, match="is refused") as caught:
        import_weights(run)
    assert name in str(caught.value)
    assert "model_state.pt" in str(caught.value)
    assert not marker.exists()


def test_the_same_pickle_would_have_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"optimizer": Executes(os.makedirs, str(marker))}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()  # so that the tests above prove something


def test_a_malicious_sensorium_file_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"readout.27204-5-13._features": Executes(os.makedirs, str(marker))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="makedirs"):
        import_weights(tmp_path / "evil.pth")
    assert not marker.exists()


def test_a_trainers_whole_checkpoint_loads(twin: Twin, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(twin.parameters())
    scaler = torch.amp.GradScaler("cpu")
    loss = twin("A", *tiny_inputs(twin.mice["A"], 2)).sum()
    scaler.scale(loss).backward()  # in use, it holds a default dictionary, a function and an enumeration
    scaler.step(optimizer)
    scaler.update()
    run = write_reference_run(
        tmp_path / "run",
        twin,
        optimizer=optimizer.state_dict(),
        scheduler={"best": np.float64(0.4), "count": np.int64(3), "device": torch.device("cpu")},
        scaler=scaler,
    )
    content = load_pickle(run / "ckpt" / "model_state.pt")
    assert not isinstance(content["scaler"], torch.amp.GradScaler)  # a stand-in: none of its code was called
    assert list(import_weights(run).mice) == ["A", "B"]


@pytest.mark.parametrize("content", [b"", b"not a torch file", b"PK\x03\x04broken", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(twin: Twin, tmp_path: Path, content: bytes) -> None:
    run = write_reference_run(tmp_path / "run", twin)
    (run / "ckpt" / "model_state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_state\.pt"):
        import_weights(run)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"core": "resnet"}, ("core", "resnet")),
        ({"readout": "factorized"}, ("readout", "factorized")),
        ({"behavior_mode": 5}, ("behavior_mode", "5")),
        ({"shift_mode": -1}, ("shift_mode", "-1")),
        ({"patch_mode": 7}, ("patch_mode", "7")),
        ({"use_lsa": "yes"}, ("use_lsa", "yes")),
        ({"resize_image": 2}, ("resize_image", "2")),
        ({"bias_mode": 9}, ("bias_mode", "9")),
        ({"grid_predictor_dim": 4}, ("grid_predictor_dim", "4")),
        ({"core": None}, ("core", "missing")),
        ({"emb_dim": None}, ("emb_dim", "missing")),
        ({"input_shape": [36, 64]}, ("input_shape", "[36, 64]")),
        ({"output_shapes": {}}, ("output_shapes",)),
        ({"output_shapes": {"A": 0, "B": [3]}}, ("output_shapes", "A")),
    ],
)
def test_an_option_that_is_not_understood_is_refused_by_name(
    twin: Twin, tmp_path: Path, args: dict[str, Any], words: tuple[str, ...]
) -> None:
    run = write_reference_run(tmp_path / "run", twin, args=args)
    with pytest.raises(CheckpointError) as caught:
        import_weights(run)
    for word in (*words, "args.yaml"):
        assert word in str(caught.value)


def test_an_unknown_key_is_refused_by_name(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, state={"core.flow.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"unknown key core\.flow\.weight"):
        import_weights(run)


def test_a_missing_key_is_refused_by_name(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, state={"core.transformer.blocks.1.mha.to_qkv.weight": None})
    with pytest.raises(CheckpointError, match=r"lacks weights.*blocks\.1\.attention\.qkv\.weight"):
        import_weights(run)


def test_weights_that_the_options_do_not_ask_for_are_refused_by_name(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, args={"shift_mode": 0})
    with pytest.raises(CheckpointError, match=r"do not belong to its options; got shifters\.A"):
        import_weights(run)


def test_weights_of_another_shape_are_refused_by_name(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, args={"mlp_dim": 9})
    with pytest.raises(CheckpointError, match=r"wrong shape of .*mlp\.up\.weight; got \(8, 6\); expected \(9, 6\)"):
        import_weights(run)
    run = write_reference_run(tmp_path / "run", twin, state={"readouts.B.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"readouts\.B\.bias; got \(4,\)"):
        import_weights(run)


def test_weights_of_an_unknown_mouse_are_refused(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, state={"readouts.Z.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"readouts\.Z\.bias belongs to an unknown mouse"):
        import_weights(run)


def test_a_key_that_is_no_tensor_is_refused(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, state={"readouts.B.bias": [0.0, 1.0, 2.0]})
    with pytest.raises(CheckpointError, match=r"readouts\.B\.bias is not a tensor; got list"):
        import_weights(run)


@pytest.mark.parametrize(
    "option",
    [
        "core: !!python/object/apply:os.makedirs ['{marker}']",
        "core: !!python/name:os.system",
        "core: !!python/object/new:os.system ['touch {marker}']",
    ],
)
def test_yaml_with_python_objects_is_refused(twin: Twin, tmp_path: Path, option: str) -> None:
    marker = tmp_path / "marker"
    run = write_reference_run(tmp_path / "run", twin)
    with (run / "args.yaml").open("a", encoding="utf-8") as stream:
        stream.write(option.format(marker=marker) + "\n")
    with pytest.raises(CheckpointError, match=r"args\.yaml is refused.*python/"):
        import_weights(run)
    assert not marker.exists()


def test_yaml_tuples_are_read_as_lists(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin, args={"input_shape": None})
    with (run / "args.yaml").open("a", encoding="utf-8") as stream:
        stream.write("input_shape: !!python/tuple [1, 36, 64]\n")
    assert import_weights(run).mice["A"].image_shape == (1, 36, 64)


def test_mice_are_named_as_in_the_paper(twin: Twin, tmp_path: Path) -> None:
    def renamed(names: dict[str, str]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for key, tensor in reference_state(twin).items():
            parts = key.split(".")
            if parts[0] in ("core_shifter", "readouts"):
                state[key] = None
                key = ".".join([parts[0], names[parts[1]], *parts[2:]])
            state[key] = tensor
        return state

    for names, expected in (
        ({"A": "2", "B": "0"}, {"A": "21067-10-18", "S0": "26872-17-20"}),  # Dataset S: numbers
        ({"A": "static25311-10-26-Color-x", "B": "25340-3-19"}, {"F": "25311-10-26", "G": "25340-3-19"}),
        ({"A": "mine", "B": "E"}, {"mine": None, "E": None}),
    ):
        shapes = {names["A"]: [5], names["B"]: [3]}
        run = write_reference_run(tmp_path / "run", twin, args={"output_shapes": shapes}, state=renamed(names))
        mice = import_weights(run).mice
        assert {mouse_id: mouse.data_key for mouse_id, mouse in mice.items()} == expected
        assert [mouse.n_neurons for mouse in mice.values()] == [5, 3]


def test_a_recording_gives_statistics_and_neuron_ids(recordings: dict[str, Recording], tmp_path: Path) -> None:
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    config = tiny_config({"patch_stride": 4, "token_grid": "nearest_square"}, cropper={}, readout={})
    twin = tiny_twin(config, mice)
    run = write_reference_run(tmp_path / "run", twin)
    imported = import_weights(run, recordings=mice)
    for recording in recordings.values():
        mouse = imported.mice[recording.mouse_id]
        assert not mouse.standardized_inputs
        assert mouse.data_hash == recording.data_hash
        np.testing.assert_array_equal(mouse.neuron_ids, recording.neuron_ids)
        np.testing.assert_array_equal(mouse.response_std, recording.response_std)
        assert mouse.images is not None
        np.testing.assert_array_equal(mouse.images.mean, recording.statistics.images.mean)
        inputs = tiny_inputs(mouse, 3)
        with torch.inference_mode():
            assert torch.equal(imported.twin(mouse.mouse_id, *inputs), twin(mouse.mouse_id, *inputs))
    with pytest.raises(CheckpointError, match=r"no recording of mouse 'SIM2'"):
        import_weights(run, recordings=mice[:1])
    with pytest.raises(
        CheckpointError, match=r"trained on another recording of mouse 'SIM1'.*5 neurons in the weights"
    ):
        import_weights(run, recordings=[Mouse.without_recording("SIM1", (1, 18, 32), 7), mice[1]])


def test_the_command_imports_with_recordings(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    twin = tiny_twin(tiny_config({"token_grid": "nearest_square"}, cropper={}, readout={}), mice)
    run = write_reference_run(tmp_path / "run", twin)
    output = tmp_path / "checkpoint"
    arguments = ["import", str(run), "--output", str(output), "--recordings"]
    assert main([*arguments, *(str(recording.path) for recording in recordings.values())]) == 0
    assert "SIM1: 5 neurons" in capsys.readouterr().out
    assert not load_checkpoint(output).mice["SIM1"].standardized_inputs
    assert load_checkpoint(output).provenance["source"] == "imported run"


def test_the_command_refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("nowhere", str(tmp_path)):
        assert main(["import", source, "--output", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert source in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_repository(hub: Path, name: str, files: Path) -> None:
    """The hub's cache layout: contents by their hash in blobs/, links to them in snapshots/<commit>/."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    for path in files.rglob("*"):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            link = repository / "snapshots" / commit / path.relative_to(files)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def test_a_repository_of_the_hub_is_read_from_its_cache(twin: Twin, tmp_path: Path, hub: Path) -> None:
    write_reference_run(tmp_path / "files", twin)
    cache_repository(hub, "someone/V1T", tmp_path / "files")
    checkpoint = import_weights("hf://someone/V1T")
    assert checkpoint.provenance["source"] == "hf://someone/V1T"
    inputs = tiny_inputs(twin.mice["A"], 2)
    with torch.inference_mode():
        assert torch.equal(checkpoint.twin("A", *inputs), twin("A", *inputs))


def test_a_repository_of_several_runs_asks_for_one(twin: Twin, tmp_path: Path, hub: Path) -> None:
    write_reference_run(tmp_path / "files" / "first", twin)
    write_reference_run(tmp_path / "files" / "second", twin, args={"lr": 0.1})
    cache_repository(hub, "someone/runs", tmp_path / "files")
    with pytest.raises(CheckpointError, match=r"has 2 runs.*first.*second.*hf://OWNER/NAME/FOLDER"):
        import_weights("hf://someone/runs")
    assert list(import_weights("hf://someone/runs/second").mice) == ["A", "B"]
    with pytest.raises(CheckpointError, match="has 0 runs"):
        import_weights("hf://someone/runs/third")


@pytest.mark.usefixtures("hub")
def test_a_repository_that_cannot_be_fetched_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hf://someone/nothing cannot be fetched"):
        import_weights("hf://someone/nothing")


@pytest.mark.parametrize("url", ["hf://V1T", "hf://", "hf://a/b/../../etc", "hf://a b/c"])
def test_a_url_that_names_no_repository_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match="not a repository on the hub"):
        import_weights(url)


def test_the_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        import_weights("hf://someone/V1T")


def test_options_that_training_needs_alone_change_nothing(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin)
    options = yaml.safe_load((run / "args.yaml").read_text())
    options |= {"batch_size": 3, "seed": 7, "output_dir": "runs/x", "device": "cuda", "wandb": None}
    (run / "args.yaml").write_text(yaml.safe_dump(options))
    inputs = tiny_inputs(twin.mice["A"], 2)
    with torch.inference_mode():
        assert torch.equal(import_weights(run).twin("A", *inputs), twin("A", *inputs))
