"""A student of a teacher: what it is asked, what it starts from, what it says about itself, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse

from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.config import parse_training
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.distillation import answers, distill, questions
from training.distillation.answers import ask, asked
from training.distillation.budget import cost, fit_budget, parse_budget
from training.distillation.distill import Distillation
from training.distillation.first_readout import teacher_positions
from training.distillation.questions import Questions, ask_about
from training.errors import CheckpointError, ConfigError
from training.export.bundle import _provenance
from training.models import Twin

QUICK = parse_training({"batch_size": 16, "learning_rate": 0.01, "beta2": 0.99, "max_epochs": 2})


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "CHUNK", 8)
    monkeypatch.setattr(questions, "HELD_OUT", {"natural": 12, "noise": 9, "gratings": 9})
    monkeypatch.setattr(questions, "MAP_ROWS", 3)
    monkeypatch.setattr(questions, "RUNNING_IMAGES", 5)
    monkeypatch.setattr(questions, "VALIDATION", 10)


def teacher_of(recordings: Mapping[str, Recording], *, members: int = 2, **options: Any) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    return Ensemble([tiny_checkpoint(tiny_config(**options), mice, seed=seed) for seed in range(members)])


def saved(folder: Path, teacher: Ensemble) -> list[str]:
    paths = [folder / f"teacher-{i}" for i in range(len(teacher.members))]
    for path, member in zip(paths, teacher.members, strict=True):
        save_checkpoint(path, member)
    return [str(path) for path in paths]


def of(teacher: Ensemble, recordings: Mapping[str, Recording], **options: Any) -> Distillation:
    given: dict[str, Any] = {"budget": 1.5, "generated": 20, "training": QUICK, **options}
    return Distillation(teacher=teacher, recordings=recordings, **given)


def test_stored_answers_are_the_ensembles_own_to_the_stored_questions(
    tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    teacher = teacher_of(recordings)
    for mouse_id, asked_ in of(teacher, recordings).questions().items():
        ask(teacher, asked_, tmp_path)
        trials = asked(teacher, asked_, tmp_path).batch(np.arange(len(asked_)))
        inputs = [torch.from_numpy(part) for part in (trials.image, trials.behavior, trials.pupil_center)]
        with torch.no_grad():
            members = [one.twin.pre_activation(mouse_id, *inputs).numpy() for one in teacher.members]
        pre = np.mean(members, axis=0)
        expected = np.where(pre > 0, pre + 1, np.exp(np.minimum(pre, 0)))  # ELU + 1
        np.testing.assert_allclose(trials.response, expected, atol=1e-5)
        own = recordings[mouse_id].batch(recordings[mouse_id].tier("train").indices)
        first = asked_.column("kind") == "recorded"
        np.testing.assert_array_equal(trials.image[first][: len(own.image)], own.image)
        np.testing.assert_array_equal(trials.pupil_center[first][: len(own.image)], own.pupil_center)


def test_a_kill_while_asking_or_training_changes_nothing(
    tmp_path: Path, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    what = of(teacher_of(recordings), recordings)
    distill.distill(what, tmp_path / "whole")
    drawn, chunk = [], Questions.chunk

    def killed(self: Questions, start: int) -> Any:
        drawn.append(start)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return chunk(self, start)

    monkeypatch.setattr(Questions, "chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        distill.distill(what, tmp_path / "killed")
    again = distill.distill(what, tmp_path / "killed")
    assert drawn[4] == drawn[3]  # it resumes with the chunk that was lost
    assert len(drawn) == len({*drawn[:4]}) + len(drawn[4:])  # and with no other
    whole, resumed = (load_checkpoint(tmp_path / name / "member-0/checkpoint") for name in ("whole", "killed"))
    for name, weights in whole.twin.state_dict().items():
        assert torch.equal(weights, resumed.twin.state_dict()[name]), name
    assert again == whole.provenance["distillation"]["agreement"]


def test_a_student_that_is_built_like_its_teacher_recovers_it(tmp_path: Path, recordings: dict[str, Recording]) -> None:
    """A linear core, one mouse: there is nothing that the student cannot express."""
    one = {"SIM1": recordings["SIM1"]}
    config = {"kind": "ln", "n_layers": 1, "channels": 4, "input_kernel": 5}
    mouse = Mouse.from_recording(one["SIM1"])
    checkpoint = tiny_checkpoint(tiny_config(config, behavior="none", shifter=False), [mouse])
    with torch.no_grad():
        checkpoint.twin.readout("SIM1").features.mul_(0.3)
    training = parse_training({**distill.TRAINING, "max_epochs": 25, "learning_rate": 0.02, "warmup": 20})
    what = of(Ensemble([checkpoint]), one, budget=1.0, generated=600, training=training)
    summary = distill.distill(what, tmp_path)["SIM1"]
    assert summary["natural_median"] > 0.94
    assert summary["noise_median"] > 0.94


def test_a_student_looks_where_its_teacher_does(tmp_path: Path, recordings: dict[str, Recording]) -> None:
    """Positions in px of the core's image are kept, though the maps of stride 1 and 2 span different parts of it."""
    teacher = teacher_of(recordings)
    student = Twin(
        tiny_config({"patch_stride": 4, "patch_size": 4}, readout={"position": "free"}), list(teacher.mice.values())
    )
    positions = teacher_positions(teacher, student, "SIM1")
    assert positions is not None
    height, width = 12, 20
    expected = []
    for member in teacher.members:  # patches of 4 every 3: columns at 1.5, 4.5, ..., 16.5; rows at 1.5, 4.5, 7.5
        mu = member.twin.readout("SIM1").mu.detach().numpy()
        expected.append([1.5 + (mu[:, 0] + 1) / 2 * 15, 1.5 + (mu[:, 1] + 1) / 2 * 6])
    x, y = np.mean(expected, axis=0)
    # Patches of 4 every 4: the last ones have their middles at 17.5 and 9.5.
    ours = np.stack([2 * (x - 1.5) / (width - 4) - 1, 2 * (y - 1.5) / (height - 4) - 1], axis=1)
    np.testing.assert_allclose(positions.detach().numpy(), ours, atol=1e-5)


