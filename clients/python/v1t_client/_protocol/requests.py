"""Requests of the HTTP contract, built without sending them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from v1t_client._answers.gradient import BEHAVIOR_NAMES
from v1t_client._errors import InvalidArgument
from v1t_client._images import Image, ImagePart, encode_images

__all__ = [
    "NPY",
    "Asked",
    "Call",
    "GradientQuestion",
    "Question",
    "Resize",
    "Shown",
    "Units",
    "build_attention",
    "build_gradient",
    "build_mice",
    "build_mouse",
    "build_neurons",
    "build_predict",
    "build_predict_mice",
    "build_ready",
    "part_of",
    "per_image",
]

Units = Literal["standardized", "raw"]
Resize = Literal["fit", "fill", "crop"]

NPY = "application/x-npy"


@dataclass(frozen=True)
class Call:
    """One HTTP request, ready to be sent as often as it takes: nothing that we ask changes the server."""

    method: str
    path: str
    accept: str = "application/json"
    params: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[ImagePart] = ()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a mouse is shown and what it does, as the caller gave it."""

    mouse: str
    image: Image
    pupil_dilation: npt.ArrayLike | None = None
    pupil_dilation_derivative: npt.ArrayLike | None = None
    running_speed: npt.ArrayLike | None = None
    pupil_center: npt.ArrayLike | None = None
    resize: Resize | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Question(Shown):
    """The arguments of one `predict`."""

    neuron_ids: Sequence[int] | npt.ArrayLike | None = None
    units: Units = "standardized"
    spread: bool = False


class Asked(TypedDict, total=False):
    """What may be asked beside mouse and image; as in `Client.predict`."""

    pupil_dilation: npt.ArrayLike | None
    pupil_dilation_derivative: npt.ArrayLike | None
    running_speed: npt.ArrayLike | None
    pupil_center: npt.ArrayLike | None
    neuron_ids: Sequence[int] | npt.ArrayLike | None
    units: Units
    spread: bool
    resize: Resize | None
    model: str | None


@dataclass(frozen=True, kw_only=True)
class GradientQuestion(Shown):
    """The arguments of one `gradient`."""

    weights: npt.ArrayLike
    neuron_ids: Sequence[int] | npt.ArrayLike | None = None
    units: Units = "standardized"


def per_image(question: Question) -> dict[str, npt.NDArray[Any]]:
    """The arguments that hold a value for each image, not one for all."""
    values = {name: np.asarray(getattr(question, name)) for name in (*BEHAVIOR_NAMES, "pupil_center")}
    return {name: value for name, value in values.items() if value.ndim > (name == "pupil_center")}


def part_of(question: Question, image: Image, rows: slice) -> Question:
    """The same question of some of the images: those of `rows`, which `image` holds."""
    parts: dict[str, Any] = {name: value[rows] for name, value in per_image(question).items()}
    return replace(question, image=image, **parts)


def build_predict(question: Question) -> tuple[Call, int | None]:
    """`POST /predict` as multipart, and how many images it holds (None where only the server can tell).

    Raises:
        InvalidArgument: an argument cannot be sent at all. Shapes and ranges are the server's to judge.
    """
    _check_mouse(question.mouse)
    return _build("/predict", question, _of_prediction(question))


def build_predict_mice(mice: Sequence[str] | Literal["*"], question: Question) -> tuple[Call, int | None]:
    """The same for several mice, "*" for all; the question's own mouse does not count."""
    if isinstance(mice, str):
        if mice != "*":
            raise InvalidArgument(
                "mice is one name",
                got=repr(mice),
                expected="a list of them, or '*' for all",
                hint="client.predict asks one.",
            )
        return _build("/predict", replace(question, mouse="*"), _of_prediction(question))
    names = list(mice)
    for mouse in names:
        _check_mouse(mouse)
    if not names or len(set(names)) < len(names):
        raise InvalidArgument("mice holds no mouse, or one twice", got=_short(names), expected="each mouse once")
    return _build("/predict", replace(question, mouse=json.dumps(names)), _of_prediction(question))


def _of_prediction(question: Question) -> dict[str, str]:
    more = _of_neurons(question.neuron_ids, question.units)
    if question.spread:
        more["spread"] = "true"
    return more


