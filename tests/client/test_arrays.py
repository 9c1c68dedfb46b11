"""What users pass as arrays: tensors, masked arrays, files of several frames; and that every error is a V1TError."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from support.contract_server import MEDIAN_SPEED, SHAPE, json_reply, npy_reply
from v1t_client import AsyncClient, Client, InvalidArgument, V1TError
from v1t_client._file_types import load_npy


class FakeGpuTensor:
    """Like a tensor on a GPU: numpy cannot read it before `cpu()`."""

    def __init__(self, values: np.ndarray, *, on_gpu: bool = True) -> None:
        self.values, self.on_gpu = values, on_gpu

    def detach(self) -> FakeGpuTensor:
        return self

    def cpu(self) -> FakeGpuTensor:
        return FakeGpuTensor(self.values, on_gpu=False)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.values


@pytest.mark.parametrize("kind", ["gradient", "bfloat16", "gpu", "plain"])
@pytest.mark.parametrize("method", ["predict", "predict_many", "list"])
def test_tensors_are_answered_as_their_values(server, client, rng, kind, method):
    images = rng.integers(0, 256, (3, *SHAPE)).astype(np.float32)  # exact in bfloat16
    speeds = np.array([0.5, 2, 30], dtype=np.float32)
    of = {
        "gradient": lambda x: torch.tensor(x, requires_grad=True),
        "bfloat16": lambda x: torch.tensor(x).bfloat16(),
        "gpu": FakeGpuTensor,
        "plain": torch.tensor,
    }[kind]
    if method == "predict_many":
        prediction = client.predict_many("A", of(images), running_speed=of(speeds), chunk=2)
    elif method == "list":
        prediction = client.predict("A", [of(image) for image in images], running_speed=of(speeds))
    else:
        prediction = client.predict("A", of(images), running_speed=of(speeds))
    np.testing.assert_array_equal(prediction.responses, server.responses(images, speeds, server.neuron_ids["A"]))


def test_one_masked_value_is_refused_wherever_it_is_and_an_empty_mask_is_not(server, client, rng, tmp_path):
    images = np.ma.masked_array(rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8), mask=False)
    expected = server.responses(images.data, np.full(3, MEDIAN_SPEED), server.neuron_ids["A"])
    for given in (images, list(images)):
        np.testing.assert_array_equal(client.predict("A", given).responses, expected)
    np.testing.assert_array_equal(client.predict_many("A", images, chunk=2).responses, expected)
    server.seen.clear()
    hole = images.copy()
    hole[1, 0, 3, 4] = np.ma.masked
    speeds = np.ma.masked_array([1.0, 2, 3], mask=[0, 0, 1])
    for call in (
        lambda: client.predict("A", hole),
        lambda: client.predict("A", list(hole)),
        lambda: client.predict_many("A", hole),
        lambda: client.predict("A", images, running_speed=speeds),
        lambda: client.predict("A", images, running_speed=[1.0, np.ma.masked, 2.0]),
        lambda: client.predict_many("A", images, running_speed=speeds),
        lambda: client.predict("A", images, neuron_ids=np.ma.masked_array([1, 2], mask=[1, 0])),
        lambda: client.gradient("A", images, weights=np.ma.masked_array([1.0, 2], mask=[1, 0])),
    ):
        with pytest.raises(InvalidArgument, match="masked"):
            call()
    assert server.seen == []


def test_a_pillow_image_of_several_frames_is_refused_by_name(server, client, tmp_path):
    frames = [PillowImage.new("L", (64, 36), color) for color in (0, 128)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with PillowImage.open(tmp_path / "moving.png") as image, pytest.raises(InvalidArgument, match=r"moving\.png of 2"):
        client.predict("A", image)
    with PillowImage.open(tmp_path / "moving.png") as image:
        image.seek(1)
        client.predict("A", image.copy())  # what the hint says
    pixels = np.asarray(PillowImage.open(io.BytesIO(server.seen[0].images[0][2])))
    assert (pixels == 128).all()


NO_ARRAY = [object(), {"a": 1}, {1, 2}, b"x", "x", 1j, [[1], [1, 2]], [object()], np.array(["a"]), [None], float("nan")]


@pytest.mark.parametrize("name", ["pupil_dilation", "running_speed", "pupil_center", "neuron_ids", "weights"])
def test_whatever_is_passed_for_numbers_the_error_is_a_v1t_error(client, name):
    image = np.zeros(SHAPE, np.uint8)
    ask = client.gradient if name == "weights" else client.predict
    for value in NO_ARRAY:
        with pytest.raises(V1TError):
            ask("A", image, **{name: value})


class Hostile:
    """Raises in every way of reading it as an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    "call",
    [
        *(
            lambda c, v=value: c.predict("A", v)
            for value in [*NO_ARRAY, Hostile(), None, 3, [Hostile()], "\0", "a\ud800"]
        ),
        *(lambda c, v=value: c.predict_many("A", v) for value in [Hostile(), 3, None, "\0", b"", [[]], {}, "a\ud800"]),
        *(
            lambda c, n=name, v=value: c.predict("A", np.zeros(SHAPE), **{n: v})
            for name in ("units", "resize", "model", "state")
            for value in (3, object(), ["raw"], "\ud800")
        ),
        *(lambda c, v=value: c.predict(v, np.zeros(SHAPE)) for value in (None, 3, b"A", "\ud800", "")),
        *(lambda c, v=value: c.predict_mice(v, np.zeros(SHAPE)) for value in (None, 3, "A", [3], [], ["\ud800"])),
        *(lambda c, v=value: c.mouse(v) for value in (None, 3, "\ud800", "Z")),
        lambda c: c.mouse("A", model="\ud800"),
        *(lambda c, v=value: c.neurons("A", offset=v) for value in ("5", -1, 1.5)),
        lambda c: c.neurons("A", score="\ud800"),
        *(lambda c, v=value: c.wait_until_ready(v) for value in ("soon", None, -1)),
        *(
            lambda c, v=value: c.predict_many("A", np.zeros((2, *SHAPE)), output=v)
            for value in (3, "x.txt", "/no/x.npy")
        ),
        lambda c: c.predict("A", np.zeros(SHAPE), neuron_ids=[99999]),
        lambda c: c.predict("A", np.zeros(SHAPE)).select([-7]),
        lambda c: c.attention("A", np.zeros(SHAPE)),
        lambda c: Client(api_key=3),
        lambda c: Client(api_key=b"key"),
        lambda c: Client(timeout="a"),
        lambda c: Client(5),
    ],
)
def test_every_bad_argument_is_a_v1t_error(client, call):
    with pytest.raises(V1TError):
        call(client)


