"""`neurons.npz`: whatever a bundle holds there fits its mouse, or the bundle is refused at load, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.bundle.neurons import load_neurons
from server.errors import BundleError

N = 7


@pytest.fixture
def twin(tmp_path: Path) -> TinyTwin:
    return write_tiny_bundle(tmp_path / "tiny", mice=("A",), n_neurons=N)


def rewrite(twin: TinyTwin, **changed: Any) -> None:
    path = twin.folder / "A.neurons.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})


def test_what_was_saved_is_read(twin: TinyTwin) -> None:
    table, saved = load_neurons(twin.folder, twin.manifest.mice["A"]), twin.mice["A"].neurons
    np.testing.assert_array_equal(table.ids, saved.ids)
    np.testing.assert_array_equal(table.coordinates, saved.coordinates.astype(np.float32))
    np.testing.assert_array_equal(table.readout_position, saved.readout_position.astype(np.float32))
    assert [table.position(int(neuron_id)) for neuron_id in saved.ids] == list(range(N))


def test_values_that_are_not_known_are_nan(twin: TinyTwin) -> None:
    coordinates = np.ones((N, 3), np.float32)
    coordinates[2] = np.nan
    rewrite(twin, coordinates=coordinates, response_std=np.full(N, np.nan), **{"score.x": np.full(N, np.nan)})
    assert np.isnan(load_neurons(twin.folder, twin.manifest.mice["A"]).response_std).all()


def test_a_bundle_of_an_older_exporter_has_no_readout_positions(twin: TinyTwin) -> None:
    rewrite(twin, readout_position=None)
    assert load_neurons(twin.folder, twin.manifest.mice["A"]).readout_position is None


ONES = np.ones(N, np.float32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"coordinates": ONES}, r"coordinates is float32 of shape \(7,\), not floats of shape \(7, 3\)"),
        ({"coordinates": np.ones((N, 2))}, r"coordinates .* not floats of shape \(7, 3\)"),
        ({"coordinates": np.ones((N - 1, 3))}, r"coordinates .* not floats of shape \(7, 3\)"),
        ({"coordinates": np.ones((N, 3)) * [1, np.inf, 1]}, "coordinates holds infinite values"),
        ({"coordinates": np.full((N, 3), "x")}, "coordinates .* not floats"),
        ({"ids": np.zeros(N, np.int64)}, "ids holds one id twice"),
        ({"ids": np.arange(N) + 0.5}, "ids .* not integers"),
        ({"ids": None}, "ids"),
        ({"response_std": 0 * ONES}, "response_std is not positive"),
        ({"response_std": -ONES}, "response_std is not positive"),
        ({"response_std": np.inf * ONES}, "response_std holds infinite values"),
        ({"response_std": ONES[0]}, r"response_std .* of shape \(7,\)"),
        ({"readout_position": np.ones((N, 3))}, r"readout_position .* not floats of shape \(7, 2\)"),
        ({"readout_position": np.ones((N, 2), int)}, "readout_position .* not floats"),
        ({"readout_position": np.ones((N, 2)) * [1, np.inf]}, "readout_position holds infinite values"),
        ({"readout_position": np.ones((N, 2)) * [np.nan, 1]}, "readout_position holds values that are not numbers"),
        ({"score.x": ONES[:3]}, r"score\.x .* of shape \(7,\)"),
        ({"score.x": np.inf * ONES}, r"score\.x holds infinite values"),
    ],
)
def test_other_tables_are_refused_by_name(twin: TinyTwin, changed: dict[str, Any], words: str) -> None:
    rewrite(twin, **changed)
    with pytest.raises(BundleError, match=rf"A\.neurons\.npz, of mouse 'A', cannot be read: .*{words}"):
        load_neurons(twin.folder, twin.manifest.mice["A"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"version https://git-lfs.github.com/spec/v1\n"])
def test_files_of_another_kind_are_refused_by_name(twin: TinyTwin, content: bytes) -> None:
    (twin.folder / "A.neurons.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"A\.neurons\.npz"):
        load_neurons(twin.folder, twin.manifest.mice["A"])
