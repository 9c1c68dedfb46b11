"""Artificial receptive fields: known neurons are found where they are, and the server sums what the client would."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import xarray
from scipy.optimize import curve_fit
from support.gabor_bank import GaborBank
from support.live_server import Server
from v1t_client import Client, ConnectionFailed, InvalidArgument, InvalidRequest, V1TError
from v1t_client._cli import main
from v1t_client.insilico import Receipt, Result, perform
from v1t_client.insilico.experiments.receptive_field_stream import server_sums
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.fitting.gaussian import fit_gaussians
from v1t_client.insilico.stimuli.noise import NoiseSums, noise_grid, white_noise


def hill(
    x: np.ndarray, y: np.ndarray, amplitude: float, cx: float, cy: float, major: float, minor: float, angle: float
) -> np.ndarray:
    """A Gaussian, its angle in degrees."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    a, b = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
    return np.asarray(amplitude * np.exp(-0.5 * ((a / major) ** 2 + (b / minor) ** 2)))


def blobs(**options: Any) -> GaborBank:
    """Neurons whose receptive field is a Gaussian: on-centre, simple."""
    bank = GaborBank(n=16, shape=(18, 32), **options)
    bank.frequency[:] = 0
    bank.phase[:] = 0
    bank.is_complex[:] = False
    bank.aspect[:] = np.linspace(1.2, 1.6, bank.n)
    return bank


# The fit


def test_gaussians_are_recovered_from_noisy_maps() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:36, :64]
    n = 60
    ranges = ((10, 20), (8, 56), (6, 30), (3, 5), (1.5, 2.5), (0, 180))
    truth = np.stack([rng.uniform(least, most, n) for least, most in ranges], axis=1)
    maps = np.stack([hill(x, y, *row) for row in truth]) + 1.5 + rng.normal(0, 0.3, (n, 36, 64))
    fit = fit_gaussians(maps)
    assert fit.ok.all()
    assert np.hypot(*(fit.center - truth[:, 1:3]).T).max() < 0.15
    np.testing.assert_allclose(fit.major, truth[:, 3], rtol=0.05)
    np.testing.assert_allclose(fit.minor, truth[:, 4], rtol=0.05)
    np.testing.assert_allclose(fit.amplitude, truth[:, 0], rtol=0.05)
    np.testing.assert_allclose(fit.offset, 1.5, atol=0.05)
    assert np.abs((fit.angle - truth[:, 5] + 90) % 180 - 90).max() < 3
    assert fit.r2.min() > 0.8


def test_fit_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:20, :30].astype(float)
    truth = (8.0, 12.3, 9.1, 3.1, 1.9, 35.0)
    values = hill(x, y, *truth) + 0.5 + rng.normal(0, 0.6, x.shape)
    fit = fit_gaussians(values[None])

    def model(place: np.ndarray, offset: float, *rest: float) -> np.ndarray:
        return offset + hill(place[0], place[1], *rest)  # type: ignore[arg-type]

    best, _ = curve_fit(model, np.stack([x.ravel(), y.ravel()]), values.ravel(), p0=(0.5, *truth))
    ours = [fit.offset[0], fit.amplitude[0], *fit.center[0], fit.major[0], fit.minor[0], fit.angle[0]]
    np.testing.assert_allclose(ours, best, rtol=2e-3)


def test_maps_without_a_hill_are_marked_not_dropped() -> None:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:20, :30]
    edge = hill(x, y, 10, -6, 9, 4, 3, 0)  # its middle lies outside
    flat = np.zeros((20, 30))
    good = hill(x, y, 10, 12, 9, 4, 3, 0) + rng.normal(0, 0.1, (20, 30))
    fit = fit_gaussians(np.stack([edge, flat, good]))
    assert fit.ok.tolist() == [False, False, True]
    assert len(fit.center) == 3


# The experiment


def test_known_receptive_fields_are_found() -> None:
    bank = blobs()
    data = ReceptiveFields(mouse="BANK", n_images=20_000).run(bank).dataset
    assert data["reliable"].all()
    error = np.hypot(data["center_x"] - bank.center[:, 0], data["center_y"] - bank.center[:, 1])
    assert float(error.max()) < 0.25  # px
    np.testing.assert_allclose(data["sigma_minor"], bank.sigma, rtol=0.08)
    np.testing.assert_allclose(data["sigma_major"], bank.sigma * bank.aspect, rtol=0.08)
    along_y = np.degrees(bank.orientation) + 90  # longer across the wave
    assert float(np.abs((data["angle"] - along_y + 90) % 180 - 90).median()) < 5
    even, _, _ = bank.filters()
    similar = [np.corrcoef(data["map"].values[i].ravel(), even[:, i])[0, 1] for i in range(bank.n)]
    assert min(similar) > 0.9


