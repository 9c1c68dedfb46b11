"""`v1t replay`: a receipt gives the same result again, and what differs is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
from support.gabor_bank import GaborBank
from support.live_server import ROOT, Server
from v1t_client import InvalidArgument, Model
from v1t_client._cli import main
from v1t_client.insilico import EXPERIMENTS, Result, perform
from v1t_client.insilico.most_exciting_inputs.experiment import MostExcitingInputs
from v1t_client.insilico.replay import differences, replay

SEARCH = MostExcitingInputs(mouse="BANK", recipe="quick", steps=6, starts=2, noise=5, best=2, seed=9)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "meis"
    perform(SEARCH, GaborBank(4), folder, quiet=True)
    return folder


@pytest.fixture
def made(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "meis"))


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_receipt_gives_the_same_result_bit_by_bit(made: Path, given: str) -> None:
    done = replay(made if given == "folder" else made / "receipt.json", GaborBank(4), quiet=True)
    assert done.same(tolerance=0)
    assert "bit by bit" in done.report()
    assert done.differences is not None
    assert {"mei", "mei_trace", "best_noise", "neuron"} <= set(done.differences)
    xarray.testing.assert_equal(done.result.dataset, Result.load(made).dataset)


def test_another_bundle_is_said_even_where_the_result_is_the_same(made: Path) -> None:
    done = replay(made, GaborBank(4, model=Model(name="bank", hash="cd" * 32)), quiet=True)
    assert not done.same_bundle
    assert not done.same()
    assert "another bundle answered: babababababa then, cdcdcdcdcdcd now" in done.report()
    assert "bit by bit" in done.report()


def test_a_changed_twin_is_found_in_the_variables_that_changed(made: Path) -> None:
    bank = GaborBank(4)
    bank.amplitude *= 1.1
    done = replay(made, bank, quiet=True)
    assert done.same_bundle
    assert not done.same()
    assert done.differences is not None
    assert done.differences["response"] > 0.02
    assert done.differences["x_um"] == 0
    report = done.report()
    assert report.startswith("NOT the same")
    assert "response" in report
    assert done.same(tolerance=10.0)


def test_other_versions_are_named(made: Path) -> None:
    content = json.loads((made / "receipt.json").read_text())
    content["versions"]["numpy"] = "1.0.0"
    (made / "receipt.json").write_text(json.dumps(content))
    assert "numpy 1.0.0 -> " in replay(made, GaborBank(4), quiet=True).report()


def test_a_receipt_alone_is_replayed_without_a_comparison(made: Path, tmp_path: Path) -> None:
    alone = tmp_path / "sent.json"
    alone.write_bytes((made / "receipt.json").read_bytes())
    done = replay(alone, GaborBank(4), quiet=True, output=tmp_path / "again")
    assert done.differences is None
    assert "nothing was compared" in done.report()
    xarray.testing.assert_equal(Result.load(tmp_path / "again").dataset, Result.load(made).dataset)


def test_a_receipt_of_no_experiment_is_refused(made: Path) -> None:
    content = json.loads((made / "receipt.json").read_text())
    (made / "receipt.json").write_text(json.dumps({**content, "experiment": "divination"}))
    with pytest.raises(InvalidArgument, match="divination"):
        replay(made, GaborBank(4), quiet=True)


def test_differences_are_relative_and_see_every_way_to_differ() -> None:
    a = xarray.Dataset({"x": ("i", [1.0, -4.0]), "y": ("i", [1.0, np.nan]), "z": ("i", ["a", "b"]), "only": 1.0})
    b = xarray.Dataset({"x": ("i", [1.5, -4.0]), "y": ("i", [1.0, np.nan]), "z": ("i", ["a", "c"])})
    found = differences(a, b)
    assert found == {"x": 0.125, "y": 0.0, "z": np.inf, "only": np.inf}
    assert differences(a, a.assign(y=("i", [1.0, 2.0])))["y"] == np.inf
    assert differences(a, a.isel(i=[0]))["x"] == np.inf


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_the_catalogue_is_replayed_by_its_own_name(name: str) -> None:
    assert EXPERIMENTS[name].name == name


@pytest.mark.slow
def test_the_command_replays_on_a_served_twin(
    demo_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "meis")
    options = ["--best", "2", "--recipe", "quick", "--steps", "3", "--starts", "1", "--noise", "0", "--quiet"]
    assert main(["mei", "SIM1", *options, "--url", demo_server.url, "--output", output]) == 0
    assert main(["replay", output, "--quiet"]) == 0  # on the server of the receipt
    assert "the same" in capsys.readouterr().out
    assert main(["replay", output, "--bundle", str(ROOT / "exported_models" / "demo"), "--quiet"]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["replay", output, "--url", "http://127.0.0.1:9", "--retries", "0"]) == 1
