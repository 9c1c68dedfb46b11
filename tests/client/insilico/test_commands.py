"""The experiments as a new user types them: help, a run, what it prints, what it refuses."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.gabor_bank import GaborBank
from v1t_client._cli import command as cli
from v1t_client.insilico import EXPERIMENTS, Receipt, Result
from v1t_client.insilico.framework import predictors

Run = Callable[[str], tuple[int, str, str]]
OURS = ("rf", "retinotopy", "tuning", "behavior", "screen")


@pytest.fixture
def bank() -> GaborBank:
    bank = GaborBank(n=11, shape=(18, 32))
    bank.is_complex[:] = False
    bank.frequency[:6], bank.phase[:6] = 0, 0
    return bank


@pytest.fixture
def v1t(bank: GaborBank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line in an empty folder, on the bank; gives exit code, stdout, stderr."""

    @contextlib.contextmanager
    def open_bank(where: str, **options: object) -> Iterator[GaborBank]:
        yield bank

    monkeypatch.setattr(predictors, "open_predictor", open_bank)
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as exit_:
            code = int(str(exit_.code))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", OURS)
def test_help_has_examples_and_says_what_is_left_behind(v1t: Run, name: str) -> None:
    code, out, _ = v1t(f"{name} --help")
    assert code == 0
    assert f"v1t {name} " in out.split("examples:")[1]
    assert "receipt.json" in out
    assert "(None)" not in out


def test_every_experiment_has_a_verb_that_help_lists(v1t: Run) -> None:
    _, out, _ = v1t("--help")
    assert all(f"    {name}" in out for name in EXPERIMENTS)


@pytest.mark.parametrize("figures", ["drawn", pytest.param("rendered", marks=pytest.mark.slow)])
def test_each_command_measures_and_leaves_its_result(v1t: Run, tmp_path: Path, figures: str) -> None:
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 18, 32), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    lines = {
        "rf": "rf BANK --images 2_000 --output rf --seed 3",
        "retinotopy": "retinotopy BANK --rf rf --output retinotopy",
        "tuning": "tuning BANK --best 2 --orientations 4 --phases 2 --output tuning --monitor 56.5x31.8@15",
        "behavior": "behavior BANK --channels running_speed --values running_speed=0,30 --n-images 2 --output behavior",
        "screen": "screen BANK --images images --top 1 --output screen --running-speed 5",
    }
    said = {"rf": "receptive field", "retinotopy": "a plane explains", "tuning": "tuned to orientation",
            "behavior": "modulation index", "screen": "3 images"}  # fmt: skip
    for name, line in lines.items():
        code, out, err = v1t(line)
        assert code == 0, err
        assert said[name] in out
        assert f"wrote {name}" in err
        receipt = Receipt.load(tmp_path / name)
        assert receipt.experiment == name
        again = EXPERIMENTS[name].from_dict(receipt.parameters)
        assert again.to_dict() == receipt.parameters
        images = [path for path in (tmp_path / name).iterdir() if path.suffix == ".png"]
        assert images
        assert all((path.stat().st_size > 0) == (figures == "rendered") for path in images)
        assert v1t(f"replay {name}")[0] == 0
    assert "outside the training range" in v1t(lines["behavior"] + " --force")[2]
    assert Result.load(tmp_path / "tuning").dataset.sizes["neuron"] == 2
    assert Receipt.load(tmp_path / "screen").assumed == []  # the speed was given
    assert v1t(lines["rf"])[0] == 2  # it exists


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rf BANK", "--output"),
        ("rf BANK --output rf --monitor large", "WIDTHxHEIGHT@DISTANCE"),
        ("rf BANK --output rf --monitor 31.8x56.5@15", "square pixels"),
        ("rf BANK --output no/such/rf", "does not exist"),
        ("rf BANK --output rf --neuron-ids 1,x", "list of whole numbers"),
        ("rf BANK --output rf --neuron-ids 5", "no such neurons"),
        ("rf BANK --output rf --neuron-ids 5 --best 3", "not allowed with"),
        ("rf BANK --output rf --images 7", "too few noise images"),
        ("rf NOBODY --output rf", "no such mouse"),
        ("tuning BANK --output t --rf nowhere", "no result in this folder"),
        ("tuning BANK --output t --frequencies 0.1,0.2", "do not make a curve"),
        ("screen BANK --output s --images nowhere", "no such folder"),
        ("behavior BANK --output b --channels whisking", "no such behaviour channel"),
        ("retinotopy BANK --output r", "--rf"),
    ],
)
def test_wrong_usage_is_explained_and_leaves_nothing(v1t: Run, tmp_path: Path, line: str, words: str) -> None:
    code, _, err = v1t(line)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")] == []
