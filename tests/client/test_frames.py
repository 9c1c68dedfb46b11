"""Predictions as arrays, tables and files of other packages: every number and label comes back from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import v1t_client
from support.contract_server import SHAPE, ContractServer
from v1t_client import Client, Prediction


@pytest.fixture
def prediction(server: ContractServer, client: Client, rng: np.random.Generator, tmp_path: Path) -> Prediction:
    """Of two files, one of them twice, with spread."""
    for name in ("b.npy", "a.npy"):
        np.save(tmp_path / name, rng.integers(0, 256, SHAPE, dtype=np.uint8))
    files = [tmp_path / name for name in ("b.npy", "a.npy", "b.npy")]
    return client.predict("A", files, running_speed=[1, 2, 3], spread=True)


def labels_of(found: dict[str, Any], prediction: Prediction) -> None:
    assert found["mouse"] == "A"
    assert found["model_hash"] == prediction.model.hash
    assert found["simulated"] == 1
    assert found["notice"] == prediction.model.notice
    assert found["request_id"] == prediction.request_id


def test_an_array_of_it_is_the_responses(prediction: Prediction) -> None:
    responses = prediction.responses
    assert np.asarray(prediction) is responses
    assert np.shares_memory(np.array(prediction, copy=False), responses)
    assert not np.shares_memory(np.array(prediction), responses)
    wide = np.asarray(prediction, dtype=np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, responses)
    np.testing.assert_array_equal(np.corrcoef(prediction), np.corrcoef(responses))
    with pytest.raises(ValueError, match="have to be copied"):
        np.array(prediction, dtype=np.float64, copy=False)


def check_table(frame: Any, prediction: Prediction) -> None:
    pivot = frame.pivot(index="image", columns="neuron_id", values="response")
    np.testing.assert_array_equal(pivot[prediction.neuron_ids.tolist()].to_numpy(), prediction.responses)
    spread = frame.pivot(index="image", columns="neuron_id", values="spread")
    np.testing.assert_array_equal(spread[prediction.neuron_ids.tolist()].to_numpy(), prediction.spread)
    assert frame.groupby("image")["file"].first().tolist() == list(prediction.images)
    assert frame["response"].dtype == np.float32
    assert frame.attrs["units"] == "standardized"
    labels_of(frame.attrs, prediction)


def test_a_frame_has_a_row_per_image_and_neuron(prediction: Prediction, client: Client) -> None:
    check_table(prediction.to_pandas(), prediction)
    plain = client.predict("A", np.zeros((2, *SHAPE), np.uint8)).to_pandas()
    assert list(plain.columns) == ["image", "neuron_id", "response"]


def test_parquet_keeps_the_table_and_its_labels(prediction: Prediction, tmp_path: Path) -> None:
    import pandas

    prediction.save(tmp_path / "out.parquet")
    check_table(pandas.read_parquet(tmp_path / "out.parquet"), prediction)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_netcdf_and_zarr_keep_the_arrays_and_their_labels(prediction: Prediction, tmp_path: Path, ending: str) -> None:
    import xarray

    path = tmp_path / f"out.{ending}"
    prediction.save(path)
    engine: Any = {"nc": "h5netcdf", "zarr": "zarr"}[ending]
    with xarray.open_dataset(path, engine=engine) as stored:
        np.testing.assert_array_equal(stored["responses"], prediction.responses)
        np.testing.assert_array_equal(stored["spread"], prediction.spread)
        np.testing.assert_array_equal(stored["neuron"], prediction.neuron_ids)
        assert stored["image"].values.tolist() == list(prediction.images)
        assert stored["responses"].attrs["units"] == "standardized"
        labels_of(stored.attrs, prediction)


@pytest.mark.parametrize("ending", ["parquet", "nc", "zarr"])
def test_what_exists_is_replaced_only_by_force(prediction: Prediction, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    prediction.save(path)
    with pytest.raises(v1t_client.InvalidArgument, match="force=True"):
        prediction.save(path)
    prediction.select(prediction.neuron_ids[:2]).save(path, force=True)
    assert {file.name for file in tmp_path.iterdir()} == {"a.npy", "b.npy", path.name}


def test_another_ending_is_refused(prediction: Prediction, tmp_path: Path) -> None:
    with pytest.raises(v1t_client.InvalidArgument, match=r"\.parquet, \.nc or \.zarr"):
        prediction.save(tmp_path / "out.xlsx")
    with pytest.raises(v1t_client.InvalidArgument, match="cannot be written"):
        prediction.save(tmp_path / "missing" / "out.parquet")


@pytest.mark.parametrize(
    ("ending", "package", "extra"),
    [
        ("parquet", "pandas", "tables"),
        ("parquet", "pyarrow", "tables"),
        ("nc", "h5netcdf", "insilico"),
        ("zarr", "zarr", "zarr"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(v1t_client.MissingExtra, match=rf"pip install './clients/python\[{extra}\]'"):
        prediction.save(tmp_path / f"out.{ending}")
    assert not list(tmp_path.glob("*out*"))