@pytest.mark.parametrize("value", [3, -1.5, "text", [], [3], {}, {"name": 3}, None, True, 10**400])
@pytest.mark.parametrize(
    "field", ["model", "mouse", "units", "assumed", "notes", "state", "neuron_ids", "request_id", "mice"]
)
def test_whatever_a_reply_holds_the_error_is_a_v1t_error(server, client, field, value):
    header = {"model": {"name": "demo", "hash": "cd"}, "mouse": "A", "units": "standardized", "neuron_ids": [9, 8]}
    array = np.ones((1, 2), np.float32)
    for ask in (lambda: client.predict("A", np.zeros(SHAPE)), lambda: client.predict_mice(["A"], np.zeros(SHAPE))):
        server.script.append(npy_reply(array, {**header, field: value}))
        with contextlib.suppress(V1TError):
            ask()
        server.script.clear()


@pytest.mark.parametrize("value", [3, -1.5, "text", [], [3], {}, {"name": 3}, [{"name": 3}], True, 10**400])
def test_whatever_a_mouse_is_described_by_the_error_is_a_v1t_error(server, client, value):
    good = json.loads(server._mouse("A")[2])
    for field in good:
        server.script.append(json_reply({**good, field: value}))
        with contextlib.suppress(V1TError):
            client.mouse("A")
    server.script.append((200, {"Content-Type": "application/json"}, b"[" * 100_000))
    with pytest.raises(V1TError):
        client.mouse("A")