def test_a_field_with_lobes_has_its_middle_between_them() -> None:
    bank = GaborBank(n=16, shape=(36, 64))
    bank.is_complex[:] = False
    bank.phase[:] = np.pi / 2  # odd: two lobes of opposite sign beside the centre
    bank.frequency[:] = 0.25 / bank.sigma
    data = ReceptiveFields(mouse="BANK", n_images=8_000).run(bank).dataset
    middle = np.hypot(data["envelope_x"] - bank.center[:, 0], data["envelope_y"] - bank.center[:, 1])
    assert float(middle.median()) < 0.5  # px
    assert float(middle.max()) < 1.5


def test_neurons_without_a_receptive_field_are_marked() -> None:
    bank = blobs()
    bank.amplitude[3] = 0  # responds to nothing
    bank.is_complex[5], bank.frequency[5] = True, 0.45 / bank.sigma[5]  # no linear part
    data = ReceptiveFields(mouse="BANK", n_images=2_000).run(bank).dataset
    assert not data["fitted"][3]
    assert not data["reliable"][3]
    assert not data["reliable"][5]
    assert data["reliable"].sum() == bank.n - 2
    assert len(data["neuron"]) == bank.n


def test_noise_of_larger_squares_gives_places_in_the_same_pixels() -> None:
    bank = blobs()
    data = ReceptiveFields(mouse="BANK", n_images=8_000, rows=9).run(bank).dataset
    assert data["map"].shape == (bank.n, 9, 16)
    error = np.hypot(data["center_x"] - bank.center[:, 0], data["center_y"] - bank.center[:, 1])
    assert float(error.median()) < 0.3
    with pytest.raises(InvalidArgument, match="whole number of pixels"):
        noise_grid((1, 18, 32), 7)
    assert noise_grid((1, 144, 256)) == (36, 64)


def test_mean_response_is_taken_out_of_the_map() -> None:
    noise = white_noise(0, 0, 50, (6, 8))
    responses = np.random.default_rng(0).uniform(0, 3, (50, 4)).astype(np.float32)
    sums = NoiseSums.empty(4, (6, 8))
    sums.show(noise[:20], responses[:20])
    rest = NoiseSums.empty(4, (6, 8))
    rest.show(noise[20:], responses[20:])
    sums.add(rest)
    r, z = responses.astype(np.float64), noise.astype(np.float64)
    expected = np.einsum("bn,bhw->nhw", r - r.mean(0), z) / 50
    np.testing.assert_allclose(sums.weighted_average(), expected, atol=1e-6)
    np.testing.assert_allclose(sums.chance(), r.std(0) / np.sqrt(50), rtol=1e-6)


def test_an_interrupted_mapping_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    experiment = ReceptiveFields(mouse="BANK", n_images=1_000, chunk=300, noise="white", seed=4)
    with pytest.raises(ConnectionFailed):
        perform(experiment, blobs(limit=700), tmp_path / "rf", quiet=True)
    bank = blobs()
    result = perform(experiment, bank, tmp_path / "rf", quiet=True)
    assert bank.asked == 400  # two chunks of 300 were kept
    xarray.testing.assert_identical(result.dataset, experiment.run(blobs()).dataset)
    assert {path.suffix for path in (tmp_path / "rf").iterdir()} >= {".nc", ".parquet", ".png", ".pdf", ".json"}
    assert "neurons have a receptive field" in experiment.summarize(result)


def test_sizes_are_in_degrees_where_there_is_a_monitor() -> None:
    from v1t_client.insilico import Monitor

    monitor = Monitor(width_cm=56.5, height_cm=31.8, distance_cm=15)
    data = ReceptiveFields(mouse="BANK", n_images=500, monitor=monitor).run(blobs()).dataset
    k = monitor.fitted(18, 32).pixels_per_degree
    np.testing.assert_allclose(data["sigma_deg"], (data["sigma_major"] + data["sigma_minor"]) / 2 / k)
    np.testing.assert_allclose(data["azimuth"], (data["center_x"] - 15.5) / k)
    np.testing.assert_allclose(data["elevation"], -(data["center_y"] - 8.5) / k)


# Against a server


def events(*lines: dict[str, Any], body: bytes = b"") -> bytes:
    """A stream; the body follows the line that has one."""
    return b"".join(json.dumps(line).encode() + b"\n" + (body if "bytes" in line else b"") for line in lines)