def test_the_students_checkpoint_names_its_teacher_and_their_agreement(
    tmp_path: Path, recordings: dict[str, Recording], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher_of(recordings)
    paths = saved(tmp_path, teacher)
    hashes = load_ensemble([Path(path) for path in paths]).weights_hashes
    folder = next(iter(recordings.values())).path.parent
    options = ["--budget", "1.5x", "--generated", "20", "--set", "training.max_epochs=1", "training.batch_size=16"]
    command = ["distill", *paths, "--recordings", str(folder), "--output", str(tmp_path / "run"), *options]
    assert main(command) == 0
    printed = capsys.readouterr().out
    made = load_checkpoint(tmp_path / "run/member-0/checkpoint").provenance
    about = made["distillation"]
    assert (made["source"], about["teacher"]) == ("distilled", hashes)
    assert len(set(hashes)) == 2
    assert about["speedup"] >= about["budget"] == 1.5
    table = pq.read_table(tmp_path / "run/agreement/neurons.parquet").to_pydict()
    assert table["neuron_id"] == [n for one in recordings.values() for n in one.neuron_ids.tolist()]
    natural = [value for value, mouse in zip(table["natural"], table["mouse"], strict=True) if mouse == "SIM1"]
    assert about["agreement"]["SIM1"]["natural_median"] == pytest.approx(np.median(natural))
    assert f"{np.median(natural):.3f}" in printed
    bundled = _provenance(load_ensemble([tmp_path / "run"])).distillation
    assert bundled is not None
    assert (bundled.teacher, bundled.agreement) == (hashes, about["agreement"])
    assert _provenance(teacher).distillation is None
    assert main(command) == 0  # finished: nothing is asked or trained again
    assert main(["evaluate", str(tmp_path / "run"), "--recordings", str(folder)]) == 0


def test_a_teacher_without_a_recording_is_shown_generated_images(tmp_path: Path) -> None:
    mouse = Mouse.without_recording("A", (1, 18, 32), 5)
    config = tiny_config({"kind": "cnn", "channels": 8}, behavior="none", shifter=False, readout={"position": "free"})
    checkpoint = tiny_checkpoint(config, [mouse])
    checkpoint.provenance["citation"] = "Somebody 2022"
    what = of(Ensemble([checkpoint]), {}, images="generated", generated=40)
    summary = distill.distill(what, tmp_path)["A"]
    assert set(summary) >= {"natural_median", "noise_median", "gratings_median"}
    images = np.load(tmp_path / "questions/A/images.npy")
    assert abs(images.astype(float).mean()) < 0.5
    assert 0.5 < images.astype(float).std() < 1.5  # standardised
    student = load_checkpoint(tmp_path / "member-0/checkpoint")
    assert student.mice["A"].standardized_inputs
    assert student.provenance["citation"] == "Somebody 2022"


def test_questions_are_the_same_again_and_others_with_another_seed(recordings: dict[str, Recording]) -> None:
    mouse, recording = Mouse.from_recording(recordings["SIM1"]), recordings["SIM1"]
    segments = ask_about(mouse, recording, "both", 20)

    def images(seed: int) -> np.ndarray:
        asked_ = Questions(mouse, recording, segments, seed)
        at, parts = 0, []
        while at < len(asked_):
            parts.append(asked_.chunk(at)[0])
            at += len(parts[-1])
        return np.concatenate(parts)

    np.testing.assert_array_equal(images(3), images(3))
    one, other = images(3), images(4)
    recorded = np.repeat([s.kind.startswith("recorded") for s in segments], [s.n for s in segments])
    np.testing.assert_array_equal(one[recorded], other[recorded])
    noise = np.repeat([s.kind == "noise" and s.tier == "train" for s in segments], [s.n for s in segments])
    assert (one[noise] != other[noise]).any()
    tiers = np.repeat([s.tier for s in segments], [s.n for s in segments])
    held_out = {image.tobytes() for image in one[(tiers == "test") & (np.ptp(one, axis=(1, 2, 3)) > 0)]}
    assert not held_out & {image.tobytes() for image in one[tiers == "train"]}


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_the_student_fits_its_budget_and_no_larger_one_was_passed_over(family: Any) -> None:
    mice = [tiny_mouse("A"), tiny_mouse("B", n_neurons=3)]
    config = tiny_config({"kind": family, **({"channels": 8} if family == "cnn" else {})})
    teacher = Ensemble([tiny_checkpoint(config, mice, seed=seed) for seed in range(3)])
    whole = cost([member.twin for member in teacher.members])
    sizes = []
    for budget in (3.0, 5.0):
        student = fit_budget(teacher, budget, family=family, options={})
        own = cost([Twin(student.config, mice).eval()])
        assert whole / own == pytest.approx(student.speedup)
        assert student.speedup >= budget
        sizes.append(own)
    assert sizes[1] < sizes[0]


def test_what_cannot_be_distilled_is_refused(
    tmp_path: Path, recordings: dict[str, Recording], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher_of(recordings)
    paths = saved(tmp_path, teacher)
    folder = str(next(iter(recordings.values())).path.parent)
    run = ["distill", *paths, "--output", str(tmp_path / "run")]

    def refused(*more: str) -> str:
        assert main([*run, *more]) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "--images generated" in refused("--budget", "2x")
    assert "such as 20x" in refused("--recordings", folder, "--budget", "fast")
    assert "at most" in refused("--recordings", folder, "--budget", "1e6x")
    assert "1 or more" in refused("--recordings", folder, "--generated", "0", "--budget", "2x")
    assert "positions" in refused("--recordings", folder, "--set", "readout.position=network")
    with pytest.raises(ConfigError):
        parse_budget("0.5x")


def test_another_teacher_does_not_go_on_in_the_same_folder(tmp_path: Path, recordings: dict[str, Recording]) -> None:
    what = of(teacher_of(recordings), recordings)
    distill.distill(what, tmp_path / "run")
    other = teacher_of(recordings, members=1)
    members = [replace(member, weights_hash="0ther") for member in other.members]
    with pytest.raises(CheckpointError, match="another run"):
        distill.distill(replace(what, teacher=Ensemble(members), budget=1.0), tmp_path / "run")


def test_damaged_answers_are_named(tmp_path: Path, recordings: dict[str, Recording]) -> None:
    what = of(teacher_of(recordings), recordings)
    place = tmp_path / answers.QUESTIONS / "SIM1"
    place.mkdir(parents=True)
    (place / "done.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"done\.json.*Delete"):
        ask(what.teacher, what.questions()["SIM1"], tmp_path)


def test_agreement_of_a_teacher_with_itself_is_whole(tmp_path: Path, recordings: dict[str, Recording]) -> None:
    teacher = teacher_of(recordings)
    asked_ = of(teacher, recordings).questions()["SIM1"]
    ask(teacher, asked_, tmp_path)
    neurons = distill.agreement.agreement_of(
        teacher, teacher, asked_, asked(teacher, asked_, tmp_path), recordings["SIM1"]
    )
    for kind in ("natural", "noise", "gratings"):
        np.testing.assert_allclose(neurons[kind], 1, atol=1e-6)
    searched = neurons["mei_response"][np.isfinite(neurons["mei_response"])]
    np.testing.assert_allclose(searched, 1)
    assert len(searched)
    for name in ("center_distance", "orientation_difference", "running_difference"):
        np.testing.assert_allclose(neurons[name], 0, atol=1e-3)
    json.dumps(distill.agreement.summarize(neurons), allow_nan=False)
