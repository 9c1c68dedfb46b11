"""States, strictness and notes: what is sent and read, and that a large set keeps its notes without repetitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.contract_server import FASTEST, SHAPE, SPEEDS, ContractServer, error_reply, npy_reply
from v1t_client import AsyncClient, BehaviorState, Client, Note, OutsideRecording, V1TError
from v1t_client._answers.notes import merged

IMAGES = np.random.default_rng(5).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
FAST = np.array([3.0, FASTEST + 20, 5, FASTEST + 1])


def test_a_state_fills_in_what_is_left_out_and_is_named_in_the_answer(server, client):
    for state, speed in SPEEDS.items():
        prediction = client.predict("A", IMAGES, state=state)
        expected = server.responses(IMAGES, np.full(4, speed), server.neuron_ids["A"])
        np.testing.assert_array_equal(prediction.responses, expected)
        assert prediction.state == prediction.to_dict()["state"] == state
    with pytest.raises(V1TError, match="no such state"):
        client.predict("A", IMAGES, state="rest")


def test_what_is_outside_the_recording_is_noted_and_refused_with_strict(server, client):
    prediction = client.predict("A", IMAGES, running_speed=FAST)
    assert prediction.notes == (
        Note("outside_recording", "running_speed", "2 of 4 images: 80 cm/s is above the recorded 60"),
    )
    assert "80 cm/s" in repr(prediction)
    assert prediction.to_dict()["notes"][0]["input"] == "running_speed"
    assert "80 cm/s" in prediction.to_xarray().attrs["notes"]
    with pytest.raises(OutsideRecording, match="80 cm/s"):
        client.predict("A", IMAGES, running_speed=FAST, strict=True)
    assert client.predict("A", IMAGES, running_speed=3, strict=True).notes == ()
    assert json.loads(server.seen[-1].form["strict"]) is True


async def test_the_async_client_has_them_too(server):
    async with AsyncClient(transport=server.transport()) as client:
        prediction = await client.predict_many("A", IMAGES, running_speed=FAST, chunk=1)
        assert prediction.notes[0].count == 2
        with pytest.raises(OutsideRecording):
            await client.predict("A", IMAGES, running_speed=FAST, strict=True)


def test_a_gradient_and_attention_have_notes(server, client):
    about = {"model": {"name": "demo", "hash": "cd"}, "mouse": "A", "units": "standardized", "neuron_ids": [9, 8]}
    about |= {"state": "running", "notes": [{"code": "outside_recording", "input": "image", "message": "too bright"}]}
    shapes = [(1, *SHAPE), (1, 2), (1, 3), (1, 2)]
    body = b"".join(npy_reply(np.ones(shape, np.float32), {})[2] for shape in shapes)
    header = npy_reply(np.ones((1, 1, 2, 2), np.float32), about)
    server.script += [(200, header[1], body), header]
    gradient = client.gradient("A", IMAGES[0], weights=[1, 1], state="running")
    attention = client.attention("A", IMAGES[0], state="running")
    for answer in (gradient, attention):
        assert (answer.state, answer.notes[0].message) == ("running", "too bright")
        assert "too bright" in repr(answer)
    assert [seen.form["state"] for seen in server.seen] == ["running"] * 2


def test_a_large_set_says_each_note_once_with_its_count(server, client, tmp_path):
    images = np.repeat(IMAGES, 10, axis=0)
    speeds = np.where(np.arange(40) % 8 == 0, 99.0, 3.0)  # in 5 of 10 chunks
    prediction = client.predict_many("A", images, running_speed=speeds, chunk=4)
    assert [(note.input, note.count) for note in prediction.notes] == [("running_speed", 5)]
    assert str(prediction.notes[0]).endswith("(and in 4 more replies)")


def test_a_file_of_responses_keeps_notes_and_names_also_those_from_before_an_interruption(server, client, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(9):
        np.save(tmp_path / "images" / f"{i}.npy", IMAGES[i % 4])
    speeds = np.array([3.0, 99, 3, 3, 3, 3, 3, 3, 99])

    class Stops(ContractServer):
        def _predict(self, seen):
            return super()._predict(seen) if len(self.seen) < 4 else error_reply(422, "invalid_input", "stop")

    def ask(client: Client):
        output = tmp_path / "r.npy"
        return client.predict_many("A", tmp_path / "images", running_speed=speeds, output=output, chunk=2, in_flight=1)

    with Client(transport=Stops().transport()) as first, pytest.raises(V1TError, match="stop"):
        ask(first)
    prediction = ask(client)
    assert [(note.input, note.count) for note in prediction.notes] == [("running_speed", 2)]
    beside = json.loads((tmp_path / "r.npy.json").read_text(encoding="utf-8"))
    assert beside["notes"] == prediction.to_dict()["notes"]
    assert beside["images"] == [f"{i}.npy" for i in range(9)] == list(prediction.images)
    assert beside["neuron_ids"] == server.neuron_ids["A"].tolist()
    assert (beside["mouse"], beside["model"]["simulated"], beside["state"]) == ("A", True, "median")
    assert len(np.load(tmp_path / "r.npy")) == 9
    with pytest.raises(V1TError, match="exists already"):
        ask(client)


def test_notes_of_one_code_and_input_are_one():
    notes = [Note("a", "x", "1"), Note("a", "y", "2"), Note("a", "x", "3", 4), Note("b", "x", "5")]
    assert merged(notes) == (Note("a", "x", "1", 5), Note("a", "y", "2"), Note("b", "x", "5"))


def test_a_mouse_has_its_states_and_ranges(server, client):
    server.standardized = True
    mouse = client.mouse("A")
    assert mouse.states == (BehaviorState("running", "|running speed| of at least 1 cm/s", 321, (52.5, 14.5), (3.5,)),)
    assert mouse.state_values("running") == {"pupil_dilation": 52.5, "running_speed": 14.5, "pupil_center_x": 3.5}
    assert mouse.state_values("median") == {"pupil_dilation": 40.0, "running_speed": 0.05}  # without a median: the mean
    assert mouse.state_values("mean") == {"pupil_dilation": 40.0, "running_speed": 3.2}
    with pytest.raises(V1TError, match="median, mean, running"):
        mouse.state_values("rest")
    channel = mouse.channel("luminance")
    assert (channel.image_mean, channel.image_contrast) == ((20.0, 190.0), (3.0, 80.0))
    assert mouse.standardized_inputs
    assert client.mice()[0].standardized_inputs
    assert client.predict("A", IMAGES.astype(np.float32)).notes[0].code == "standardized_inputs"