def sums_body(n: int, grid: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    for array in (np.ones((n, *grid), np.float32), np.zeros(grid), np.full(n, 7.0), np.full(n, 9.0)):
        np.save(stream, array)
    return stream.getvalue()


def answering(*replies: httpx.Response | Exception) -> Client:
    """A client of a server that gives these replies, one after another."""
    waiting = list(replies)

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/receptive_fields"
        reply = waiting.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return Client("http://twin", transport=httpx.MockTransport(handle))


def streamed(content: bytes) -> httpx.Response:
    about = {"mouse": "A", "units": "standardized", "model": {"name": "m", "hash": "aa"}, "assumed": ["speed left out"]}
    return httpx.Response(200, content=content, headers={"V1T-Reply": json.dumps(about)})


def test_a_stream_that_breaks_is_asked_again_and_progress_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1t_client.insilico.experiments.receptive_field_stream.time.sleep", lambda seconds: None)
    body = sums_body(2, (3, 4))
    whole = events(
        {"event": "progress", "done": 30, "total": 50},
        {"event": "alive"},
        {"event": "progress", "done": 50, "total": 50},
        {"event": "part", "bytes": len(body), "n_images": 50, "first_image": 0},
        {"event": "end"},
        body=body,
    )
    busy = httpx.Response(429, json={"error": {"code": "busy", "message": "later"}}, headers={"Retry-After": "1"})
    client = answering(httpx.ConnectError("refused"), busy, streamed(whole[: len(whole) // 2]), streamed(whole))
    done: list[int] = []
    sums, about = server_sums(client, {"mouse": "A"}, progress=done.append)
    assert sum(done) == 50
    assert sums.n_images == 50
    assert sums.maps.dtype == np.float64
    np.testing.assert_array_equal(sums.total, [7, 7])
    assert about.assumed == ("speed left out",)


def test_the_notes_of_the_last_event_hold_for_all_images() -> None:
    body = sums_body(2, (3, 4))
    note = {"code": "outside_recording", "input": "image", "message": "5,000 of 5,000 images"}
    part = {"event": "part", "bytes": len(body), "n_images": 5, "first_image": 0, "notes": [note], "state": "rest"}
    _, about = server_sums(answering(streamed(events(part, body=body))), {"mouse": "A"})
    assert ([str(note) for note in about.notes], about.state) == (["5,000 of 5,000 images"], "rest")


@pytest.mark.parametrize(
    "line", [{"event": "part"}, {"event": "progress", "done": "x"}, {"no": 1}, {"event": "part", "n_images": 1}, 3]
)
def test_an_event_that_cannot_be_read_is_a_v1t_error(line: Any) -> None:
    with pytest.raises(V1TError):
        server_sums(answering(streamed(events(line) if isinstance(line, dict) else b"3\n")), {"mouse": "A"})


def test_a_refusal_within_the_stream_is_the_server_s_error() -> None:
    line = {
        "event": "error", "status": 422, "request_id": "r",
        "error": {"code": "invalid_input", "message": "no finite response", "hint": "closer"},
    }  # fmt: skip
    client = answering(streamed(events({"event": "progress", "done": 1, "total": 5}, line)))
    with pytest.raises(InvalidRequest, match=r"no finite response\. closer"):
        server_sums(client, {"mouse": "A"})


class Elsewhere:
    """A predictor that is no `Client`: the noise is summed up here."""

    def __init__(self, client: Client) -> None:
        self.predict, self.mice, self.mouse, self.neurons = client.predict, client.mice, client.mouse, client.neurons


@pytest.mark.slow
def test_the_server_sums_what_the_client_would(demo_server: Server) -> None:
    experiment = ReceptiveFields(mouse="SIM1", n_images=100, chunk=60, seed=2, running_speed=4.0)
    with Client(demo_server.url) as client:
        there = experiment.run(client)
        here = experiment.run(Elsewhere(client))
    peak = float(np.abs(here.dataset["map"]).max())
    np.testing.assert_allclose(there.dataset["map"], here.dataset["map"], atol=2e-5 * peak)
    np.testing.assert_allclose(there.dataset["response_mean"], here.dataset["response_mean"], rtol=1e-5)
    assert there.receipt.assumed == here.receipt.assumed
    assert not any("running_speed" in line for line in there.receipt.assumed)


@pytest.mark.slow
def test_command_maps_a_mouse_and_refuses_to_do_it_twice(
    demo_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def v1t(*more: str, neurons: str = "48,369") -> int:
        command = ["rf", "SIM1", "--url", demo_server.url, "--images", "100", "--neuron-ids", neurons]
        command += ["--output", str(tmp_path / "rf"), *more]
        monkeypatch.setattr(sys, "argv", ["v1t", *command])
        return main(command)

    assert v1t() == 0
    said = capsys.readouterr()
    assert "2 neurons have a receptive field over 100 images" in said.out
    assert "imulated" in said.err
    result = Result.load(tmp_path / "rf")
    assert result.dataset["neuron"].values.tolist() == [48, 369]
    assert Receipt.load(tmp_path / "rf").command.startswith("v1t rf SIM1")
    assert v1t() == 2
    assert "--force" in capsys.readouterr().err
    assert v1t("--force", neurons="48,-7") == 2
    assert "no such neurons" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(demo_server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "v1t_client", "rf", "SIM1", "--url", demo_server.url, "--neuron-ids", "48,369"]
    command += ["--images", "1000", "--chunk", "100", "--output", str(tmp_path / "rf")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    kept = tmp_path / "rf.partial" / "sums.npz"
    deadline = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said
    with np.load(kept) as sums:
        before = int(sums["n_images"])
    assert 100 <= before < 1000
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "over 1,000 images" in done.stdout
    assert not kept.exists()
