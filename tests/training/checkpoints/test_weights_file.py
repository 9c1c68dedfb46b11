"""Weights as people have them: wrapped, averaged, in half precision, in any part of a run's folder, or not there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference_run import reference_state, write_reference_run
from support.tiny_twins import tiny_config, tiny_inputs, tiny_twin
from torch import Tensor, nn

from training import files
from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.ensemble import load_ensemble
from training.checkpoints.importer import import_members, import_weights
from training.data.mouse import Mouse
from training.errors import CheckpointError
from training.models import Twin

State = dict[str, Tensor]


def make_twin(seed: int = 0) -> Twin:
    mice = [Mouse.without_recording(name, (1, 36, 64), n) for name, n in (("A", 5), ("B", 3))]
    config = tiny_config({"patch_stride": 4, "token_grid": "nearest_square"}, cropper={}, readout={})
    twin = tiny_twin(config, mice, seed=seed)
    for mouse_id, mouse in twin.mice.items():
        twin.readout(mouse_id).source_grid.copy_(torch.rand(mouse.n_neurons, 2) * 2 - 1)
    return twin


@pytest.fixture
def twin() -> Twin:
    return make_twin()


def write_run(folder: Path, twin: Twin, change: Callable[[State], Any] = lambda state: {"model": state}) -> Path:
    """A run whose `model_state.pt` holds what `change` makes of the state dict."""
    run = write_reference_run(folder, twin)
    state = {**reference_state(twin), "image_cropper.grid": twin.cropper.grid}
    torch.save(change(state), run / "ckpt" / "model_state.pt")
    return run


def answers(twin: Twin) -> list[Tensor]:
    with torch.inference_mode():
        return [twin(mouse_id, *tiny_inputs(mouse, 3)) for mouse_id, mouse in twin.mice.items()]


def assert_same(ours: Twin, theirs: Twin, atol: float = 0.0) -> None:
    for one, other in zip(answers(ours), answers(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def prefixed(*prefixes: str) -> Callable[[State], Any]:
    return lambda state: {"model": {"".join(prefixes) + key: tensor for key, tensor in state.items()}}


class _Holder(nn.Module):
    """A module with exactly these tensors in its state dict."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for key, tensor in state.items():
            place: nn.Module = self
            *parents, name = key.split(".")
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            place.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


def averaged(state: State) -> Any:
    return {"model": torch.optim.swa_utils.AveragedModel(_Holder(state)).state_dict()}


