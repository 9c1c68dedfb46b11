"""Training: the loss and one update against float64, order of trials, early stopping, and runs that are broken off."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import QUICK, tiny_config, tiny_inputs, tiny_mouse, tiny_recordings, tiny_run, tiny_twin

from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.ensemble import member_checkpoints
from training.config import TrainingConfig, with_options
from training.data.batches import epoch_batches, read_batch, steps_per_epoch
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError, DivergenceError, RecordingError
from training.models import Twin
from training.trainer import loop
from training.trainer import update as update_module
from training.trainer.early_stopping import Plateau
from training.trainer.hardware import Hardware
from training.trainer.loop import train_member
from training.trainer.loss import poisson_loss
from training.trainer.run import train_ensemble
from training.trainer.run_spec import RunSpec
from training.trainer.state import RunState
from training.trainer.update import Update


def twin_of(recordings: dict[str, Recording], **options: Any) -> Twin:
    return tiny_twin(tiny_config(**options), [Mouse.from_recording(recording) for recording in recordings.values()])


def update_of(twin: Twin, training: TrainingConfig, recordings: dict[str, Recording]) -> Update:
    return Update(twin, training, recordings, Hardware().fabric())


def accumulate(
    twin: Twin, training: TrainingConfig, recordings: dict[str, Recording], mouse_id: str, indices: np.ndarray
) -> torch.Tensor:
    batch = read_batch(recordings[mouse_id], indices, torch.device("cpu"))
    return update_of(twin, training, recordings).accumulate(mouse_id, indices, batch, batch_size=len(indices))


def elu1(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1


def poisson(y: np.ndarray, r: np.ndarray) -> float:
    eps = np.finfo(np.float32).eps
    return float((y + eps - (r + eps) * np.log(y + eps)).sum())


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_loss_is_the_references_on_permuted_trials(reference: Path, seed: int | None) -> None:
    with np.load(reference / "poisson_loss.npz") as golden:
        n = len(golden["responses"])
        order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
        predictions, responses = golden["predictions"][order], golden["responses"][order]
        plain, scaled = float(golden["loss_unscaled"]), float(golden["loss_scaled_450_trials_batch_16"])
    tensors = torch.from_numpy(predictions), torch.from_numpy(responses)
    assert float(poisson_loss(*tensors)) == pytest.approx(plain, rel=1e-6)
    assert poisson(predictions.astype(float), responses.astype(float)) == pytest.approx(plain, rel=1e-6)
    # sqrt(trials / batch): what counts is the ratio, and these are 7 samples
    n_trials = 450 * len(responses) / 16
    assert float(poisson_loss(*tensors, n_trials=n_trials)) == pytest.approx(scaled, rel=1e-6)
    assert float(poisson_loss(*tensors, n_trials=450, batch_size=16)) == pytest.approx(scaled, rel=1e-6)


def total_loss(twin: Twin, training: TrainingConfig, recordings: dict[str, Recording], trials: dict[str, Any]) -> float:
    """The loss of one update as the paper writes it, in float64, each mouse's terms with the core's L1 again."""
    total = 0.0
    for mouse_id, indices in trials.items():
        recording = recordings[mouse_id]
        batch = recording.batch(indices)
        inputs = [torch.from_numpy(a).double() for a in (batch.image, batch.behavior, batch.pupil_center)]
        with torch.no_grad():
            x = twin.pre_activation(mouse_id, *inputs).numpy()
        loss = poisson(elu1(x), batch.response.astype(float) / recording.response_std)
        if training.scale_loss:
            loss *= math.sqrt(len(recording.tier("train")) / len(indices))
        core = sum(float(p.detach().abs().sum()) for p in twin.core.parameters())
        features = float(twin.readout(mouse_id).features.detach().abs().sum())
        total += loss + twin.config.core.l1 * core + twin.config.readout.l1 * features
    return total


@pytest.mark.parametrize("scale_loss", [True, False])
def test_an_updates_gradient_is_that_of_all_loss_terms(
    recordings: dict[str, Recording], scale_loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of(recordings, core={"l1": 0.05})
    training = TrainingConfig(scale_loss=scale_loss)
    trials = {
        "SIM1": recordings["SIM1"].tier("train").indices[:6],
        "SIM2": recordings["SIM2"].tier("train").indices[3:7],
    }
    twin.zero_grad()  # in evaluation mode: positions are not drawn, so the loss is a function
    for mouse_id, indices in trials.items():
        accumulate(twin, training, recordings, mouse_id, indices)
    gradients = {
        name: parameter.grad.double() for name, parameter in twin.named_parameters() if parameter.grad is not None
    }
    twin.double()
    rng = np.random.default_rng(0)
    for name in (
        "core.tokenizer.cls_token",
        "core.tokenizer.projection.weight",
        "core.transformer.blocks.0.attention.qkv.weight",
        "core.transformer.blocks.1.mlp.down.bias",
        "core.transformer.behavior_mlps.1.hidden_weight",
        "shifters.SIM1.layers.0.weight",
        "readouts.SIM1.features",
        "readouts.SIM2.features",
        "readouts.SIM2.bias",
        "readouts.SIM1.position_network.0.weight",
    ):
        parameter = dict(twin.named_parameters())[name]
        flat = parameter.detach().view(-1)
        where = int(rng.integers(len(flat)))
        kept, step, losses = float(flat[where]), 1e-6, []
        for sign in (1, -1):
            flat[where] = kept + sign * step
            losses.append(total_loss(twin, training, recordings, trials))
        flat[where] = kept
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(gradients[name].view(-1)[where]) == pytest.approx(slope, rel=1e-3, abs=2e-3), name


def test_the_loss_that_is_reported_is_that_of_all_terms(recordings: dict[str, Recording]) -> None:
    twin = twin_of(recordings)
    trials = {mouse_id: recording.tier("train").indices[:5] for mouse_id, recording in recordings.items()}
    reported = sum(
        float(accumulate(twin, QUICK, recordings, mouse_id, indices)) for mouse_id, indices in trials.items()
    )
    assert reported == pytest.approx(total_loss(twin.double(), QUICK, recordings, trials), rel=1e-5)


def test_micro_batches_give_the_same_update(recordings: dict[str, Recording]) -> None:
    recording = recordings["SIM1"]
    gradients = []
    for micro_batch in (None, 3, 1):
        twin = twin_of(recordings)
        training = TrainingConfig(micro_batch=micro_batch)
        indices = recording.tier("train").indices[:8]
        loss = accumulate(twin, training, recordings, "SIM1", indices)
        gradients.append([loss, *(p.grad for p in twin.parameters() if p.grad is not None)])
    for one in gradients[1:]:
        for tensor, whole in zip(one, gradients[0], strict=True):
            torch.testing.assert_close(tensor, whole, rtol=1e-4, atol=1e-4)


def test_one_update_moves_weights_as_adam_says(recordings: dict[str, Recording]) -> None:
    """The first step of Adam, without weight decay, is the learning rate against the gradient's sign."""
    twin = twin_of(recordings, readout={"hidden": 4, "l1": 0.01}).train()
    before = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.9999), weight_decay=0.0)
    training = TrainingConfig(batch_size=32, learning_rate=0.01)  # one update an epoch
    update = update_of(twin, training, recordings)
    state = RunState(twin, optimizer, Plateau(1, 1), update.fabric)
    loop._train_epoch(update, state, Path("nowhere"), seed=0, label="test")
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        g = parameter.grad
        expected = before[name] - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update_after", ["all_mice", "each_mouse"])