def build_gradient(question: GradientQuestion) -> tuple[Call, int | None]:
    """`POST /gradient`; see `build_predict`."""
    _check_mouse(question.mouse)
    more = _of_neurons(question.neuron_ids, question.units)
    more["weights"] = _numbers(
        "weights", question.weights, dimensions=(1, 2), expected="one per neuron: (n,), or (B, n) for B images"
    )
    return _build("/gradient", question, more)


def build_attention(shown: Shown) -> tuple[Call, int | None]:
    """`POST /attention`; see `build_predict`."""
    _check_mouse(shown.mouse)
    return _build("/attention", shown, {})


def _of_neurons(neuron_ids: Sequence[int] | npt.ArrayLike | None, units: Units) -> dict[str, str]:
    return {"units": units} | ({} if neuron_ids is None else {"neuron_ids": _integers("neuron_ids", neuron_ids)})


def _build(path: str, shown: Shown, more: Mapping[str, str]) -> tuple[Call, int | None]:
    form = {"mouse": shown.mouse, **more}
    for name in BEHAVIOR_NAMES:
        value = getattr(shown, name)
        if value is not None:
            form[name] = _numbers(name, value, dimensions=(0, 1), expected="a number, or one per image: (B,)")
    if shown.pupil_center is not None:
        form["pupil_center"] = _numbers(
            "pupil_center", shown.pupil_center, dimensions=(1, 2), expected="[x, y], or one per image: (B, 2)"
        )
    if shown.resize is not None:
        form["resize"] = shown.resize
    if shown.model is not None:
        form["model"] = shown.model
    images, n_images = encode_images(shown.image)
    return Call("POST", path, accept=NPY, form=form, images=images), n_images


def build_mice() -> Call:
    """`GET /mice`."""
    return Call("GET", "/mice")


def build_mouse(mouse: str, *, model: str | None = None) -> Call:
    """`GET /mice/{id}`."""
    return Call("GET", _mouse_path(mouse), params=_query(model=model))


def build_neurons(mouse: str, **filters: str | float | None) -> Call:
    """`GET /mice/{id}/neurons`; filters that are None are left out."""
    return Call("GET", f"{_mouse_path(mouse)}/neurons", params=_query(**filters))


def build_ready() -> Call:
    """`GET /readyz`."""
    return Call("GET", "/readyz", accept="*/*")


def _query(**values: str | float | None) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _mouse_path(mouse: str) -> str:
    _check_mouse(mouse)
    return f"/mice/{quote(mouse, safe='')}"


def _check_mouse(mouse: str) -> None:
    if not isinstance(mouse, str) or mouse in ("", ".", ".."):
        raise InvalidArgument(
            "mouse is no mouse id",
            got=_short(mouse),
            expected="a string such as 'A'",
            hint="client.predict_mice asks several."
            if isinstance(mouse, (list, tuple))
            else "client.mice() lists them.",
        )


def _numbers(name: str, value: npt.ArrayLike, *, dimensions: tuple[int, ...], expected: str) -> str:
    """Text of a form field: a bare number, or a JSON list."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidArgument(f"{name} is ragged", expected=expected) from error
    if array.dtype.kind not in "iuf":
        raise InvalidArgument(f"{name} does not hold real numbers", got=_short(value), expected=expected)
    if array.ndim not in dimensions:
        raise InvalidArgument(f"{name} has the wrong shape", got=f"shape {array.shape}", expected=expected)
    if not np.isfinite(array).all():
        raise InvalidArgument(f"{name} has NaN or infinite values", got=_short(value), expected=expected)
    return json.dumps(array.tolist(), allow_nan=False)


def _integers(name: str, value: Sequence[int] | npt.ArrayLike) -> str:
    expected = "a list of neuron ids, integers"
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{name} is no list of integers", got=_short(value), expected=expected) from error
    empty = array.ndim == 1 and array.size == 0  # numpy reads [] as floats; the server judges it
    if array.ndim != 1 or not (array.dtype.kind in "iu" or empty):
        raise InvalidArgument(f"{name} is no list of integers", got=_short(value), expected=expected)
    return json.dumps(array.tolist())


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