def compiled_core(state: State) -> Any:
    return {"model": {key.replace("core.", "core._orig_mod.", 1): tensor for key, tensor in state.items()}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (prefixed("module."), ["module. (DataParallel"]),
        (prefixed("_orig_mod."), ["_orig_mod. (torch.compile)"]),
        (prefixed("module.", "_orig_mod."), ["module.", "_orig_mod."]),
        (prefixed("_orig_mod.", "module."), ["module.", "_orig_mod."]),
        (compiled_core, ["_orig_mod."]),
        (averaged, ["AveragedModel", "module."]),
        (lambda state: {"state_dict": state}, []),
        (lambda state: state, []),
    ],
)
def test_wrapped_weights_give_the_twins_responses_and_say_so(
    twin: Twin, tmp_path: Path, change: Callable[[State], Any], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", twin, change)
    assert main(["import", str(run), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in said)
    assert ("note:" in printed) == bool(said)
    assert_same(load_checkpoint(tmp_path / "out").twin, twin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_imports_and_says_so(twin: Twin, tmp_path: Path, dtype: torch.dtype) -> None:
    right = make_twin()
    right.load_state_dict({key: tensor.to(dtype).float() for key, tensor in twin.state_dict().items()})
    run = write_run(
        tmp_path / "run", twin, lambda state: {"model": {key: tensor.to(dtype) for key, tensor in state.items()}}
    )
    imported = import_weights(run)
    assert_same(imported.twin, right)
    assert any(
        "half precision" in note and str(dtype).removeprefix("torch.") in note for note in imported.provenance["notes"]
    )


def test_the_reference_imports_in_half_precision(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "ckpt" / "model_state.pt"
    path.parent.mkdir(parents=True)
    for file in ("args.yaml", "ckpt/model_state.pt"):
        (tmp_path / "run" / file).write_bytes((reference / "v1t-small" / file).read_bytes())
    right = import_weights(reference / "v1t-small").twin
    content = torch.load(path, weights_only=False)
    content["model"] = {
        key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in content["model"].items()
    }
    torch.save(content, path)
    imported = import_weights(tmp_path / "run").twin
    for one, other in zip(answers(imported), answers(right), strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.9999


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(twin: Twin, tmp_path: Path, value: float) -> None:
    bias = torch.tensor([0.0, value, 1.0])
    run = write_run(tmp_path / "run", twin, lambda state: {"model": {**state, "readouts.B.bias": bias}})
    with pytest.raises(CheckpointError, match=r"readouts\.B\.bias contains NaN or infinity; got 1 of 3 values"):
        import_weights(run)


def test_every_part_of_a_run_is_the_run(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", twin)
    for source in (run, run / "ckpt", run / "ckpt" / "model_state.pt"):
        assert_same(import_weights(source).twin, twin)
    monkeypatch.chdir(run / "ckpt")
    assert_same(import_weights(".").twin, twin)
    assert_same(import_weights("model_state.pt").twin, twin)
    (run / "ckpt" / "model_state.pt").rename(run / "ckpt" / "best.pth")
    assert_same(import_weights(run).twin, twin)
    shutil.copy(run / "ckpt" / "best.pth", run / "ckpt" / "last.pth")
    with pytest.raises(CheckpointError, match=r"2 files of weights.*best\.pth.*last\.pth.*Give the file to import"):
        import_weights(run)


def test_a_folder_of_seeds_is_an_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins = [make_twin(seed) for seed in range(3)]
    for i, one in enumerate(twins):
        write_run(tmp_path / "runs" / f"seed{i}", one)
    assert main(["import", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    assert "an ensemble of 3 members" in capsys.readouterr().out
    ensemble = load_ensemble([tmp_path / "out"])
    mouse = twins[0].mice["A"]
    inputs = tiny_inputs(mouse, 3)
    with torch.inference_mode():
        mean = torch.stack([one.pre_activation("A", *inputs) for one in twins]).mean(0)
        torch.testing.assert_close(ensemble("A", *inputs), nn.functional.elu(mean) + 1)
    with pytest.raises(CheckpointError, match="has 3 runs"):
        import_weights(tmp_path / "runs")
    args = tmp_path / "runs" / "seed1" / "args.yaml"
    args.write_text(args.read_text() + "center_crop: 0.9\n")
    state = torch.load(tmp_path / "runs/seed1/ckpt/model_state.pt")
    del state["model"]["image_cropper.grid"]
    torch.save(state, tmp_path / "runs/seed1/ckpt/model_state.pt")
    with pytest.raises(CheckpointError, match=r"different options.*Import each by itself"):
        import_members(tmp_path / "runs")


def test_what_holds_no_run_is_told_what_to_give(twin: Twin, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "b" / "run", twin)
    with pytest.raises(CheckpointError, match=rf"Give one of them: .*{run.name}"):
        import_members(tmp_path / "a")
    assert main(["import", str(run), "--output", str(tmp_path / "ours")]) == 0
    with pytest.raises(CheckpointError, match=r"needs no import\. Run `python -m training export"):
        import_members(tmp_path / "ours")
    (run / "args.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"not its options.*Give the folder of the run"):
        import_members(run / "ckpt" / "model_state.pt")
    with pytest.raises(CheckpointError, match=r"not a run of the reference code.*args\.yaml"):
        import_members(run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 84977953\n", "Git LFS pointer.*git lfs pull"),
        (b"/annex/objects/MD5-s1--x\n", "git-annex pointer.*git annex get"),
        (b"<!DOCTYPE html><title>Sign in</title>", "an HTML page"),
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ],
)
@pytest.mark.parametrize("place", ["ckpt/model_state.pt", "args.yaml", "sensorium.pth"])
def test_what_is_in_place_of_weights_is_named(
    twin: Twin, tmp_path: Path, content: bytes, said: str, place: str
) -> None:
    run = write_run(tmp_path / "run", twin)
    (run / place).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{Path(place).name} is .*{said.removeprefix('is ')}"):
        import_weights(run / place if place == "sensorium.pth" else run)


def test_links_without_content_are_named(twin: Twin, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", twin)
    (run / "ckpt" / "model_state.pt").unlink()
    (run / "ckpt" / "model_state.pt").symlink_to("../../.git/annex/objects/x/model_state.pt")
    for source in (run, run / "ckpt" / "model_state.pt"):
        with pytest.raises(CheckpointError, match=r"model_state\.pt is a git-annex link without its content"):
            import_weights(source)


def test_files_that_unpack_to_far_more_are_refused(twin: Twin, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", twin)
    path = run / "ckpt" / "model_state.pt"
    expanded = torch.zeros(1).expand(10**6, 10**6)  # 4 TB in a file of a kilobyte
    torch.save({"model": {**reference_state(twin), "readouts.B.bias": expanded}}, path)
    with pytest.raises(CheckpointError, match=r"readouts\.B\.bias claims more values than the file holds"):
        import_weights(run)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(3 * 10**8))
    with pytest.raises(CheckpointError, match=r"model_state\.pt unpacks to .* times its size"):
        import_weights(run)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"num_blocks": 10**9}, "lacks weights that its options require.*core.n_blocks is 1000000000"),
        ({"emb_dim": 10**6}, "wrong shape of"),
        ({"mlp_dim": 10**9}, "wrong shape of"),
        ({"input_shape": [1, 10**6, 10**6]}, "input_shape is too large"),
        ({"output_shapes": {"A": 10**12, "B": 3}}, "too many neurons for its weights"),
    ],
)
def test_options_that_ask_for_more_than_the_weights_are_refused_before_memory_is_taken(
    twin: Twin, tmp_path: Path, args: dict[str, Any], said: str
) -> None:
    run = write_reference_run(tmp_path / "run", twin, args=args)
    with pytest.raises(CheckpointError, match=said):
        import_weights(run)


def test_aliases_that_multiply_in_options_are_refused(twin: Twin, tmp_path: Path) -> None:
    run = write_reference_run(tmp_path / "run", twin)
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)), "output_shapes: *a59"]
    (run / "args.yaml").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=r"args\.yaml is refused: its aliases unpack to more than"):
        import_weights(run)


def test_an_output_is_replaced_only_with_force_and_only_if_it_is_ours(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = write_run(tmp_path / "run", twin), tmp_path / "out"
    command = ["import", str(run), "--output", str(output)]
    assert main(command) == 0
    before = load_checkpoint(output).weights_hash
    write_run(run, make_twin(1))
    assert main(command) == 1
    assert "--force to replace it" in capsys.readouterr().err
    assert load_checkpoint(output).weights_hash == before
    assert main([*command, "--force"]) == 0
    assert load_checkpoint(output).weights_hash != before
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("x")
    assert main(["import", str(run), "--output", str(other), "--force"]) == 1
    assert "--force does not replace it" in capsys.readouterr().err
    assert (other / "chapter1.tex").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "thesis"]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_the_old_result_or_none(
    twin: Twin, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = write_run(tmp_path / "run", twin), tmp_path / "out"
    command = ["import", str(run), "--output", str(output), "--force"]
    if there:
        assert main(command) == 0
        before = load_checkpoint(output).weights_hash
        write_run(run, make_twin(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"][not there :]
    if there:
        assert load_checkpoint(output).weights_hash == before


def test_an_import_error_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(CheckpointError, match=r"cannot be imported: numpy\.core\.multiarray failed to import"):
        import_weights("hf://someone/V1T")
