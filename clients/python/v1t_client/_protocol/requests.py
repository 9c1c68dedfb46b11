"""The requests of the HTTP contract, built and checked without sending them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import SENSORIUM_BEHAVIOR
from v1t_client._errors import InvalidArgument
from v1t_client._images import ImagePart, encode_images
from v1t_client._protocol.arguments import GradientRequest, ImageRequest, NeuronFilters, PredictRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "NPY",
    "HttpRequest",
    "build_attention",
    "build_gradient",
    "build_mice",
    "build_mouse",
    "build_neurons",
    "build_predict",
    "build_predict_mice",
    "build_ready",
]

NPY = "application/x-npy"

# Bounds on replies whose size the request does not tell: no recording comes near them.
_MOST_NEURONS, _MOST_MICE, _MOST_IMAGES = 100_000, 100, 512
_MOST_MAPS = 8 * 1024**2  # bytes an image


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request. It can be sent repeatedly, because no request changes the server.

    Attributes:
        most_bytes: of the reply; a longer one is not read.
    """

    method: str
    path: str
    accept: str = "application/json"
    params: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[ImagePart] = ()
    most_bytes: int = 64 * 1024**2


# The fields that hold numbers: how many dimensions they may have, and what to say otherwise.
_PER_IMAGE = ((0, 1), "a number, or one per image: (B,)")
_NUMBERS = {
    **dict.fromkeys(SENSORIUM_BEHAVIOR, _PER_IMAGE),
    "pupil_center": ((1, 2), "[x, y], or one per image: (B, 2)"),
    "weights": ((1, 2), "one per neuron: (n,), or (B, n) for B images"),
}


def build_predict(request: PredictRequest) -> tuple[HttpRequest, int | None]:
    """`POST /predict` as multipart, and the number of its images (None where only the server can tell).

    Raises:
        InvalidArgument: an argument cannot be sent. The server checks shapes and ranges.
    """
    return _build("/predict", request)


def build_predict_mice(mice: Sequence[str] | Literal["*"], request: PredictRequest) -> tuple[HttpRequest, int | None]:
    """`POST /predict` for several mice, "*" for all. The mouse of the request is ignored."""
    if isinstance(mice, str):
        if mice != "*":
            raise InvalidArgument(
                "mice is one name",
                got=repr(mice),
                expected="a list of names, or '*' for all",
                hint="Use client.predict for one mouse.",
            )
        return _build("/predict", replace(request, mouse="*"), _MOST_MICE)
    names = list(mice) if isinstance(mice, Iterable) else [mice]
    for mouse in names:
        _check_mouse(mouse)
    if not names or len(set(names)) < len(names):
        raise InvalidArgument("mice holds no mouse, or names one twice", got=_short(names), expected="each mouse once")
    return _build("/predict", replace(request, mouse=json.dumps(names)), len(names))


def build_gradient(request: GradientRequest) -> tuple[HttpRequest, int | None]:
    """`POST /gradient`; see `build_predict`."""
    return _build("/gradient", request)


def build_attention(request: ImageRequest) -> tuple[HttpRequest, int | None]:
    """`POST /attention`; see `build_predict`."""
    return _build("/attention", request)


def _build(path: str, request: ImageRequest, n_mice: int = 1) -> tuple[HttpRequest, int | None]:
    _check_mouse(request.mouse)
    form = {"mouse": request.mouse}
    for field_ in fields(request):
        name, value = field_.name, getattr(request, field_.name)
        if name in _NUMBERS and value is not None:
            dimensions, expected = _NUMBERS[name]
            form[name] = _numbers(name, value, dimensions=dimensions, expected=expected)
        elif name == "behavior" and value is not None:
            dimensions, expected = _PER_IMAGE
            values = [
                f"{json.dumps(channel)}: {_numbers(channel, array, dimensions=dimensions, expected=expected)}"
                for channel, array in value.items()
            ]
            form[name] = f"{{{', '.join(values)}}}"
        elif name in ("units", "resize", "model", "state") and value is not None:
            form[name] = _word(name, value)
        elif name == "neuron_ids" and value is not None:
            form[name] = _integers(name, value)
        elif name in ("spread", "strict") and value:
            form[name] = "true"
    images, n_images = encode_images(request.image)
    most = _most_bytes(path, request, n_images or _MOST_IMAGES, n_mice)
    return HttpRequest("POST", path, accept=NPY, form=form, images=images, most_bytes=most), n_images


