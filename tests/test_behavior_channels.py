"""Recordings with other behaviour channels than Sensorium's: trained, exported, served, and asked by name.

The torch ensemble of the checkpoint is the right answer of every way to ask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from support.behavior_channels import FOUR, TWO, with_channels
from support.live_server import Server, serving
from support.tiny_twins import tiny_config, tiny_recordings, tiny_run
from v1t_client import Client, InvalidArgument, ServerError
from v1t_client._cli.command import main as v1t
from v1t_client.insilico.experiments.behavior import Behavior
from v1t_client.insilico.recorded_trials import evaluate as evaluate_served

from server.bundle.manifest import load_manifest
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.layout import BehaviorChannel
from training.data.recordings import Recording
from training.evaluation.evaluate import evaluate
from training.export.bundle import BundleOptions, export_bundle
from training.trainer.run import train_ensemble

pytestmark = pytest.mark.slow

CHANNELS = {"four": FOUR, "two": TWO}
# Behaviour enters by the B-MLP and the image shifter, or as channels of the image.
MODELS = {
    "four": tiny_config(cropper={"size": (12, 20), "crop": 0.8, "shifter": "behavior_and_pupil_center"}),
    "two": tiny_config({"kind": "cnn"}),
}


@dataclass
class Served:
    """One mouse of a bundle of the same name, and its trained ensemble."""

    name: str
    recording: Recording
    ensemble: Ensemble
    url: str

    @property
    def mouse(self) -> str:
        return self.recording.mouse_id

    @property
    def channels(self) -> tuple[BehaviorChannel, ...]:
        return CHANNELS[self.name]

    def trials(self, n: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch = self.recording.batch(self.recording.tier("test").indices[:n])
        return batch.image, batch.behavior, batch.pupil_center

    def torch(self, *inputs: np.ndarray) -> np.ndarray:
        """(B, N) of the ensemble."""
        with torch.inference_mode():
            answer: np.ndarray = self.ensemble(self.mouse, *map(torch.from_numpy, inputs)).numpy()
        return answer

    def named(self, behavior: np.ndarray) -> dict[str, list[float]]:
        return {channel.name: column.tolist() for channel, column in zip(self.channels, behavior.T, strict=True)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("channels")
    recordings = tiny_recordings(work / "simulated", n_train=(40, 40), n_test_images=8)
    for (name, channels), simulated in zip(CHANNELS.items(), recordings, strict=True):
        path = with_channels(simulated.path, work / name, channels)
        recording = Recording.open(path, mouse_id=name.upper())
        train_ensemble(tiny_run({recording.mouse_id: recording}, MODELS[name]), work / f"run-{name}")
        ensemble = load_ensemble([work / f"run-{name}"])
        options = BundleOptions(scores=evaluate(ensemble, [recording]))
        export_bundle(ensemble, work / "bundles" / name, options=options)
    with serving(work / "bundles", work, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        server.work = work  # type: ignore[attr-defined]
        yield server


@pytest.fixture(params=CHANNELS)
def twin(request: pytest.FixtureRequest, server: Server) -> Served:
    name: str = request.param
    work: Path = server.work  # type: ignore[attr-defined]
    (path,) = [one for one in (work / name).iterdir() if one.suffix != ".packed"]
    recording = Recording.open(path, mouse_id=name.upper())
    return Served(name, recording, load_ensemble([work / f"run-{name}"]).eval(), server.url)


def test_the_twin_says_its_channels_with_units_and_statistics(twin: Served) -> None:
    detail = httpx.get(f"{twin.url}/mice/{twin.mouse}").json()
    assert [(one["name"], one["unit"]) for one in detail["behavior"]] == list(twin.channels)
    train = twin.recording.batch(twin.recording.tier("train").indices).behavior.astype(np.float64)
    for statistic in ("mean", "std", "min", "max", "median"):
        recorded = getattr(np, statistic)(train, axis=0)
        np.testing.assert_allclose([one[statistic] for one in detail["behavior"]], recorded, rtol=1e-5)
    assert [state["name"] for state in detail["states"]] == ["rest", "running"]
    metadata = httpx.get(f"{twin.url}/v2/models/{twin.name}.{twin.mouse}").json()
    (behavior,) = (one for one in metadata["inputs"] if one["name"] == "behavior")
    assert behavior["shape"] == [-1, len(twin.channels)]
    assert behavior["parameters"]["channels"].startswith(f"{twin.channels[0].name} [{twin.channels[0].unit}], ")


def test_json_form_v2_and_client_answer_like_torch(twin: Served) -> None:
    image, behavior, pupil_center = twin.trials()
    expected = twin.torch(image, behavior, pupil_center)
    named = twin.named(behavior)
    fields: dict[str, Any] = {"mouse": twin.mouse, "image": image.tolist(), "pupil_center": pupil_center.tolist()}
    single = {"running_speed": named.pop("running_speed")}  # has a field of its own, of any twin that has the channel
    reply = httpx.post(f"{twin.url}/predict", json={**fields, **single, "behavior": named}).json()
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    assert reply["assumed"] == []
    answers = [reply["responses"]]

    tensors = [("image", image), ("behavior", behavior), ("pupil_center", pupil_center)]
    body = {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
            for name, values in tensors
        ]
    }
    reply = httpx.post(f"{twin.url}/v2/models/{twin.name}.{twin.mouse}/infer", json=body).json()
    answers.append(np.reshape(reply["outputs"][0]["data"], expected.shape))

    with Client(twin.url) as client:
        given = {**named, **single}
        answers.append(client.predict(twin.mouse, image, behavior=given, pupil_center=pupil_center).responses)
        more: dict[str, Any] = {"behavior": named, "pupil_center": pupil_center, **single}
        answers.append(client.predict(twin.mouse, image, **more).responses)
        answers.append(client.predict_many(twin.mouse, image, chunk=2, progress=False, **more).responses)
    for answer in answers:
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_what_is_left_out_is_the_training_median(twin: Served) -> None:
    image, behavior, pupil_center = twin.trials(1)
    first = twin.channels[0]
    with Client(twin.url) as client:
        answer = client.predict(twin.mouse, image, behavior={first.name: behavior[0, 0]}, pupil_center=pupil_center)
        running = client.predict(twin.mouse, image, state="running", pupil_center=pupil_center)
        detail = client.mouse(twin.mouse)
    assert len(answer.assumed) == len(twin.channels) - 1
    assert all(
        f"{channel.name} left out" in line for channel, line in zip(twin.channels[1:], answer.assumed, strict=True)
    )
    medians = np.array([[channel.median for channel in detail.behavior]], np.float32)
    medians[0, 0] = behavior[0, 0]
    np.testing.assert_allclose(answer.responses, twin.torch(image, medians, pupil_center), atol=1e-5)
    state = np.array([detail.states[1].behavior], np.float32)
    np.testing.assert_allclose(running.responses, twin.torch(image, state, pupil_center), atol=1e-5)


def test_the_gradient_is_that_of_torch_and_names_its_columns(twin: Served) -> None:
    image, behavior, pupil_center = twin.trials(2)
    weights = np.random.default_rng(0).standard_normal((2, twin.recording.n_neurons)).astype(np.float32)
    with Client(twin.url) as client:
        found = client.gradient(
            twin.mouse, image, weights=weights, behavior=twin.named(behavior), pupil_center=pupil_center
        )
    tensors = [torch.from_numpy(array).requires_grad_() for array in (image, behavior, pupil_center)]
    (twin.ensemble(twin.mouse, *tensors) * torch.from_numpy(weights)).sum().backward()
    assert found.behavior_channels == tuple(channel.name for channel in twin.channels)
    grad = tensors[1].grad
    assert grad is not None
    assert found.behavior.shape == (2, len(twin.channels))
    np.testing.assert_allclose(found.behavior, grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ({"arousal": 1}, "has no behaviour channel 'arousal'"),
        ({"running_speed": [1.0, 2.0]}, "running_speed does not fit the images"),
        ([1, 2], "behavior is not an object"),
        ({"running_speed": "fast"}, "running_speed is not a number"),
    ],
)
def test_wrong_behaviour_is_refused_with_the_channels_of_that_twin(twin: Served, behavior: Any, message: str) -> None:
    image = twin.trials(1)[0].tolist()
    reply = httpx.post(f"{twin.url}/predict", json={"mouse": twin.mouse, "image": image, "behavior": behavior})
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert message in error["message"]
    if "no behaviour channel" in message:
        assert error["expected"] == ", ".join(f"{name} [{unit}]" for name, unit in twin.channels)


def test_a_channel_of_another_twin_is_refused_and_one_given_twice(server: Server, twin: Served) -> None:
    image = twin.trials(1)[0]
    with Client(twin.url) as client:
        with pytest.raises(InvalidArgument, match="running_speed is given twice"):
            client.predict(twin.mouse, image, running_speed=1, behavior={"running_speed": 2})
        with pytest.raises(ServerError, match=r"TWO.*no behaviour channel 'pupil_dilation'.*lick_rate \[1/s\]"):
            client.predict("TWO", image, pupil_dilation=40)
    question = {"mouse": twin.mouse, "image": image.tolist(), "running_speed": 1, "behavior": {"running_speed": 2}}
    reply = httpx.post(f"{twin.url}/predict", json=question)
    assert reply.json()["error"]["message"] == "running_speed is given twice"
    tensor = {"name": "behavior", "datatype": "FP32", "shape": [1, 5], "data": [0.0] * 5}
    shown = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    reply = httpx.post(f"{twin.url}/v2/models/{twin.name}.{twin.mouse}/infer", json={"inputs": [shown, tensor]})
    assert f"(B, {len(twin.channels)}): {twin.channels[0].name} [{twin.channels[0].unit}]" in reply.json()["error"]
    bad = np.zeros((1, len(twin.channels)), np.float32)
    bad[0, 0] = np.nan
    head = json.dumps(
        {
            "inputs": [
                {**shown, "data": None, "parameters": {"binary_data_size": image.nbytes}},
                {**tensor, "data": None, "shape": list(bad.shape), "parameters": {"binary_data_size": bad.nbytes}},
            ]
        }
    ).encode()
    reply = httpx.post(
        f"{twin.url}/v2/models/{twin.name}.{twin.mouse}/infer",
        content=head + image.astype("<f4").tobytes() + bad.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert reply.status_code == 422
    assert twin.channels[0].name in reply.json()["error"]


def test_values_outside_of_what_was_recorded_are_noted_by_channel(twin: Served) -> None:
    with Client(twin.url) as client:
        first = client.mouse(twin.mouse).behavior[0]
        assert first.max is not None
        answer = client.predict(twin.mouse, twin.trials(1)[0], behavior={first.name: 10 * first.max})
    (note,) = [note for note in answer.notes if note.input == first.name]
    assert first.unit in note.message


def test_experiments_receptive_fields_and_the_command_line_know_the_channels(
    twin: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = twin.channels[-1].name
    other = next(channel.name for channel in twin.channels if channel.name not in (last, "running_speed"))
    with Client(twin.url) as client:
        result = Behavior(mouse=twin.mouse, n_images=2, behavior={other: 1.0}, channels=(last,)).run(client)
        assert result.receipt.held[other] == 1.0
        detail = client.mouse(twin.mouse)
        with pytest.raises(InvalidArgument, match=r"arousal.*whisking \[std\]|arousal.*lick_rate \[1/s\]"):
            Behavior(mouse=twin.mouse, channels=("arousal",)).run(client)
    # Against torch, at the highest value of the varied channel and the held one.
    axis = result.dataset[last].values
    behavior = np.array([[channel.median for channel in detail.behavior]] * 2, np.float32)
    names = [channel.name for channel in twin.channels]
    behavior[:, names.index(other)], behavior[:, names.index(last)] = 1.0, axis[-1]
    gaze = np.array([[channel.median for channel in detail.pupil_center]] * 2, np.float32)
    from v1t_client.insilico.experiments.behavior import pink_noise  # beside its use
    from v1t_client.insilico.stimuli.screen import Screen

    shown = pink_noise(Screen.of(detail), 2, np.random.default_rng(0))[:, None]
    expected = twin.torch(shown, behavior, gaze).mean(0)
    np.testing.assert_allclose(result.dataset[f"response_{last}"].values[:, -1], expected, atol=1e-5)

    np.save(tmp_path / "image.npy", twin.trials(1)[0])
    out = tmp_path / "responses.npy"
    command = ["predict", str(tmp_path / "image.npy"), "--mouse", twin.mouse, "--url", twin.url, "--output", str(out)]
    assert v1t([*command, "--behavior", f"{other}=0.5", "--behavior", f"{last}=1"]) == 0
    with Client(twin.url) as client:
        same = client.predict(twin.mouse, twin.trials(1)[0], behavior={other: 0.5, last: 1.0})
    np.testing.assert_allclose(np.load(out), same.responses, atol=1e-6)
    assert (
        v1t(
            [
                "rf",
                twin.mouse,
                "--url",
                twin.url,
                "--images",
                "100",
                "--output",
                str(tmp_path / "rf"),
                "--behavior",
                f"{other}=1",
            ]
        )
        == 0
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        v1t([*command, "--behavior", f"{other}=0.5", "--behavior", f"{other}=1"])
    assert f"{other} is given twice" in capsys.readouterr().err


def test_the_served_twin_scores_like_the_checkpoint(twin: Served) -> None:
    trained = evaluate(twin.ensemble, [twin.recording])[twin.mouse]
    with Client(twin.url) as client:
        served = evaluate_served(client, twin.mouse, twin.recording.path)
    np.testing.assert_allclose(served.single_trial_correlation, trained.neurons["single_trial_correlation"], atol=1e-4)
    assert served.assumed == ()


def test_older_servers_refuse_such_a_bundle(twin: Served, server: Server) -> None:
    manifest = load_manifest(server.work / "bundles" / twin.name)  # type: ignore[attr-defined]
    assert manifest.schema_version == 2
