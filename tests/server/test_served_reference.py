"""Real and reference weights over HTTP: imported, exported, served, and equal to the golden outputs in our client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import v1t_client
from support.live_server import Server, serving

pytestmark = pytest.mark.slow

CASES = [
    ("sensorium_p_sota_model", "S1", 7538),
    ("sensorium_sota_model", "S0", 7776),
    ("v1t-published-config", "A", 60),
    ("v1t-published-config", "B", 40),
    ("v1t-small", "A", 30),
    ("v1t-small", "B", 20),
    ("v1t-small", "C", 10),
    ("v1t-ensemble3", "A", 30),
    ("v1t-ensemble3", "B", 20),
]


@pytest.fixture(scope="module")
def server(reference_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundles = tmp_path_factory.mktemp("bundles")
    for name in dict.fromkeys(bundle for bundle, _, _ in CASES):
        (bundles / name).symlink_to(reference_bundle(name))
    with serving(bundles, tmp_path_factory.mktemp("home")) as server:
        server.wait_for("/readyz", 200)
        yield server


@pytest.mark.parametrize(("bundle", "mouse", "n_neurons"), CASES)
def test_served_responses_equal_the_golden_ones(
    bundle: str, mouse: str, n_neurons: int, server: Server, reference: Path
) -> None:
    is_sensorium = bundle.startswith("sensorium")
    folder, key = ("sensorium-pretrained", bundle) if is_sensorium else (bundle, mouse)
    golden = np.load(reference / folder / "golden.npz")
    with v1t_client.Client(server.url) as client:
        prediction = client.predict(
            mouse,
            golden["image"],
            pupil_dilation=golden["behavior"][:, 0],
            pupil_dilation_derivative=golden["behavior"][:, 1],
            running_speed=golden["behavior"][:, 2],
            pupil_center=golden["pupil_center"],
            model=bundle,
        )
    expected = golden[f"response_{key}"]
    assert prediction.responses.shape == (len(golden["image"]), n_neurons)
    np.testing.assert_allclose(prediction.responses, expected, rtol=0, atol=1e-4)
    assert prediction.model.name == bundle


def test_twin_without_statistics_asks_for_every_input_that_it_uses(server: Server) -> None:
    with (
        v1t_client.Client(server.url) as client,
        pytest.raises(v1t_client.InvalidRequest, match="pupil_dilation"),
    ):
        client.predict("S1", np.zeros((1, 36, 64), np.float32), running_speed=1.0)


def test_mouse_of_several_bundles_needs_the_model_named(server: Server) -> None:
    with v1t_client.Client(server.url) as client, pytest.raises(v1t_client.InvalidRequest, match="model"):
        client.predict("A", np.zeros((1, 144, 256), np.float32))