def _most_bytes(path: str, request: ImageRequest, n_images: int, n_mice: int) -> int:
    """More bytes than any reply to this request has."""
    ids = getattr(request, "neuron_ids", None)
    n_neurons = _MOST_NEURONS if ids is None else np.size(ids)
    per_image = 8 * n_neurons * n_mice  # float32: responses, and their spread
    if path != "/predict":
        per_image += _MOST_MAPS  # a gradient's images, or maps of attention
    return 1024**2 + n_images * per_image


def build_mice() -> HttpRequest:
    """`GET /mice`."""
    return HttpRequest("GET", "/mice")


def build_mouse(mouse: str, *, model: str | None = None) -> HttpRequest:
    """`GET /mice/{id}`."""
    return HttpRequest("GET", _mouse_path(mouse), params=_query(model=model))


def build_neurons(mouse: str, **filters: Unpack[NeuronFilters]) -> HttpRequest:
    """`GET /mice/{id}/neurons`; filters that are None are left out.

    Raises:
        TypeError: there is no such filter.
    """
    if unknown := sorted(set(filters) - NeuronFilters.__optional_keys__):
        raise TypeError(f"neurons() got an unexpected keyword argument {unknown[0]!r}")
    return HttpRequest("GET", f"{_mouse_path(mouse)}/neurons", params=_query(**filters))


def build_ready() -> HttpRequest:
    """`GET /readyz`."""
    return HttpRequest("GET", "/readyz", accept="*/*")


def _query(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _mouse_path(mouse: str) -> str:
    _check_mouse(mouse)
    return f"/mice/{quote(mouse, safe='')}"


def _check_mouse(mouse: str) -> None:
    if not isinstance(mouse, str) or mouse in ("", ".", "..") or not _is_text(mouse):
        raise InvalidArgument(
            "mouse is not a mouse id",
            got=_short(mouse),
            expected="a string such as 'A'",
            hint="client.predict_mice asks several mice."
            if isinstance(mouse, (list, tuple))
            else "client.mice() lists the ids.",
        )


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _is_text(value):
        raise InvalidArgument(f"{name} is not a word", got=_short(value), expected="a string")
    return value


def _is_text(value: str) -> bool:
    """Whether it can be encoded: half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _numbers(name: str, array: npt.NDArray[Any], *, dimensions: tuple[int, ...], expected: str) -> str:
    """The text of a form field: a number or a JSON list."""
    if array.dtype.kind not in "iuf":
        raise InvalidArgument(f"{name} does not hold real numbers", got=_short(array.tolist()), expected=expected)
    if array.ndim not in dimensions:
        raise InvalidArgument(f"{name} has the wrong shape", got=f"shape {array.shape}", expected=expected)
    if not np.isfinite(array).all():
        raise InvalidArgument(f"{name} has NaN or infinite values", got=_short(array.tolist()), expected=expected)
    return json.dumps(array.tolist(), allow_nan=False)


def _integers(name: str, array: npt.NDArray[Any]) -> str:
    expected = "a list of neuron ids, integers"
    empty = array.ndim == 1 and array.size == 0  # numpy reads [] as floats; the server refuses it
    if array.ndim != 1 or not (array.dtype.kind in "iu" or empty):
        raise InvalidArgument(f"{name} is not a list of integers", got=_short(array.tolist()), expected=expected)
    return json.dumps(array.tolist())


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
