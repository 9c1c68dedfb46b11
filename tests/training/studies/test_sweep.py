"""The sweep: what it searches, what it writes, and that it outlives the processes that work on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from scipy import stats
from support.postgres import postgres
from support.ray_cluster import ray_cluster
from support.tiny_twins import tiny_recordings

from training.__main__ import main
from training.config import PRESETS, TrainingConfig, parse_config
from training.errors import DivergenceError
from training.files import locked
from training.studies import sweep as sweep_module
from training.studies.sweep import LOCK, LOCKED, Sweep, correlations_of, importances_of, open_storage, search
from training.studies.sweep_space import SPACE, Choice, Range
from training.trainer.hardware import Hardware
from training.trainer.run_spec import RunSpec

# All options but two, so that models are small.
GIVEN = [
    *("core.patch_size=4", "core.patch_stride=3", "core.n_blocks=1", "core.n_heads=1", "core.dim=4", "core.mlp_dim=4"),
    *("core.patch_dropout=0", "core.block_dropout=0", "core.l1=0", "cropper.size=[12,20]", "training.batch_size=8"),
    "training.max_epochs=3",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    tiny_recordings(folder, n_train=(20,))
    return folder


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def command(output: Path, folder: Path, *more: str) -> list[str]:
    changed = {option.partition("=")[0] for option in more}
    given = [option for option in GIVEN if option.partition("=")[0] not in changed]
    return ["sweep", "--recordings", str(folder), "--output", str(output), "--set", *given, *more]


def states(output: Path) -> list[TrialState]:
    return [trial.state for trial in trials(output)]


def trials(output: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=open_storage(None, output)).trials


def a_sweep(folder: Path, **space: Range) -> Sweep:
    return Sweep("v1t", space, {"training.max_epochs": 9}, {}, folder, seed=0, hardware=Hardware())


class Trained:
    """Stands for `train_member`: its score is known, epoch by epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Path] = []
        monkeypatch.setattr(sweep_module, "train_member", self)

    def __call__(self, spec: RunSpec, folder: Path, **kwargs: Any) -> float:
        self.calls.append(folder)
        score, max_epochs = self.score(spec), spec.training.max_epochs
        for epoch in range(1, max_epochs + 1):
            kwargs["on_epoch"](epoch, score * epoch / max_epochs)
        return score

    def score(self, spec: RunSpec) -> float:
        return 1 - (spec.model.readout.l1 - 0.3) ** 2


def test_every_range_holds_the_published_value() -> None:
    for system, space in SPACE.items():
        for name, range_ in space.items():
            part, option = name.split(".")
            value = getattr(TrainingConfig() if part == "training" else getattr(PRESETS[system], part), option)
            held = value in range_.words if isinstance(range_, Choice) else range_.low <= value <= range_.high
            assert held, f"{system} {name}"


def test_the_18_options_of_table_a2_are_searched() -> None:
    assert len(SPACE["v1t"]) == 18
    assert SPACE["v1t"]["readout.hidden_layers"] == Range(1, 4, integer=True)


def test_every_corner_of_the_space_is_a_model() -> None:
    for system, space in SPACE.items():
        for end in (0, -1):
            values = {
                name: range_.words[end]
                if isinstance(range_, Choice)
                else (int if range_.integer else float)((range_.low, range_.high)[end])
                for name, range_ in space.items()
            }
            sweep = Sweep(system, space, {}, {}, Path(), seed=0, hardware=Hardware())
            assert sweep.spec(values).model.core.kind == PRESETS[system].core.kind


@pytest.mark.slow
def test_the_best_is_found_and_written_as_train_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trained(monkeypatch)
    space = {"readout.l1": Range(0, 1), "core.l1": Range(0, 1)}
    sweep = a_sweep(tmp_path, **space)
    study = search(sweep, open_storage(None, tmp_path), name="sweep", trials=60)
    text = sweep_module.write_best(sweep, study)
    assert text is not None
    best = parse_config(yaml.safe_load((tmp_path / "best.yaml").read_text(encoding="utf-8")))
    assert abs(best.readout.l1 - 0.3) < 0.1
    content = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert content["validation"] == pytest.approx(1 - (best.readout.l1 - 0.3) ** 2)
    assert content["trials"]["pruned"] > 0  # Hyperband stopped some early


