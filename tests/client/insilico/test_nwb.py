"""Results of experiments as NWB files."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pynwb
import pytest
from support.gabor_bank import GaborBank
from v1t_client import InvalidArgument, MissingExtra, Model
from v1t_client.insilico import EXPERIMENTS, Receipt, Result

MODEL = Model(name="demo", hash="cd" * 32, simulated=True, version="7")


@pytest.fixture(scope="module")
def result() -> Result:
    bank = GaborBank(n=9, shape=(18, 32), model=MODEL)
    return EXPERIMENTS["tuning"](mouse="BANK").run(bank)


def test_every_array_is_in_a_table_with_its_unit_and_the_receipt_comes_back(result: Result, tmp_path: Path) -> None:
    result.to_nwb(tmp_path / "tuning.nwb")
    with pynwb.NWBHDF5IO(str(tmp_path / "tuning.nwb"), mode="r") as io:
        nwb = io.read()
        assert "Simulated: no animal was recorded" in nwb.session_description
        assert "predicted by a digital twin, not recorded" in nwb.session_description
        assert Receipt.from_json(nwb.notes) == result.receipt
        assert json.loads(nwb.notes)["model"]["hash"] == "cd" * 32
        module = nwb.processing["in_silico"]
        neurons = module["neurons"]
        assert neurons["neuron_id"][:].tolist() == result.dataset["neuron"].values.tolist()
        seen = set()
        for name, array in {**result.dataset.coords, **result.dataset.data_vars}.items():
            if not array.dims:
                continue
            first = "neuron" if "neuron" in array.dims else array.dims[0]
            column = module[f"{first}s"]["neuron_id" if name == "neuron" else name]
            wanted = array.transpose(first, ...).values
            found = np.asarray(column[:])
            assert found.shape == wanted.shape, name
            same = found == wanted
            assert np.all(same | (wanted != wanted)), name
            assert str(array.attrs.get("units", "")) in column.description
            seen.add(name)
        assert len(seen) > 5


def test_nwbinspector_finds_nothing_critical(result: Result, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nwbinspector import Importance, inspect_nwbfile

        path = tmp_path / "tuning.nwb"
        replace(result, receipt=replace(result.receipt, created="2026-01-02T03:04:05+00:00")).to_nwb(path)
        found = list(inspect_nwbfile(nwbfile_path=str(path)))
    assert [one for one in found if one.importance.value >= Importance.CRITICAL.value] == []


def test_a_prediction_is_written_with_its_images_and_metadata(tmp_path: Path) -> None:
    bank = GaborBank(n=5, shape=(18, 32), model=MODEL)
    prediction = bank.predict("BANK", np.random.default_rng(0).uniform(0, 255, (3, 1, 18, 32)).astype(np.float32))
    prediction.to_nwb(tmp_path / "p.nwb")
    with pytest.raises(InvalidArgument, match="the output exists"):
        prediction.to_nwb(tmp_path / "p.nwb")
    prediction.to_nwb(tmp_path / "p.nwb", force=True)
    with pytest.raises(InvalidArgument, match="cannot be written"):
        prediction.to_nwb(tmp_path / "none" / "p.nwb")
    with pynwb.NWBHDF5IO(str(tmp_path / "p.nwb"), mode="r") as io:
        nwb = io.read()
        neurons = nwb.processing["in_silico"]["neurons"]
        assert neurons["neuron_id"][:].tolist() == prediction.neuron_ids.tolist()
        assert (np.asarray(neurons["responses"][:]) == prediction.responses.T).all()
        assert nwb.processing["in_silico"]["images"]["image"][:].tolist() == [0, 1, 2]
        assert json.loads(nwb.notes) == json.loads(json.dumps(prediction.metadata()))


def test_without_pynwb_the_extra_is_named(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(MissingExtra, match=r"clients/python\[nwb\]"):
        result.to_nwb(tmp_path / "a.nwb")
    assert list(tmp_path.iterdir()) == []
