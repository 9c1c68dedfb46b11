"""The client against the service's own routes, in one process: the contract as both sides read it."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import v1t_client
from PIL import Image
from v1t_client import AsyncClient

from server.api.app import create_app
from server.api.middleware import RequestMiddleware
from server.bundle.manifest import (
    BehaviorState,
    Channel,
    Distillation,
    File,
    Manifest,
    MouseRecord,
    Parity,
    Provenance,
)
from server.bundle.neurons import NeuronTable
from server.inference.engine import Prediction, Stimulus
from server.inference.gradients import Gradient
from server.inference.stage_timer import StageTimer
from server.serving.context import Context
from server.settings import Settings

SHAPE = (1, 18, 32)
N_NEURONS = {"A": 31, "B": 17}
BEHAVIOR_MEANS = (40.0, 0.5, 3.25)
PUPIL_MEANS = (2.0, -1.0)
BEHAVIOR_MEDIANS, PUPIL_MEDIANS = ([mean + 0.5 for mean in means] for means in (BEHAVIOR_MEANS, PUPIL_MEANS))


RUNNING = BehaviorState(
    name="running", definition="fast", trials=12, behavior=[44.0, 0.25, 17.0], pupil_center=[331.0, 221.5]
)


class FormulaEngine:
    """An engine without graphs: each neuron is a weighted sum of what it is shown, so a test can do the same."""

    provider = "CPUExecutionProvider"
    precision = "fp32"
    device = "cpu"
    max_batch = 8

    def __init__(self, rng: np.random.Generator) -> None:
        self.neurons = {
            mouse: NeuronTable(
                ids=rng.permutation(np.arange(100, 9000))[:n].astype(np.int64),
                coordinates=rng.normal(0, 100, (n, 3)).astype(np.float32),
                response_std=rng.uniform(0.5, 2, n).astype(np.float32),
                scores={"single_trial_correlation": rng.uniform(-0.1, 0.9, n).astype(np.float32)},
            )
            for mouse, n in N_NEURONS.items()
        }
        self.bundle = Path("formula")
        self.stages = StageTimer()
        self.manifest = _manifest()
        self.hash = self.manifest.hash
        n_inputs = int(np.prod(SHAPE)) + 5
        self.weights = {mouse: rng.normal(0, 1, (n, n_inputs)) for mouse, n in N_NEURONS.items()}

    def warm_up(self) -> None:
        """There is nothing to load."""

    def response(self, mouse: str, image: Any, behavior: Any, pupil_center: Any) -> np.ndarray:
        """(B, N) of all neurons."""
        inputs = [np.reshape(image, (len(image), -1)) / 255, behavior, pupil_center]
        return (np.concatenate(inputs, axis=1) @ self.weights[mouse].T).astype(np.float32)

    def predict_many(self, stimuli: Sequence[Stimulus]) -> list[Prediction]:
        answers = []
        for stimulus in stimuli:
            all_neurons = self.response(stimulus.mouse_id, stimulus.image, stimulus.behavior, stimulus.pupil_center)
            chosen = all_neurons if stimulus.neurons is None else all_neurons[:, stimulus.neurons]
            answers.append(Prediction(chosen, np.abs(chosen) / 8))
        return answers

    def gradient(
        self, mouse: str, image: Any, behavior: Any, pupil_center: Any, weights: Any, neurons: Any = None
    ) -> Gradient:
        rows = slice(None) if neurons is None else neurons
        weights = np.broadcast_to(weights, (len(image), weights.shape[-1]))
        slope = (weights @ self.weights[mouse][rows]).astype(np.float32)  # (B, n_inputs)
        of_image = slope[:, :-5].reshape(np.shape(image)) / 255
        response = self.response(mouse, image, behavior, pupil_center)[:, rows]
        return Gradient(response, of_image, slope[:, -5:-2], slope[:, -2:])

    def attention_rollout(self, mouse: str, image: Any, behavior: Any, pupil_center: Any) -> np.ndarray:
        """(M, B, h, w): for each member the image at another scale, and a trace of the other inputs."""
        shift = np.sum(behavior, axis=1) + np.sum(pupil_center, axis=1)
        maps = np.asarray(image)[:, 0] / 255 + shift[:, None, None] / 1000
        return np.stack([maps, maps / 2]).astype(np.float32)


def _range(mean: float) -> dict[str, float]:
    return {"min": mean - 1000, "max": mean + 1000, "median": mean + 0.5}


def _manifest() -> Manifest:
    file = File(path="nothing.onnx", sha256=hashlib.sha256(b"").hexdigest(), bytes=0)
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    units = ("eye-camera px", "eye-camera px/s", "cm/s")
    behavior = [
        Channel(name=name, unit=unit, mean=mean, std=1.0, percentiles={"5": mean - 2}, **_range(mean))
        for name, unit, mean in zip(names, units, BEHAVIOR_MEANS, strict=True)
    ]
    pupil = [
        Channel(name=f"pupil_center_{axis}", unit="eye-camera px", mean=mean, std=1.0, **_range(mean))
        for axis, mean in zip("xy", PUPIL_MEANS, strict=True)
    ]
    mice = {
        mouse: MouseRecord(
            mouse_id=mouse,
            data_key=f"key-{mouse}",
            mouse_index=i,
            image_shape=SHAPE,
            image_channels=[Channel(name="luminance", unit="grey level", mean=110.0, std=60.0)],
            behavior=behavior,
            pupil_center=pupil,
            states=[RUNNING],
            uses=["image", "behavior", "pupil_center"],
            standardized_inputs=False,
            n_neurons=n,
            neurons=file,
            stems=[file],
            readouts=[file] * 2,
            ensemble=file,
            parity=Parity(max_abs_error=0.0, bound=1e-4, samples=1, worst_neuron=0),
            scores={"single_trial_correlation": 0.4},
        )
        for i, (mouse, n) in enumerate(N_NEURONS.items())
    }
    return Manifest(
        name="formula",
        members=2,
        simulated=True,
        notice="A formula.",
        configs=[{}, {}],
        cores=[file] * 2,
        mice=mice,
        provenance=Provenance(
            created="2024-01-01T00:00:00Z",
            source="distilled",
            distillation=Distillation(
                teacher=["7eac", "4e12"],
                budget=20,
                speedup=24.5,
                images="both",
                generated=100,
                agreement={"A": {"natural_median": 0.9}, "B": {"natural_median": 0.8, "noise_median": 0.7}},
            ),
        ),
        licence="MIT",
        citation="nobody",
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.fixture
def engine(rng) -> FormulaEngine:
    return FormulaEngine(rng)


@pytest.fixture
async def client(engine, tmp_path):
    bundle = tmp_path / "formula"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}", encoding="utf-8")  # the repository finds it; the engine is handed in
    settings = Settings(bundles=(tmp_path,), max_images=16)
    context = Context.open(settings, load=lambda bundle, settings: engine)
    context.batcher.start()
    await context.repository.load()
    app = RequestMiddleware(create_app(context), context=context)
    async with AsyncClient(transport=httpx.ASGITransport(app), retries=0) as client:
        yield client
    await context.batcher.close()


async def test_every_input_reaches_its_place(client, engine, rng):
    images = rng.integers(0, 256, (11, *SHAPE)).astype(np.float32)
    behavior, pupil_center = rng.normal(0, 3, (11, 3)), rng.normal(0, 3, (11, 2))
    order = rng.permutation(N_NEURONS["A"])[:9]
    table = engine.neurons["A"]
    prediction = await client.predict(
        "A",
        images,
        pupil_dilation=behavior[:, 0],
        pupil_dilation_derivative=behavior[:, 1],
        running_speed=behavior[:, 2],
        pupil_center=pupil_center,
        neuron_ids=table.ids[order],
        units="raw",
        spread=True,
        model="formula",
    )
    expected = engine.response("A", images, behavior, pupil_center)[:, order] * table.response_std[order]
    np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prediction.spread, np.abs(expected) / 8, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prediction.neuron_ids, table.ids[order])
    assert prediction.model == v1t_client.Model("formula", engine.hash, 2, True, "A formula.", "1")
    assert (prediction.units, prediction.assumed) == ("raw", ())


async def test_a_state_fills_in_and_the_client_knows_its_values_before(client, engine, rng):
    images = rng.integers(0, 256, (2, *SHAPE)).astype(np.float32)
    mouse = await client.mouse("A")
    for state in ("median", "mean", "running"):
        prediction = await client.predict("A", images, state=state)
        assert (prediction.state, len(prediction.assumed)) == (state, 4)
        values = list(mouse.state_values(state).values())
        expected = engine.response("A", images, [values[:3]] * 2, [values[3:]] * 2)
        np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)
    assert (await client.predict("A", images)).state == "median"
    with pytest.raises(v1t_client.InvalidRequest, match="median or mean or running"):
        await client.predict("A", images, state="rest")


async def test_what_is_outside_the_recording_is_noted_in_every_kind_of_answer_and_refused_with_strict(client, rng):
    images = rng.integers(0, 256, (3, *SHAPE)).astype(np.float32)
    far = {"running_speed": [3.0, 90_000, 3.0]}
    weights = np.ones(N_NEURONS["A"])
    for answer in (
        await client.predict("A", images, **far),
        await client.gradient("A", images, weights=weights, **far),
        await client.attention("A", images, **far),
        (await client.predict_mice(["A", "B"], images, **far))["B"],
        await client.predict_many("A", images, chunk=1, **far),
    ):
        (note,) = answer.notes
        assert (note.code, note.input, note.count) == ("outside_recording", "running_speed", 1)
        assert "9e+04" in note.message or "90000" in note.message or "90,000" in note.message
    for refused in (
        client.predict("A", images, strict=True, **far),
        client.gradient("A", images, weights=weights, strict=True, **far),
        client.attention("A", images, strict=True, **far),
        client.predict_many("A", images, strict=True, **far),
    ):
        with pytest.raises(v1t_client.OutsideRecording, match="running_speed"):
            await refused
    assert (await client.predict("A", images, strict=True)).notes == ()


async def test_one_value_for_all_images_and_one_image_as_an_array(client, engine, rng):
    image = rng.integers(0, 256, SHAPE[1:], dtype=np.uint8)
    prediction = await client.predict(
        "B", image, pupil_dilation=1, pupil_dilation_derivative=2, running_speed=3, pupil_center=[4, 5]
    )
    expected = engine.response("B", image[None], [[1, 2, 3]], [[4, 5]])
    np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prediction.neuron_ids, engine.neurons["B"].ids)


async def test_what_is_left_out_is_the_training_median_and_said(client, engine, rng):
    images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    prediction = await client.predict("A", images, running_speed=[7, 8])
    behavior = [[*BEHAVIOR_MEDIANS[:2], speed] for speed in (7, 8)]
    expected = engine.response("A", images, behavior, [PUPIL_MEDIANS] * 2)
    np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)
    assert [line.split(" left out")[0] for line in prediction.assumed] == [
        "pupil_dilation",
        "pupil_dilation_derivative",
        "pupil_center",
    ]


@pytest.mark.parametrize("given", ["path", "bytes", "pillow", "npy", "list", "mixed"])
async def test_every_form_of_an_image_gives_the_same_responses(client, engine, rng, tmp_path, given):
    pixels = rng.integers(0, 256, (2, *SHAPE[1:]), dtype=np.uint8)
    pictures = [Image.fromarray(page) for page in pixels]
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[i])
    np.save(tmp_path / "both.npy", pixels[:, None])
    buffer = io.BytesIO()
    np.save(buffer, pixels[1][None])
    forms: dict[str, Any] = {
        "path": paths,
        "bytes": [Path(path).read_bytes() for path in paths],
        "pillow": pictures,
        "npy": tmp_path / "both.npy",
        "list": list(pixels),
        "mixed": [str(paths[0]), buffer.getvalue()],
    }
    prediction = await client.predict("A", forms[given])
    expected = engine.response("A", pixels[:, None], [BEHAVIOR_MEDIANS] * 2, [PUPIL_MEDIANS] * 2)
    np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("units", ["standardized", "raw"])
async def test_a_gradient_per_image_is_that_of_its_own_weights(client, engine, rng, units):
    images = rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    behavior, pupil_center = rng.normal(0, 3, (5, 3)), rng.normal(0, 3, (5, 2))
    order = rng.permutation(N_NEURONS["A"])[:4]
    weights, table = rng.normal(0, 1, (5, 4)), engine.neurons["A"]
    gradient = await client.gradient(
        "A",
        images,
        weights=weights,
        pupil_dilation=behavior[:, 0],
        pupil_dilation_derivative=behavior[:, 1],
        running_speed=behavior[:, 2],
        pupil_center=pupil_center,
        neuron_ids=table.ids[order],
        units=units,
    )
    std = table.response_std[order] if units == "raw" else np.ones(4)
    slope = (weights * std) @ engine.weights["A"][order]  # (B, n_inputs): the formula is linear
    np.testing.assert_allclose(gradient.image, slope[:, :-5].reshape(images.shape) / 255, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.behavior, slope[:, -5:-2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient.pupil_center, slope[:, -2:], rtol=1e-4, atol=1e-5)
    responses = engine.response("A", images, behavior, pupil_center)[:, order] * std
    np.testing.assert_allclose(gradient.responses, responses, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(gradient.neuron_ids, table.ids[order])
    assert (gradient.units, gradient.model.hash, gradient.assumed) == (units, engine.hash, ())


async def test_weights_of_all_neurons_hold_for_all_images(client, engine, rng):
    images = rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    weights = rng.normal(0, 1, N_NEURONS["B"])
    gradient = await client.gradient("B", images, weights=weights)
    expected = (weights @ engine.weights["B"])[:-5].reshape(SHAPE) / 255
    for image in gradient.image:
        np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient.neuron_ids, engine.neurons["B"].ids)
    assert len(gradient.assumed) == 4  # three behaviour values and the pupil centre
    assert "3 images, 17 neurons" in repr(gradient)


async def test_attention_maps_come_per_image_and_member(client, engine, rng):
    images = rng.integers(0, 256, (11, *SHAPE), dtype=np.uint8)
    speeds = rng.uniform(0, 9, 11)
    attention = await client.attention("A", images, running_speed=speeds, pupil_center=[4, 5])
    behavior = [[*BEHAVIOR_MEDIANS[:2], speed] for speed in speeds]
    expected = engine.attention_rollout("A", images, behavior, [[4, 5]] * 11).swapaxes(0, 1)  # (B, M, h, w)
    np.testing.assert_allclose(attention.maps, expected, rtol=1e-5)
    np.testing.assert_allclose(attention.mean(), expected.mean(1), rtol=1e-5)
    assert (attention.mouse, attention.model.members, len(attention.assumed)) == ("A", 2, 2)
    assert "11 images x 2 members" in repr(attention)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"weights": np.ones(3)}, v1t_client.InvalidRequest, "weights"),
        ({"weights": np.ones((3, 2))}, v1t_client.InvalidRequest, "weights"),
        ({"weights": 1.0}, v1t_client.InvalidArgument, "(B, n)"),
        ({"weights": [1, np.nan]}, v1t_client.InvalidArgument, "NaN"),
        ({"weights": [[1, 2], [3]]}, v1t_client.InvalidArgument, "ragged"),
        ({"neuron_ids": [5, 6]}, v1t_client.NotFound, "GET /mice/A/neurons"),
    ],
)
async def test_weights_that_do_not_fit_are_refused(client, engine, change, kind, says):
    asked = {"weights": [1, 2], "neuron_ids": engine.neurons["A"].ids[:2], **change}
    with pytest.raises(kind) as refused:
        await client.gradient("A", np.zeros(SHAPE, np.uint8), **asked)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"mouse": "Q"}, v1t_client.NotFound, "GET /mice lists them"),
        ({"model": "other"}, v1t_client.NotFound, "formula"),
        ({"image": np.zeros((1, 20, 20))}, v1t_client.InvalidRequest, "resize"),
        ({"image": np.zeros((2, *SHAPE[1:]))}, v1t_client.InvalidRequest, "(1, 18, 32)"),
        ({"image": np.zeros((17, *SHAPE))}, v1t_client.TooLarge, "at most 16"),
        ({"image": b"\x89PNG\r\n\x1a\nnothing"}, v1t_client.InvalidRequest, "image"),
        ({"neuron_ids": [5, 6]}, v1t_client.NotFound, "GET /mice/A/neurons"),
        ({"neuron_ids": []}, v1t_client.InvalidRequest, "neuron_ids"),
        ({"units": "spikes"}, v1t_client.InvalidRequest, "'standardized' or 'raw'"),
        ({"resize": "stretch"}, v1t_client.InvalidRequest, "'fit', 'fill' or 'crop'"),
        ({"running_speed": [1, 2, 3]}, v1t_client.InvalidRequest, "running_speed"),
        ({"pupil_center": [1, 2, 3]}, v1t_client.InvalidRequest, "pupil_center"),
    ],
)
async def test_what_the_server_refuses_is_told_as_it_said_it(client, change, kind, says):
    with pytest.raises(kind) as refused:
        await client.predict(**{"mouse": "A", "image": np.zeros(SHAPE, np.uint8), **change})
    assert says in str(refused.value)
    assert refused.value.request_id
    assert 400 <= refused.value.status < 500


async def test_resizing_is_said(client):
    prediction = await client.predict("A", np.zeros((1, 40, 40), np.uint8), resize="fit")
    assert any("40 x 40" in line for line in prediction.assumed)


async def test_mice_and_neurons_are_described(client, engine):
    mice = await client.mice()
    assert [(mouse.mouse_id, mouse.n_neurons, mouse.image_shape) for mouse in mice] == [
        ("A", 31, SHAPE),
        ("B", 17, SHAPE),
    ]
    mouse = await client.mouse("B", model="formula")
    assert mouse.bundle.hash == engine.hash
    assert mouse.channel("running_speed").mean == 3.25
    assert (mouse.data_key, mouse.licence, mouse.scores) == ("key-B", "MIT", {"single_trial_correlation": 0.4})
    assert (mouse.teacher, mouse.agreement) == (("7eac", "4e12"), {"natural_median": 0.8, "noise_median": 0.7})
    whole, table = await client.neurons("A"), engine.neurons["A"]
    np.testing.assert_array_equal(whole.neuron_ids, table.ids)
    np.testing.assert_array_equal(whole.coordinates_um, table.coordinates)
    np.testing.assert_array_equal(whole.response_std, table.response_std)
    assert whole.readout_position_px is None  # as of an older bundle
    x = table.coordinates[:, 0]
    score = table.scores["single_trial_correlation"]
    chosen = await client.neurons("A", x_min=-80, x_max=90, score_min=0.2)
    np.testing.assert_array_equal(chosen.neuron_ids, table.ids[(x >= -80) & (x <= 90) & (score >= 0.2)])
    with pytest.raises(v1t_client.InvalidRequest, match="no such score"):
        await client.neurons("A", score="charm")


async def test_concurrent_questions_for_two_mice_get_their_own_answers(client, engine, rng):
    images = rng.integers(0, 256, (60, *SHAPE), dtype=np.uint8)
    mice = ["AB"[i % 2] for i in range(60)]
    predictions = await asyncio.gather(*(client.predict(mice[i], images[i], running_speed=i) for i in range(60)))
    for i, prediction in enumerate(predictions):
        expected = engine.response(mice[i], images[i][None], [[*BEHAVIOR_MEDIANS[:2], i]], [PUPIL_MEDIANS])
        np.testing.assert_allclose(prediction.responses, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(prediction.neuron_ids, engine.neurons[mice[i]].ids)