def test_the_option_that_matters_is_the_important_one() -> None:
    study = optuna.create_study(direction="maximize")
    ranges = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("core.l1", "readout.l1")}
    for core, readout in np.random.default_rng(0).random((100, 2)):
        params = {"core.l1": core, "readout.l1": readout}
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, value=1 - (readout - 0.3) ** 2))
    importances = importances_of(study)
    assert importances["readout.l1"] > 0.9
    assert sum(importances.values()) == pytest.approx(1)


def test_correlations_are_of_values_and_of_words_with_the_score() -> None:
    rng = np.random.default_rng(0)
    words = ("softmax", "locality")
    kinds = {
        "core.l1": optuna.distributions.FloatDistribution(0, 1),
        "core.attention": optuna.distributions.CategoricalDistribution(words),
        "readout.hidden_layers": optuna.distributions.IntDistribution(1, 4),
    }
    trials, l1s, locals_, scores = [], rng.random(30), rng.random(30) < 0.5, rng.random(30)
    scores = scores + 2 * l1s - locals_
    for l1, local, score in zip(l1s, locals_, scores, strict=True):
        params = {"core.l1": float(l1), "core.attention": words[int(local)], "readout.hidden_layers": 1}
        trials.append(optuna.create_trial(params=params, distributions=kinds, value=float(score)))
    found = correlations_of(trials)
    assert found["core.l1"] == pytest.approx(stats.pearsonr(l1s, scores).statistic)
    assert found["core.attention=locality"] == pytest.approx(stats.pearsonr(locals_.astype(float), scores).statistic)
    assert found["core.attention=softmax"] == pytest.approx(-found["core.attention=locality"])
    assert np.isnan(found["readout.hidden_layers"])


def test_a_sweep_goes_on_where_it_was_and_does_not_exceed_its_trials(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(monkeypatch)
    assert main(command(tmp_path, folder, "--trials", "3")) == 0
    assert main(command(tmp_path, folder, "--trials", "5")) == 0
    assert main(command(tmp_path, folder, "--trials", "5")) == 0
    assert len(trained.calls) == len(set(trained.calls)) == 5


def test_another_search_in_the_same_storage_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Trained(monkeypatch)
    assert main(command(tmp_path, folder, "--trials", "1")) == 0
    assert main(command(tmp_path, folder, "--trials", "2", "--seed", "1")) == 1
    assert "seed" in capsys.readouterr().err


def test_an_interrupted_trial_is_tried_again_with_the_same_options(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(monkeypatch)

    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trained, "score", interrupted)
        assert main(command(tmp_path, folder, "--trials", "2")) == 130
    assert states(tmp_path) == [TrialState.FAIL, TrialState.WAITING]
    assert main(command(tmp_path, folder, "--trials", "2")) == 0
    first, second, _ = trials(tmp_path)
    assert (first.state, first.params) == (TrialState.FAIL, second.params)
    assert trained.calls[0] == trained.calls[1] != trained.calls[2]


def test_a_trial_that_somebody_works_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trained(monkeypatch)
    sweep = a_sweep(tmp_path, **{"core.l1": Range(0, 1)})
    storage = open_storage(None, tmp_path)
    search(sweep, storage, name="sweep", trials=1)
    study = optuna.load_study(study_name="sweep", storage=storage)
    trial = study.ask()
    values = {"core.l1": trial.suggest_float("core.l1", 0, 1)}
    with locked(sweep.trial_folder(values) / LOCK, wait=True):
        trial.set_user_attr(LOCKED, trial.number)
        sweep_module.retry_dead(study, sweep)
        assert study.trials[1].state == TrialState.RUNNING
    sweep_module.retry_dead(study, sweep)
    assert [t.state for t in study.trials[1:]] == [TrialState.FAIL, TrialState.WAITING]


def test_a_retry_that_is_about_to_start_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trained(monkeypatch)
    sweep = a_sweep(tmp_path, **{"core.l1": Range(0, 1)})
    study = search(sweep, open_storage(None, tmp_path), name="sweep", trials=1)
    study.enqueue_trial(study.trials[0].params, user_attrs=study.trials[0].user_attrs)
    study.ask().suggest_float("core.l1", 0, 1)  # its folder has a lock file, which nobody holds yet
    sweep_module.retry_dead(study, sweep)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_nobody_takes_a_trial_for_dead_between_its_end_and_the_storage_of_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trained(monkeypatch)
    sweep = a_sweep(tmp_path, **{"core.l1": Range(0, 1)})
    storage = open_storage(None, tmp_path)
    store = storage.set_trial_state_values

    def after_a_look_of_another(trial_id: int, state: TrialState, *values: Any) -> bool:
        if state.is_finished():
            another = optuna.load_study(study_name="sweep", storage=open_storage(None, tmp_path))
            sweep_module.retry_dead(another, sweep)
        return store(trial_id, state, *values)

    monkeypatch.setattr(storage, "set_trial_state_values", after_a_look_of_another)
    study = search(sweep, storage, name="sweep", trials=3)
    assert len(study.trials) == 3
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)


