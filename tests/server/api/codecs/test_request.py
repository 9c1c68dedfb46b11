"""From a request's fields to checked arrays: what is read, the notes about it, and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.codecs.request import Question, question_about, read_form, read_json, read_request
from server.api.codecs.schemas import PredictRequest
from server.errors import InvalidInput, MalformedBody, NotFound, TooLarge
from server.settings import Settings

SETTINGS = Settings(max_images=16, max_queue=16, max_pixels=10_000)
H, W = 8, 12  # of mouse A, which has one channel; B has (2, 4, 6)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("imported"), standardized=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def ask(twin: TinyTwin, fields: dict[str, Any]) -> Question:
    request = read_request(fields, PredictRequest)
    mouse = str(request.mouse)
    return question_about(twin.manifest.mice[mouse], request, twin.mice[mouse].neurons, SETTINGS)


def png(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def grey(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape or (H, W), dtype=np.uint8)


def encoded(file: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(file).decode()}


# What is read


def test_numbers_become_the_arrays_that_were_sent(twin: TinyTwin, rng: np.random.Generator) -> None:
    image, behavior, pupil = twin.draw("B", rng, 3)
    fields = {
        "mouse": "B",
        "image": image.tolist(),
        "pupil_dilation": behavior[:, 0].tolist(),
        "pupil_dilation_derivative": behavior[:, 1].tolist(),
        "running_speed": behavior[:, 2].tolist(),
        "pupil_center": pupil.tolist(),
    }
    got = ask(twin, fields)
    np.testing.assert_array_equal(got.stimulus.image, image)
    np.testing.assert_array_equal(got.stimulus.behavior, behavior)
    np.testing.assert_array_equal(got.stimulus.pupil_center, pupil)
    assert got.stimulus.image.dtype == got.stimulus.behavior.dtype == got.stimulus.pupil_center.dtype == np.float32
    assert got.stimulus.neurons is None
    assert (got.units, got.spread) == ("standardized", False)
    assert got.assumed == ["pupil_center is ignored: the responses of mouse B do not depend on it in this model"]


def test_one_value_applies_to_all_images(twin: TinyTwin, rng: np.random.Generator) -> None:
    image, _, _ = twin.draw("A", rng, 2)
    fields = {"image": image.tolist(), "pupil_dilation": 41, "running_speed": 3.5, "pupil_center": [240, 170.5]}
    got = ask(twin, {"mouse": "A", "pupil_dilation_derivative": 0.0, **fields})
    np.testing.assert_array_equal(got.stimulus.behavior, np.array([[41, 0, 3.5]] * 2, np.float32))
    np.testing.assert_array_equal(got.stimulus.pupil_center, np.array([[240, 170.5]] * 2, np.float32))
    assert got.assumed == []


def test_inputs_left_out_become_the_mean_where_medians_are_not_known(twin: TinyTwin, rng: np.random.Generator) -> None:
    got = ask(twin, {"mouse": "A", "image": [grey(rng).tolist()], "pupil_dilation": 41.0, "running_speed": None})
    np.testing.assert_array_equal(got.stimulus.behavior, np.array([[41.0, 0.5, 3.0]], np.float32))
    np.testing.assert_array_equal(got.stimulus.pupil_center, np.array([[250.0, 180.0]], np.float32))
    assert got.assumed == [
        f"{left_out} of mouse A was used (state=mean, as the median is not known)"
        for left_out in (
            "pupil_dilation_derivative left out: the training mean 0.5 eye-camera px/s",
            "running_speed left out: the training mean 3 cm/s",
            "pupil_center left out: the training mean (250, 180) eye-camera px",
        )
    ]
    assert got.state == "mean"


def test_without_statistics_every_input_that_is_used_must_be_given(
    imported: TinyTwin, rng: np.random.Generator
) -> None:
    fields: dict[str, Any] = {"mouse": "B", "image": imported.draw("B", rng)[0].tolist()}
    with pytest.raises(InvalidInput, match="running_speed is missing"):
        ask(imported, {**fields, "pupil_dilation": 0, "pupil_dilation_derivative": 0})
    behavior = {"pupil_dilation": 0, "pupil_dilation_derivative": 0, "running_speed": 0}
    assert ask(imported, {**fields, **behavior}).assumed == []  # B does not use the pupil centre
    with pytest.raises(InvalidInput, match="pupil_center is missing"):
        ask(imported, {"mouse": "A", "image": rng.standard_normal((H, W)).tolist(), **behavior})


def test_neurons_keep_the_order_that_was_asked_for(twin: TinyTwin, rng: np.random.Generator) -> None:
    ids = twin.mice["A"].neurons.ids
    asked = [int(ids[4]), int(ids[0]), int(ids[6])]
    got = ask(twin, {"mouse": "A", "image": grey(rng).tolist(), "neuron_ids": asked})
    np.testing.assert_array_equal(got.stimulus.neurons, [4, 0, 6])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, ">f4", ">i2"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_files_of_any_real_type_are_read(
    twin: TinyTwin, rng: np.random.Generator, dtype: Any, fortran: bool
) -> None:
    array = rng.integers(0, 120, (3, 2, 4, 6)).astype(dtype)
    file = npy(np.asfortranarray(array) if fortran else array)
    got = ask(twin, {"mouse": "B", "image": encoded(file)})
    np.testing.assert_array_equal(got.stimulus.image, array.astype(np.float32))


def test_a_png_becomes_its_grey_levels(twin: TinyTwin, rng: np.random.Generator) -> None:
    pixels = grey(rng)
    got = ask(twin, {"mouse": "A", "image": encoded(png(pixels))})
    np.testing.assert_array_equal(got.stimulus.image[0, 0], pixels)
    assert not any("grey" in text for text in got.assumed)


def test_colours_become_grey_and_the_reply_says_so(twin: TinyTwin, rng: np.random.Generator) -> None:
    pixels = grey(rng, H, W, 3)
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    for file in (png(pixels), png(pixels, "JPEG", quality=95)):
        got = ask(twin, {"mouse": "A", "image": encoded(file)})
        assert any("converted to grey" in text for text in got.assumed)
    np.testing.assert_allclose(
        ask(twin, {"mouse": "A", "image": encoded(png(pixels))}).stimulus.image[0, 0], luma, atol=1
    )


def test_several_files_make_a_batch_in_order(twin: TinyTwin, rng: np.random.Generator) -> None:
    pixels = [grey(rng) for _ in range(3)]
    parts: list[tuple[str, str | bytes]] = [("image", png(one)) for one in pixels]
    fields = read_form([("mouse", "A"), *parts, ("running_speed", "[1, 2, 3]"), ("spread", "true")], PredictRequest)
    got = ask(twin, fields)
    np.testing.assert_array_equal(got.stimulus.image[:, 0], np.stack(pixels))
    np.testing.assert_array_equal(got.stimulus.behavior[:, 2], [1, 2, 3])
    assert got.spread


def test_a_form_reads_as_the_same_json_does(twin: TinyTwin, rng: np.random.Generator) -> None:
    file = png(grey(rng))
    ids = twin.mice["A"].neurons.ids[:2].tolist()
    form = ask(
        twin,
        read_form(
            [
                ("mouse", "A"),
                ("image", file),
                ("pupil_dilation", "41"),
                ("pupil_center_x", "240.5"),
                ("pupil_center_y", "170"),
                ("neuron_ids", str(ids)),
                ("units", "raw"),
            ],
            PredictRequest,
        ),
    )
    json = ask(
        twin,
        {
            "mouse": "A",
            "image": encoded(file),
            "pupil_dilation": 41,
            "pupil_center": [240.5, 170],
            "neuron_ids": ids,
            "units": "raw",
        },
    )
    for name in ("image", "behavior", "pupil_center", "neurons"):
        np.testing.assert_array_equal(getattr(form.stimulus, name), getattr(json.stimulus, name))
    assert form.assumed == json.assumed
    assert form.units == json.units == "raw"


# Resizing


def test_fit_keeps_the_aspect_and_pads_with_the_mean(twin: TinyTwin) -> None:
    image = np.full((16, 16), 200.0)
    got = ask(twin, {"mouse": "A", "image": image.tolist(), "resize": "fit"})
    mean = twin.mice["A"].image_mean[0]
    expected = np.full((H, W), mean)
    expected[:, 2:10] = 200
    np.testing.assert_allclose(got.stimulus.image[0, 0], expected, rtol=1e-5)
    assert any("16 x 16 brought to 8 x 12: scaled to fit" in text for text in got.assumed)


def test_fill_crops_both_sides_equally(twin: TinyTwin) -> None:
    image = np.zeros((16, 48))
    image[:, 12:36] = 100  # the part that covers 8 x 12 after halving
    got = ask(twin, {"mouse": "A", "image": image.tolist(), "resize": "fill"})
    np.testing.assert_allclose(got.stimulus.image[0, 0, :, 1:-1], 100, rtol=1e-5)
    assert any("scaled to cover" in text for text in got.assumed)


def test_halving_averages_and_does_not_skip(twin: TinyTwin, rng: np.random.Generator) -> None:
    image = rng.uniform(0, 255, (4 * H, 4 * W))
    got = ask(twin, {"mouse": "A", "image": image.tolist(), "resize": "fill"}).stimulus.image[0, 0]
    blocks = image.reshape(H, 4, W, 4).mean((1, 3))
    assert np.corrcoef(got.ravel(), blocks.ravel())[0, 1] > 0.8
    assert got.std() < 0.5 * image.std()  # skipping would keep the contrast


def test_crop_takes_the_centre_unscaled(twin: TinyTwin, rng: np.random.Generator) -> None:
    image = grey(rng, 12, 18)
    got = ask(twin, {"mouse": "A", "image": encoded(png(image)), "resize": "crop"})
    np.testing.assert_array_equal(got.stimulus.image[0, 0], image[2:10, 3:15])
    with pytest.raises(InvalidInput, match="too small to crop"):
        ask(twin, {"mouse": "A", "image": grey(rng, 7, 20).tolist(), "resize": "crop"})


@pytest.mark.parametrize("how", ["fit", "fill", "crop"])
def test_an_image_of_the_right_size_is_left_alone(twin: TinyTwin, rng: np.random.Generator, how: str) -> None:
    image = grey(rng)
    got = ask(twin, {"mouse": "A", "image": [image.tolist()], "resize": how})
    np.testing.assert_array_equal(got.stimulus.image[0, 0], image)
    assert not any("brought" in text for text in got.assumed)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize("how", ["fit", "fill"])
def test_extreme_shapes_are_resized_in_little_memory(twin: TinyTwin, how: str, shape: tuple[int, int]) -> None:
    got = ask(twin, {"mouse": "A", "image": np.ones(shape).tolist(), "resize": how})
    assert got.stimulus.image.shape == (1, 1, H, W)
    assert np.isfinite(got.stimulus.image).all()


def test_every_channel_and_image_is_resized_on_its_own(twin: TinyTwin, rng: np.random.Generator) -> None:
    levels = rng.uniform(0, 255, (3, 2)).astype(np.float32)
    image = np.broadcast_to(levels[:, :, None, None], (3, 2, 8, 12))
    got = ask(twin, {"mouse": "B", "image": encoded(npy(image)), "resize": "fit"})
    np.testing.assert_allclose(got.stimulus.image, np.broadcast_to(levels[:, :, None, None], (3, 2, 4, 6)), rtol=1e-5)


# What is refused

GOOD = np.zeros((H, W)).tolist()
RAGGED = [[0.0] * W] * (H - 1) + [[0.0] * (W - 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mouse": None}, "mouse is missing"),
        ({"mouse": 3}, "mouse is not valid"),
        ({"model": ["demo"]}, "model is not valid"),
        ({"image": None}, "image is missing"),
        ({"image": 5}, "image is neither"),
        ({"image": "lena"}, "image is neither"),
        ({"image": []}, "image is an empty list"),
        ({"image": [[]]}, r"image\[0\] is an empty list"),
        ({"image": RAGGED}, r"image\[7\] differs from image\[0\]"),
        ({"image": [[*GOOD[0][:-1], True]] * H}, r"image\[0\]\[11\] is not a number"),
        ({"image": [[*GOOD[0][:-1], "1"]] * H}, r"image\[0\]\[11\] is not a number"),
        ({"image": [[*GOOD[0][:-1], None]] * H}, r"image\[0\]\[11\] is not a number"),
        ({"image": [[*GOOD[0][:-1], [1]]] * H}, r"image\[0\]\[11\] is not a number"),
        ({"image": [[[1], 2]]}, r"image\[0\]\[1\] is not a list"),
        ({"image": [[[[[1.0]]]]]}, "nested too deeply"),
        ({"image": [[*GOOD[0][:-1], 1e39]] * H}, "not finite in float32"),
        ({"image": [0.0] * W}, "another shape"),
        ({"image": [GOOD] * 2}, "another shape"),
        ({"image": [[GOOD] * 2]}, "another shape"),
        ({"image": [[0.0] * W] * (H + 1)}, "resize=fit"),
        ({"image": {"base64": "AAAA", "more": 1}}, "another kind"),
        ({"image": {"url": "http://example.org/a.png"}}, "another kind"),
        ({"image": {"base64": 5}}, "another kind"),
        ({"image": {"base64": "***"}}, "not base64"),
        ({"image": {"base64": "é"}}, "not base64"),
        ({"image": {"base64": ""}}, "not in a format that the server reads"),
        ({"image": encoded(b"GIF89a....")}, "not in a format that the server reads"),
        ({"pupil_dilation": "41"}, "pupil_dilation is not a number"),
        ({"pupil_dilation": True}, "pupil_dilation is not a number"),
        ({"pupil_dilation": {}}, "pupil_dilation is not a number"),
        ({"pupil_dilation": []}, "pupil_dilation is an empty list"),
        ({"pupil_dilation": [1, 2]}, "pupil_dilation does not fit the images"),
        ({"pupil_dilation": [[1]]}, "pupil_dilation does not fit the images"),
        ({"pupil_dilation": [False]}, r"pupil_dilation\[0\] is not a number"),
        ({"running_speed": float("nan")}, "running_speed holds a value that is not finite"),
        ({"running_speed": [float("inf")]}, "running_speed holds a value that is not finite"),
        ({"running_speed": 1e300}, "running_speed holds a value that is not finite"),
        ({"pupil_center": 5}, "pupil_center is not a pair"),
        ({"pupil_center": [1]}, "pupil_center does not fit"),
        ({"pupil_center": [1, 2, 3]}, "pupil_center does not fit"),
        ({"pupil_center": [[1, 2], [3, 4]]}, "pupil_center does not fit"),
        ({"pupil_center": [1, "2"]}, r"pupil_center\[1\] is not a number"),
        ({"pupil_center": [1, float("nan")]}, "pupil_center holds a value"),
        ({"neuron_ids": 5}, "neuron_ids is not valid"),
        ({"neuron_ids": []}, "neuron_ids is not valid"),
        ({"neuron_ids": [1.0]}, r"neuron_ids\[0\] is not valid"),
        ({"neuron_ids": [True]}, r"neuron_ids\[0\] is not valid"),
        ({"neuron_ids": ["12"]}, r"neuron_ids\[0\] is not valid"),
        ({"neuron_ids": [[1]]}, r"neuron_ids\[0\] is not valid"),
        ({"neuron_ids": [5, 5]}, "repeats an id"),
        ({"units": "spikes"}, "units is not valid"),
        ({"units": 1}, "units is not valid"),
        ({"units": ["raw"]}, "units is not valid"),
        ({"resize": "stretch"}, "resize is not valid"),
        ({"spread": 1}, "spread is not valid"),
        ({"spread": "yes"}, "spread is not valid"),
        ({"contrast": 1}, "unknown field 'contrast'"),
        ({"pupil_center_x": 1}, "unknown field 'pupil_center_x'"),
    ],
)
def test_a_bad_field_is_refused_by_name(twin: TinyTwin, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        ask(twin, {"mouse": "A", "image": GOOD, **change})
    error = refused.value
    assert error.status == 422
    assert error.expected or error.hint or error.got
    assert len(str(error.got)) < 200


def test_an_error_about_a_field_says_what_was_sent_what_is_accepted_and_where_to_look(twin: TinyTwin) -> None:
    cases: list[tuple[dict[str, Any], str, str, str, str | None]] = [
        ({"neuron_ids": []}, "neuron_ids", "[]", "a list of at least 1", "GET /mice/{mouse}/neurons lists them."),
        ({"neuron_ids": [5, "x"]}, "neuron_ids[1]", "'x'", "a valid integer", "GET /mice/{mouse}/neurons lists them."),
        ({"mouse": ["A", 3]}, "mouse[1]", "3", "a valid string", "GET /mice lists them."),
        ({"mouse": 3}, "mouse", "3", "a valid string or a valid list", "GET /mice lists them."),
        ({"units": "spikes"}, "units", "'spikes'", "'standardized' or 'raw'", None),
    ]
    for change, field, got, expected, hint in cases:
        with pytest.raises(InvalidInput) as refused:
            ask(twin, {"mouse": "A", "image": GOOD, **change})
        error = refused.value
        assert (error.message, error.got, error.expected, error.hint) == (f"{field} is not valid", got, expected, hint)


def test_an_unknown_neuron_is_not_found(twin: TinyTwin) -> None:
    known = int(twin.mice["A"].neurons.ids[0])
    for wrong in (-1, 99, 2**62):
        with pytest.raises(NotFound, match=str(wrong)):
            ask(twin, {"mouse": "A", "image": GOOD, "neuron_ids": [known, wrong]})


def test_raw_units_need_a_known_std(twin: TinyTwin, rng: np.random.Generator) -> None:
    with pytest.raises(InvalidInput, match="response std of mouse 'B' is not known"):
        ask(twin, {"mouse": "B", "image": twin.draw("B", rng)[0].tolist(), "units": "raw"})


def test_too_many_images_are_refused(twin: TinyTwin) -> None:
    for image in ([[GOOD]] * 17, encoded(npy(np.zeros((17, 1, H, W), np.uint8)))):
        with pytest.raises(TooLarge, match="too many images"):
            ask(twin, {"mouse": "A", "image": image})
    files: list[tuple[str, str | bytes]] = [("image", npy(np.zeros((9, 1, H, W), np.uint8)))] * 2
    with pytest.raises(TooLarge, match="too many images"):
        ask(twin, read_form([("mouse", "A"), *files], PredictRequest))


def test_a_picture_for_two_channels_is_refused_with_the_reason(twin: TinyTwin, rng: np.random.Generator) -> None:
    with pytest.raises(InvalidInput, match="red, green and blue are not the recording's channels"):
        ask(twin, {"mouse": "B", "image": encoded(png(grey(rng, 4, 6, 3)))})


def test_files_of_different_sizes_are_refused(twin: TinyTwin, rng: np.random.Generator) -> None:
    with pytest.raises(InvalidInput, match="image file 1 has another size"):
        ask(
            twin,
            read_form(
                [("mouse", "A"), ("image", png(grey(rng))), ("image", png(grey(rng, 9, 9))), ("resize", "fit")],
                PredictRequest,
            ),
        )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, H, W), bool), "unsupported dtype"),
        (np.zeros((1, H, W), complex), "unsupported dtype"),
        (np.zeros((1, H, W), np.longdouble), "unsupported dtype"),
        (np.zeros((1, H, W), "S3"), "unsupported dtype"),
        (np.zeros((1, H, W), [("a", "f4")]), "unsupported dtype"),
        (np.array([{"a": 1}], dtype=object), "unsupported dtype"),
        (np.full((1, H, W), np.nan, np.float32), "not finite"),
        (np.full((1, H, W), -np.inf, np.float16), "not finite"),
        (np.full((1, H, W), 1e300), "not finite"),
        (np.zeros((0, 1, H, W), np.float32), "is empty"),
        (np.zeros((), np.float32), "another shape"),
        (np.zeros((1, 1, 1, H, W), np.float32), "another shape"),
        (np.zeros((2, H, W), np.float32), "another shape"),
        (np.zeros((W, H), np.float32), "another size"),
    ],
)
def test_npy_files_of_other_kinds_are_refused(twin: TinyTwin, array: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        ask(twin, {"mouse": "A", "image": encoded(npy(array))})


def npy_header(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


@pytest.mark.parametrize(
    "file",
    [
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x09\x00" + bytes(100),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000)}"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8, 12)}"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-8, -12)}", bytes(384)),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 12)}", bytes(383)),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 12)}", bytes(385)),
        npy_header("{'descr': '<f4', 'fortran_order': 1, 'shape': (1, 8, 12)}", bytes(384)),
        npy_header("{'descr': '<f4', 'shape': (1, 8, 12)}", bytes(384)),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, True, 8, 12)}", bytes(384)),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8, 12)}", bytes(384)),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n(S'true'\ntR."),
        npy_header("__import__('os').system('true')"),
        npy_header("(" * 5000),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 12)}", bytes(384), (3, 0)),
    ],
)
def test_damaged_npy_files_are_refused(twin: TinyTwin, file: bytes) -> None:
    with pytest.raises(InvalidInput):
        ask(twin, {"mouse": "A", "image": encoded(file)})


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(200, 200), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("resize", ["fit", None])
def test_a_decompression_bomb_is_refused_by_its_header(
    twin: TinyTwin, size: tuple[int, int], resize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises((TooLarge, InvalidInput), match="too many pixels"):
        ask(twin, {"mouse": "A", "image": encoded(bomb(*size)), "resize": resize})


def test_pictures_of_other_kinds_are_refused(twin: TinyTwin, rng: np.random.Generator) -> None:
    sixteen = png(rng.integers(0, 2**16, (H, W), dtype=np.uint16))
    deep_rgb = bytearray(png(grey(rng, H, W, 3)))
    deep_rgb[24] = 16
    deep_rgb[29:33] = struct.pack(">I", zlib.crc32(bytes(deep_rgb[12:29])))
    alpha = png(grey(rng, H, W, 4))
    grey_alpha = png(grey(rng, H, W, 2))
    dark = grey(rng)
    dark[0] = 5
    keyed = png(dark, transparency=5)
    turned = Image.Exif()
    turned[0x0112] = 6
    sideways = png(grey(rng), "JPEG", exif=turned)
    cmyk = io.BytesIO()
    Image.new("CMYK", (W, H)).save(cmyk, "JPEG")
    cases = [
        (sixteen, "16-bit"),
        (bytes(deep_rgb), "16-bit"),
        (alpha, "transparent"),
        (grey_alpha, "transparent"),
        (keyed, "transparent"),
        (sideways, "rotated"),
        (cmyk.getvalue(), "unsupported pixel format"),
        (png(grey(rng), "GIF"), "not in a format that the server reads"),
        (png(grey(rng), "TIFF"), "not in a format that the server reads"),
        (png(grey(rng), "BMP"), "not in a format that the server reads"),
    ]
    for file, words in cases:
        with pytest.raises(InvalidInput, match=words):
            ask(twin, {"mouse": "A", "image": encoded(file)})


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "grey key", "colour key"])
def test_alpha_that_hides_nothing_is_dropped_and_other_alpha_is_counted(
    twin: TinyTwin, rng: np.random.Generator, kind: str
) -> None:
    level = rng.integers(1, 255, (H, W), dtype=np.uint8)
    colour = rng.integers(1, 255, (H, W, 3), dtype=np.uint8)
    indices = rng.integers(0, 4, (H, W), dtype=np.uint8)
    palette = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    n_hidden = 5

    def file(is_opaque: bool) -> bytes:
        alpha = np.full((H, W), 255, np.uint8)
        shown, table, options = [level, colour, indices], bytes([255] * 4), {}
        if not is_opaque:
            alpha.flat[:n_hidden] = rng.integers(0, 255, n_hidden)
            shown = [image.copy() for image in shown]
            for image in shown[:2]:
                image.reshape(H * W, -1)[:n_hidden] = 0
            shown[2] = np.where(indices == 3, 2, indices).astype(np.uint8)
            shown[2].flat[:n_hidden] = 3
            table = bytes([255, 255, 255, 254])
        if kind == "RGBA":
            return png(np.dstack([colour, alpha]))
        if kind == "LA":
            return png(np.dstack([level, alpha]))
        if kind == "grey key":
            return png(shown[0], transparency=0)
        if kind == "colour key":
            return png(shown[1], transparency=(0, 0, 0))
        picture = Image.fromarray(shown[2], mode="P")
        picture.putpalette(palette.tobytes())
        stream = io.BytesIO()
        picture.save(stream, "PNG", transparency=table, **options)
        return stream.getvalue()

    if kind in ("LA", "grey key"):
        expected = level.astype(float)
    else:
        r, g, b = (colour if kind != "palette" else palette[indices]).astype(float).transpose(2, 0, 1)
        expected = 0.299 * r + 0.587 * g + 0.114 * b
    got = ask(twin, {"mouse": "A", "image": encoded(file(True))})
    np.testing.assert_allclose(got.stimulus.image[0, 0], expected, atol=1)
    with pytest.raises(InvalidInput, match=f"transparent pixels; got {n_hidden} of {H * W} pixels"):
        ask(twin, {"mouse": "A", "image": encoded(file(False))})


def test_files_of_several_frames_are_refused_by_name(twin: TinyTwin, rng: np.random.Generator) -> None:
    frames = [Image.fromarray(grey(rng)) for _ in range(3)]
    for format, words in (("PNG", "an animated PNG; got 3 frames"), ("MPO", r"several pictures \(MPO\); got 3 frames")):
        stream = io.BytesIO()
        frames[0].save(stream, format, save_all=True, append_images=frames[1:])
        with pytest.raises(InvalidInput, match=words):
            ask(twin, {"mouse": "A", "image": encoded(stream.getvalue())})
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True)  # one frame is an image
    assert ask(twin, {"mouse": "A", "image": encoded(stream.getvalue())}).stimulus.image.shape == (1, 1, H, W)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_truncated_pictures_are_refused(twin: TinyTwin, rng: np.random.Generator, format: str) -> None:
    file = png(grey(rng), format)
    ends = [*range(0, len(file) - 1, 7), len(file) - 3] if format == "PNG" else range(0, len(file) - 30, 11)
    for end in ends:
        with pytest.raises(InvalidInput):
            ask(twin, {"mouse": "A", "image": encoded(file[:end])})


def test_flipped_bytes_never_escape_as_another_error(twin: TinyTwin, rng: np.random.Generator) -> None:
    files = [png(grey(rng)), png(grey(rng, H, W, 3), "JPEG"), npy(grey(rng)), png(grey(rng), "JPEG", progressive=True)]
    for file in files:
        for _ in range(150):
            damaged = bytearray(file)
            for position in rng.integers(0, len(file), 3):
                damaged[position] = rng.integers(0, 256)
            try:
                got = ask(twin, {"mouse": "A", "image": encoded(bytes(damaged)), "resize": "fit"})
            except (InvalidInput, TooLarge):
                continue
            assert got.stimulus.image.shape == (1, 1, H, W)
            assert np.isfinite(got.stimulus.image).all()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"mouse": NaN}',
        b'{"mouse": Infinity}',
        b'{"mouse": 1e999}',
        b"[" * 100_000,
        b"{'a': 1}",
    ],
)
def test_a_body_that_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody) as refused:
        read_json(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b'{"running_speed": NaN}', "NaN at line 1, column 19, after '{\"running_speed\": '"),
        (b'{"mouse": "A",\n "image": [[1, 2], [3, -Infinity]]}', "-Infinity at line 2, column 24, after "),
        (b'{"mouse": nan}', "nan at line 1, column 11, after "),
        (b'{"mouse": "A", "x": tru}', "invalid literal, expected 'true', before 'tru}'"),
        (b'{"mouse": "A"', "unexpected end of data"),
    ],
)
def test_the_place_where_json_is_wrong_is_named_and_quoted(body: bytes, got: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        read_json(body)
    assert str(refused.value.got).startswith(got)
    assert ("JSON has no" in refused.value.message) == ("at line" in got)


def test_a_damaged_file_is_described_in_full(twin: TinyTwin) -> None:
    # What the decoder said has more characters than reprlib shows, and its end is the useful half.
    with pytest.raises(InvalidInput) as refused:
        ask(twin, {"mouse": "A", "image": encoded(npy_header("{'descr': '<f4'}"))})
    assert "..." not in str(refused.value.got)


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"mouse"'])
def test_json_that_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a JSON object"):
        read_json(body)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("image", "[[1, 2]]")], "image is text"),
        ([("mouse", b"A")], "mouse is a file"),
        ([("mouse", "A"), ("mouse", "A")], "mouse is given twice"),
        ([("pupil_dilation", "large")], "pupil_dilation cannot be read"),
        ([("pupil_dilation", "NaN")], "pupil_dilation cannot be read"),
        ([("behavior", '{"running_speed": 1, "running_speed": 2}')], "behavior has a key twice in one object"),
        ([("spread", "yes")], "spread cannot be read"),
        ([("contrast", "1")], "unknown field"),
        ([("pupil_center_x", "1")], "in part, or twice"),
        ([("pupil_center", "[1, 2]"), ("pupil_center_x", "1"), ("pupil_center_y", "1")], "in part, or twice"),
        ([("pupil_center_x", "1"), ("pupil_center_y", "[1, 2]")], "do not pair up"),
    ],
)
def test_bad_forms_are_refused_by_name(parts: list[tuple[str, str | bytes]], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_form(parts, PredictRequest)