def test_an_epoch_is_that_of_a_plain_loop(recordings: dict[str, Recording], update_after: Any) -> None:
    """Three steps, with an update for both mice or one after each mouse, against a loop in plain torch."""
    training = TrainingConfig(batch_size=8, learning_rate=0.01, update_after=update_after)
    twins = [twin_of(recordings, core={"l1": 0.02}, readout={"hidden": 4, "l1": 0.01}).train() for _ in range(2)]
    optimizers = [
        torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.9999), weight_decay=0.0) for twin in twins
    ]
    update = update_of(twins[0], training, recordings)
    state = RunState(twins[0], optimizers[0], Plateau(1, 1), update.fabric)
    reported, _ = loop._train_epoch(update, state, Path("nowhere"), seed=3, label="test")

    twin, optimizer, losses = twins[1], optimizers[1], []
    torch.manual_seed(3 * 1_000_003 + 1)  # as `RunState.seed_epoch` does
    for trials in epoch_batches(recordings, batch_size=8, seed=3, epoch=1):
        optimizer.zero_grad()
        for mouse_id, indices in trials.items():
            recording = recordings[mouse_id]
            batch = recording.batch(indices)
            inputs = (torch.from_numpy(x) for x in (batch.image, batch.behavior, batch.pupil_center))
            y = twin(mouse_id, *inputs) + torch.finfo(torch.float32).eps
            r = torch.from_numpy(batch.response / recording.response_std) + torch.finfo(torch.float32).eps
            scale = math.sqrt(len(recording.tier("train")) / len(indices))
            weights = sum(parameter.abs().sum() for parameter in twin.core.parameters())
            loss = scale * (y - r * y.log()).sum() + 0.02 * weights
            loss = loss + 0.01 * twin.readout(mouse_id).features.abs().sum()
            loss.backward()
            losses.append(float(loss.detach()))
            if update_after == "each_mouse":
                optimizer.step()
                optimizer.zero_grad()
        if update_after == "all_mice":
            optimizer.step()
    assert reported == pytest.approx(sum(losses) / 3, rel=1e-5)
    for (name, found), wanted in zip(twins[0].named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_responses_are_divided_by_their_std(recordings: dict[str, Recording]) -> None:
    recording = recordings["SIM1"]
    indices = recording.tier("train").indices[[4, 1]]
    *inputs, response = read_batch(recording, indices, torch.device("cpu"))
    raw = recording.batch(indices)
    np.testing.assert_allclose(response, raw.response / recording.response_std)
    for tensor, array in zip(inputs, (raw.image, raw.behavior, raw.pupil_center), strict=True):
        np.testing.assert_array_equal(tensor, array)  # in the recording's own units


def test_the_longest_recording_sets_the_epoch_and_shorter_ones_cycle(recordings: dict[str, Recording]) -> None:
    assert steps_per_epoch(recordings, 8) == 3  # 20 trials: 8, 8 and 4
    batches = list(epoch_batches(recordings, batch_size=8, seed=0, epoch=1))
    assert len(batches) == 3
    long = np.concatenate([batch["SIM1"] for batch in batches])
    assert sorted(long) == list(recordings["SIM1"].tier("train").indices)
    short = [batch["SIM2"] for batch in batches]
    assert [len(part) for part in short] == [8, 5, 8]  # 13 trials, then from the start
    trials = list(recordings["SIM2"].tier("train").indices)
    assert sorted(np.concatenate(short[:2])) == trials
    counts = Counter(np.concatenate(short).tolist())
    assert set(counts) == set(trials)
    assert max(counts.values()) == 2


def test_the_order_depends_on_seed_and_epoch_alone(recordings: dict[str, Recording]) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(recordings, batch_size=8, seed=seed, epoch=epoch)
        return [int(i) for batch in batches for indices in batch.values() for i in indices]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4


def test_a_recording_with_too_few_trials_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recording,) = tiny_recordings(tmp_path, n_train=(2,))
    recording.tiers[recording.tiers == "train"] = "validation"
    with pytest.raises(RecordingError, match="'SIM1' has too few training trials; got 0"):
        steps_per_epoch({"SIM1": recording}, 4)