def test_a_trial_that_diverges_counts_as_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(*_: Any, **__: Any) -> float:
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(sweep_module, "train_member", diverging)
    sweep = a_sweep(tmp_path, **{"core.l1": Range(0, 1)})
    study = search(sweep, open_storage(None, tmp_path), name="sweep", trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert study.trials[0].user_attrs["diverged"] == "the loss is nan"
    assert sweep_module.write_best(sweep, study) is None


def test_a_database_serves_as_storage(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trained(monkeypatch)
    url = f"sqlite:///{tmp_path / 'sweeps.db'}"
    assert main(command(tmp_path, folder, "--trials", "2", "--storage", url, "--name", "lab")) == 0
    assert len(optuna.load_study(study_name="lab", storage=url).trials) == 2


def both_in_a_trial(two: list[subprocess.Popen[bytes]], output: Path) -> bool:
    """Whether each is in the middle of a trial: then both are left stopped there."""
    if not (output / "sweep.journal").exists() or len(list(output.glob("trials/*/lock"))) < 2:
        return False
    for one in two:
        one.send_signal(signal.SIGSTOP)
    if states(output).count(TrialState.RUNNING) == 2:
        return True
    for one in two:
        one.send_signal(signal.SIGCONT)
    return False


@pytest.mark.slow
def test_the_sweep_survives_two_processes_on_one_storage_and_a_kill_of_one(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "sweep"
    arguments = command(output, folder, "training.max_epochs=6", "--trials", "12")
    process = [sys.executable, "-m", "training", *arguments]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    two = [subprocess.Popen(process, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        while not both_in_a_trial(two, output):
            assert [one.poll() for one in two] == [None, None]
            time.sleep(0.05)
        two[0].send_signal(signal.SIGKILL)
        two[0].wait()
        two[1].send_signal(signal.SIGCONT)
        assert two[1].wait(timeout=90) == 0
    finally:
        for one in two:
            one.kill()
            one.wait()
    (failed,) = (trial for trial in trials(output) if trial.state == TrialState.FAIL)
    (again,) = (trial for trial in trials(output) if trial.user_attrs.get("retry_of") == failed.number)
    assert again.params == failed.params
    assert again.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert TrialState.RUNNING not in states(output)
    assert sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states(output)) == 12
    parse_config(yaml.safe_load((output / "best.yaml").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_a_cluster_and_a_postgresql_storage_share_one_sweep(tmp_path: Path, folder: Path) -> None:
    """Two workers on Ray; then this process alone goes on with the same study."""
    with postgres() as url:
        given = [*command(tmp_path, folder, "training.max_epochs=1"), "--storage", url]
        with ray_cluster(nodes=1):
            assert main([*given, "--trials", "4", "--ray", "auto"]) == 0
        storage = open_storage(url, tmp_path)
        study = optuna.load_study(study_name="sweep", storage=storage)
        ended = [trial for trial in study.trials if trial.state.is_finished()]
        assert len(ended) in (4, 5)  # one that another worker had begun
        assert main([*given, "--trials", "6"]) == 0
        assert len(study.trials) == max(6, len(ended))
        assert len({trial.number for trial in study.trials}) == len(study.trials)
        sweep_module.close(storage)
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["best"]