def test_a_closed_client_says_so(server):
    client = Client(transport=server.transport())
    client.close()
    images = np.zeros((2, *SHAPE), np.uint8)
    for call in (
        lambda: client.predict("A", images),
        client.mice,
        client.ready,
        lambda: client.wait_until_ready(1),
        lambda: client.predict_many("A", images),
        lambda: client._stream("/receptive_fields", {}, accept="*/*"),
    ):
        with pytest.raises(V1TError, match="this client is closed"):
            call()


async def test_a_closed_async_client_says_so(server):
    client = AsyncClient(transport=server.transport())
    await client.aclose()
    with pytest.raises(V1TError, match="this client is closed"):
        await client.mice()


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), httpx.InvalidURL("odd"), OSError("odd"), httpx.TooManyRedirects("x")]
)
def test_whatever_the_transport_raises_is_a_v1t_error(error):
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with Client(transport=httpx.MockTransport(fail), retries=0) as client, pytest.raises(V1TError):
        client.mice()


# The names of files


def test_a_list_of_paths_keeps_their_names(server, client, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    pixels = np.zeros(SHAPE[1:], np.uint8)
    paths = [tmp_path / "a" / "2.png", tmp_path / "a" / "10.png", tmp_path / "b" / "2.png"]
    for path in paths:
        PillowImage.fromarray(pixels).save(path)
    assert client.predict("A", paths[:2]).images == ("2.png", "10.png")
    assert client.predict("A", str(paths[0])).images == ("2.png",)
    assert client.predict("A", paths).images == tuple(map(str, paths))  # as names alone they are not unique
    many = client.predict_many("A", paths, chunk=2)  # unique in each chunk, but not in the set
    assert many.images == tuple(map(str, paths))
    assert many.to_dict()["images"] == list(map(str, paths))
    assert many.to_xarray()["image"].values.tolist() == list(map(str, paths))
    assert client.predict("A", [pixels, pixels]).images == ()
    np.save(tmp_path / "stack.npy", np.zeros((2, *SHAPE), np.uint8))
    assert client.predict("A", tmp_path / "stack.npy").images == ()


# What a file is


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n", "run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--4d.png\n", "run `git annex get`"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"PK\x03\x04....", "an .npz file"),
        (b"GIF89a", "a GIF image"),
        (b"", "an empty file"),
        (b"12 13 14", "begins with b'12 13 14'"),
    ],
)
def test_a_file_that_is_something_else_is_named_by_its_bytes(server, client, tmp_path, content, words):
    for name in ("image.png", "image.npy"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidArgument, match=words):
            client.predict("A", tmp_path / name)
        with pytest.raises(InvalidArgument, match=words):
            client.predict_many("A", tmp_path / name)
    for read in (load_npy, lambda path: load_npy(path, mapped=True)):
        with pytest.raises(InvalidArgument, match=words):
            read(tmp_path / "image.npy")
    assert server.seen == []


def test_a_damaged_array_is_a_v1t_error(tmp_path):
    np.save(tmp_path / "good.npy", np.arange(12.0))
    content = (tmp_path / "good.npy").read_bytes()
    np.testing.assert_array_equal(load_npy(tmp_path / "good.npy"), np.arange(12.0))
    for n in (6, 8, 20, 60, 130):
        (tmp_path / "cut.npy").write_bytes(content[:n])
        for mapped in (False, True):
            with pytest.raises(V1TError):
                load_npy(tmp_path / "cut.npy", mapped=mapped)
    with pytest.raises(V1TError, match="No such file"):
        load_npy(tmp_path / "none.npy")