def test_a_plateau_waits_reduces_and_stops() -> None:
    plateau = Plateau(patience=2, max_reductions=2)
    scores = [0.1, 0.3, 0.2, 0.3, 0.2, 0.31, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    verdicts = [plateau.update(score, epoch) for epoch, score in enumerate(scores, start=1)]
    assert verdicts[:2] == ["improved", "improved"]
    assert verdicts[2:5] == ["wait", "wait", "reduce"]  # an equal score is no better
    assert verdicts[5] == "improved"  # and gives all reductions back
    assert verdicts[6:] == ["wait", "wait", "reduce", "wait", "wait", "reduce", "wait", "wait", "stop"]
    assert (plateau.best, plateau.best_epoch) == (0.31, 6)


def test_a_plateau_resumes_from_its_state() -> None:
    scores = np.random.default_rng(3).random(30)
    whole = Plateau(patience=1, max_reductions=3)
    verdicts = [whole.update(score, i) for i, score in enumerate(scores)]
    first, second = Plateau(patience=1, max_reductions=3), Plateau(patience=1, max_reductions=3)
    found = [first.update(score, i) for i, score in enumerate(scores[:11])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.update(score, i) for i, score in enumerate(scores[11:], start=11)]
    assert found == verdicts


def test_a_score_that_is_nan_is_no_improvement() -> None:
    plateau = Plateau(patience=0, max_reductions=0)
    assert plateau.update(0.1, 1) == "improved"
    assert plateau.update(math.nan, 2) == "stop"
    assert plateau.best == 0.1


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validation that gives these scores, in order."""
    remaining = iter(scores)
    monkeypatch.setattr(loop, "validate", lambda _: next(remaining))


def test_a_reduction_lowers_the_rate_and_restores_the_best_weights(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.5, 0.1, 0.1, 0.1])
    training = TrainingConfig(batch_size=16, learning_rate=0.01, patience=1, max_reductions=1, factor=0.3, max_epochs=4)
    config = tiny_config()
    assert (
        train_member(tiny_run(recordings, config, training.model_copy(update={"max_epochs": 1})), tmp_path / "one")
        == 0.5
    )
    best = load_checkpoint(tmp_path / "one" / "checkpoint").twin.state_dict()
    scripted(monkeypatch, [0.5, 0.1, 0.1, 0.1])
    restored: list[dict[str, torch.Tensor]] = []
    train_epoch = loop._train_epoch

    def watched(update: Update, *args: Any, **options: Any) -> tuple[float, float]:
        restored.append({name: tensor.clone() for name, tensor in update.twin.state_dict().items()})
        return train_epoch(update, *args, **options)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    train_member(tiny_run(recordings, config, training), tmp_path / "run")
    with (tmp_path / "run" / "log.csv").open(newline="") as stream:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(stream)]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.003])
    kept = load_checkpoint(tmp_path / "run" / "checkpoint").twin.state_dict()
    for name, tensor in best.items():
        assert torch.equal(restored[3][name], tensor)  # epoch 4 starts from the best
        assert torch.equal(kept[name], tensor)


def log_of(folder: Path) -> list[dict[str, str]]:
    """Without the times, which no two runs share."""
    with (folder / "log.csv").open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "waited")}
            for row in csv.DictReader(stream)
        ]


THREE_EPOCHS = QUICK.model_copy(update={"max_epochs": 3})


@pytest.fixture(scope="module")
def whole(recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Path, float]:
    """An uninterrupted run with dropout, its folder, and its score."""
    spec = tiny_run(recordings, tiny_config({"patch_dropout": 0.1, "block_dropout": 0.2}), THREE_EPOCHS, seed=5)
    folder = tmp_path_factory.mktemp("whole")
    return spec, folder, train_member(spec, folder)


@pytest.mark.parametrize("update", [0, 2])
def test_a_run_that_was_interrupted_ends_as_an_uninterrupted_one(
    whole: tuple[RunSpec, Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    spec, folder, score = whole
    updates = 0
    step = loop._step

    def broken(*args: Any, **options: Any) -> float:
        nonlocal updates
        if updates == 3 + update:  # of three updates an epoch, in the second epoch
            raise KeyboardInterrupt
        updates += 1
        return step(*args, **options)

    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        train_member(spec, tmp_path)
    assert len(log_of(tmp_path)) == 1
    monkeypatch.undo()
    assert train_member(spec, tmp_path) == score
    assert log_of(tmp_path) == log_of(folder)
    states = [torch.load(one / "state.pt", weights_only=True) for one in (folder, tmp_path)]
    assert states[0]["epoch"] == states[1]["epoch"] == 3
    for name, tensor in states[0]["twin"].items():
        assert torch.equal(states[1]["twin"][name], tensor), name
    for i, moments in states[0]["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(states[1]["optimizer"]["state"][i][name], tensor)
    best = [load_checkpoint(one / "checkpoint").weights_hash for one in (folder, tmp_path)]
    assert best[0] == best[1]


def test_another_seed_gives_another_member(recordings: dict[str, Recording], tmp_path: Path) -> None:
    one = QUICK.model_copy(update={"max_epochs": 1})
    for seed in (0, 1):
        train_member(tiny_run(recordings, training=one, seed=seed), tmp_path / str(seed))
    hashes = {load_checkpoint(tmp_path / str(seed) / "checkpoint").weights_hash for seed in (0, 1)}
    assert len(hashes) == 2
    provenance = load_checkpoint(tmp_path / "1" / "checkpoint").provenance
    assert provenance["seed"] == 1
    assert provenance["data_hashes"] == {name: recording.data_hash for name, recording in recordings.items()}
    assert provenance["training"]["learning_rate"] == 0.01


def test_a_nan_stops_training_and_keeps_the_last_good_weights(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train_member(tiny_run(recordings, training=QUICK.model_copy(update={"max_epochs": 1})), folder)
    state, best = (folder / "state.pt").read_bytes(), load_checkpoint(folder / "checkpoint").weights_hash
    saved = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**saved, "finished": False}, folder / "state.pt")
    state = (folder / "state.pt").read_bytes()
    read = update_module.read_batch
    bad = int(recordings["SIM2"].tier("train").indices[4])

    def spoiled(recording: Recording, indices: np.ndarray, device: torch.device) -> Any:
        *inputs, response = read(recording, indices, device)
        if recording.mouse_id == "SIM2" and bad in indices:
            response[list(indices).index(bad), 1] = math.nan
        return *inputs, response

    monkeypatch.setattr(update_module, "read_batch", spoiled)
    with pytest.raises(DivergenceError, match=r"the loss is nan at epoch 2, update \d") as caught:
        train_member(tiny_run(recordings), folder)
    assert "last good weights are kept" in str(caught.value)
    assert bad in caught.value.got["SIM2"]
    assert (folder / "state.pt").read_bytes() == state
    assert load_checkpoint(folder / "checkpoint").weights_hash == best


def test_the_folder_of_another_run_is_refused(recordings: dict[str, Recording], tmp_path: Path) -> None:
    config, folder = tiny_config(), tmp_path / "run"
    one = QUICK.model_copy(update={"max_epochs": 1})
    (path,) = train_ensemble(tiny_run(recordings, config, one), folder)
    assert train_ensemble(tiny_run(recordings, config, one), folder) == [path]  # is finished already
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for other in (
        (tiny_run(recordings, with_options(config, {"core.l1": 0.1}), one), "config"),
        (tiny_run(recordings, config, QUICK), "training"),
        (tiny_run({"SIM1": recordings["SIM1"]}, config, one), "data_hashes"),
        (tiny_run(recordings, config, one, seed=1), "seed"),
    ):
        spec, what = other
        with pytest.raises(CheckpointError, match=f"holds another run: its {what} differ"):
            train_ensemble(spec, folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("...")
    with pytest.raises(CheckpointError, match="exists and is not a run"):
        train_ensemble(tiny_run(recordings, config, one), tmp_path / "mine")
    (tmp_path / "broken off").mkdir()
    (tmp_path / "broken off/.run.json.partial").write_text("half")
    train_ensemble(tiny_run(recordings, config, one), tmp_path / "broken off")


def test_what_no_model_can_be_made_of_is_refused_before_any_work(
    recordings: dict[str, Recording], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="patch_size 20"):
        train_ensemble(tiny_run(recordings, tiny_config({"patch_size": 20})), tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot keep that many members; got 3; expected 1 to 2"):
        train_ensemble(tiny_run(recordings, members=2, keep=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_members_by_validation_are_kept(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.2, 0.1, 0.4])
    one = QUICK.model_copy(update={"max_epochs": 1})
    kept = train_ensemble(tiny_run(recordings, training=one, members=3, keep=2, seed=7), tmp_path / "run")
    assert [path.parent.name for path in kept] == ["member-0", "member-2"]
    assert member_checkpoints([tmp_path / "run"]) == kept
    assert [load_checkpoint(path).provenance["seed"] for path in kept] == [7, 9]
    (tmp_path / "run" / "members.json").unlink()
    with pytest.raises(CheckpointError, match="is not finished"):
        member_checkpoints([tmp_path / "run"])


def test_validation_is_the_correlation_of_single_trials(recordings: dict[str, Recording]) -> None:
    twin = twin_of(recordings)
    expected = []
    for recording in recordings.values():
        batch = recording.batch(recording.tier("validation").indices)
        inputs = [torch.from_numpy(a) for a in (batch.image, batch.behavior, batch.pupil_center)]
        with torch.no_grad():
            predicted = twin(recording.mouse_id, *inputs).numpy()
        pairs = zip(batch.response.T, predicted.T, strict=True)
        expected.append(np.nanmean([np.corrcoef(r, p)[0, 1] for r, p in pairs if r.std() > 0]))
    assert loop.validate(update_of(twin, QUICK, recordings)) == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_command_trains_and_refuses_wrong_options(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(recording.path) for recording in recordings.values()]
    options = ["core.patch_size=4", "core.patch_stride=4", "core.n_blocks=1", "core.dim=6", "cropper.size=[12, 20]"]
    arguments = ["train", "--recordings", *paths, "--output", str(tmp_path / "run"), "--set", *options]
    assert main([*arguments, "training.max_epochs=1", "training.batch_size=8"]) == 0
    assert "kept 1 of 1 member\n" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "member-0" / "checkpoint").config.core.dim == 6
    for wrong, words in (
        ("training.max_epochs=0", "training.max_epochs"),
        ("core.heads=3", "no option 'heads'"),
        ("core.dim", "OPTION=VALUE"),
    ):
        assert main([*arguments, wrong]) == 1
        assert words in capsys.readouterr().err


def test_mice_of_a_twin_keep_their_own_readouts_in_an_update() -> None:
    """A mouse's batch changes the core and its own parts, no other mouse's."""
    twin = tiny_twin(tiny_config(b_mlp={"mice": "per_mouse"})).train()
    twin("A", *tiny_inputs(tiny_mouse("A"), 2)).sum().backward()
    for name, parameter in twin.named_parameters():
        of_b = name.startswith(("readouts.B.", "shifters.B."))
        assert (parameter.grad is None) == of_b, name
        if "behavior_mlps" in name:
            assert parameter.grad is not None
            assert (parameter.grad[1] == 0).all()
