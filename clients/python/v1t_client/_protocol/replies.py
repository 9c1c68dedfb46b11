"""The replies of the HTTP contract, read and checked. Unknown fields are ignored, so that newer servers work too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import SENSORIUM_BEHAVIOR, BehaviorState, Channel, Mouse, MouseDetail, NeuronTable
from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import Model, Prediction
from v1t_client._errors import ServerError, server_error_class
from v1t_client._http_library import httpx
from v1t_client._protocol.arguments import GradientRequest, ImageRequest, PredictRequest
from v1t_client._protocol.reply_parts import (
    OTHER_PROGRAM,
    field,
    header,
    invalid,
    json_object,
    npy_arrays,
    reader,
    retry_after,
)

__all__ = [
    "read_attention",
    "read_gradient",
    "read_metadata",
    "read_mice",
    "read_mouse",
    "read_neurons",
    "read_prediction",
    "read_predictions",
    "read_refusal",
    "refusal_of",
]


@reader
def read_refusal(response: httpx.Response) -> ServerError:
    """The error for a reply with another status than 200, whether the server or a proxy sent it."""
    status = response.status_code
    try:
        content = response.json()
    except ValueError:
        content = None
    content = content if isinstance(content, dict) else {}
    error = content.get("error")
    if not isinstance(error, dict):
        hint = f"The reply does not have the server's format. Is it from a proxy, or another program? {OTHER_PROGRAM}"
        if response.is_redirect:
            hint = f"Redirects are not followed. Use the URL that it points to: {response.headers.get('location')}"
        reason = f"HTTP {status} {response.reason_phrase}".rstrip()
        error = {"message": f"{reason} from {response.request.url}", "hint": hint}
    return refusal_of(
        error,
        status=status,
        request_id=content.get("request_id") or response.headers.get("x-request-id"),
        retry_after=retry_after(response.headers.get("retry-after")),
    )


def refusal_of(
    error: Mapping[str, Any], *, status: int, request_id: str | None, retry_after: float | None
) -> ServerError:
    """The exception for the `error` object of the HTTP contract."""
    code = str(error.get("code") or f"http_{status}")
    return server_error_class(status, code)(
        str(error.get("message") or f"HTTP {status}"),
        status=status,
        code=code,
        got=error.get("got"),
        expected=error.get("expected"),
        hint=error.get("hint"),
        request_id=request_id,
        retry_after=retry_after,
    )


@reader
def read_prediction(response: httpx.Response, request: PredictRequest, n_images: int | None) -> Prediction:
    """A binary `/predict` reply. Its `neuron_ids` are empty if neither the request nor the reply names the neurons.

    Args:
        request, n_images: what the reply must match; None where the number of images is not known.
    """
    reply = header(response)
    (array,) = npy_arrays(response, 1)
    return _prediction(response, reply, array, request, n_images)


@reader
def read_predictions(
    response: httpx.Response, request: PredictRequest, n_images: int | None, *, mice: Sequence[str] | None
) -> list[Prediction]:
    """A binary `/predict` reply for several mice: those named, or all of a bundle if None."""
    reply = header(response)
    described = field(reply, "mice", list)
    if not all(isinstance(of_mouse, dict) for of_mouse in described):
        raise invalid("the mice cannot be read", None, None)
    names = [field(of_mouse, "mouse", str) for of_mouse in described]
    if mice is not None and names != list(mice):
        raise invalid("the reply is for other mice", names, list(mice))
    return [
        _prediction(response, {**reply, **of_mouse}, array, replace(request, mouse=name, neuron_ids=None), n_images)
        for of_mouse, array, name in zip(described, npy_arrays(response, len(names)), names, strict=True)
    ]


def _prediction(
    response: httpx.Response,
    reply: dict[str, Any],
    array: npt.NDArray[np.float32],
    request: PredictRequest,
    n_images: int | None,
) -> Prediction:
    """From an array (B, n), or (2, B, n) with spread."""
    if array.ndim != (3 if request.spread else 2) or (request.spread and len(array) != 2):
        raise invalid("the array has the wrong shape", array.shape, "(2, B, n)" if request.spread else "(B, n)")
    responses, spread = (array[0], array[1]) if request.spread else (array, None)
    return Prediction(
        responses=responses,
        neuron_ids=_neuron_ids(reply, request, responses),
        units=field(reply, "units", str),
        spread=spread,
        **_metadata(response, reply, mouse=request.mouse, got=len(responses), n_images=n_images),
    )


@reader
def read_gradient(response: httpx.Response, request: GradientRequest, n_images: int | None) -> Gradient:
    """A binary `/gradient` reply; see `read_prediction`."""
    reply = header(response)
    image, responses, behavior, pupil_center = npy_arrays(response, 4)
    channels = tuple(field(reply, "behavior_channels", list)) if "behavior_channels" in reply else SENSORIUM_BEHAVIOR
    n, K = len(responses), len(channels)
    shapes = (image.shape, responses.shape, behavior.shape, pupil_center.shape)
    if (image.ndim, responses.ndim) != (4, 2) or len(image) != n or shapes[2:] != ((n, K), (n, 2)):
        expected = f"({n}, C, H, W), ({n}, n), ({n}, {K}), ({n}, 2)"
        raise invalid("the arrays have the wrong shapes", shapes, expected)
    return Gradient(
        image=image,
        behavior=behavior,
        behavior_channels=channels,
        pupil_center=pupil_center,
        responses=responses,
        neuron_ids=_neuron_ids(reply, request, responses),
        units=field(reply, "units", str),
        **_metadata(response, reply, mouse=request.mouse, got=n, n_images=n_images),
    )


@reader
def read_attention(response: httpx.Response, request: ImageRequest, n_images: int | None) -> Attention:
    """A binary `/attention` reply; see `read_prediction`."""
    reply = header(response)
    (maps,) = npy_arrays(response, 1)
    if maps.ndim != 4:
        raise invalid("the array has the wrong shape", maps.shape, "(B, M, h, w)")
    return Attention(maps=maps, **_metadata(response, reply, mouse=request.mouse, got=len(maps), n_images=n_images))


@reader
def read_metadata(response: httpx.Response, event: Mapping[str, Any], *, mouse: str) -> Prediction:
    """The metadata of a stream, as a prediction without responses.

    Args:
        event: the last event; what it says about the inputs holds for all images, and that of the header for none.
    """
    reply = {**header(response), **{name: event[name] for name in ("state", "assumed", "notes") if name in event}}
    return Prediction(
        responses=np.empty((0, 0), dtype=np.float32),
        neuron_ids=np.empty(0, dtype=np.int64),
        units=field(reply, "units", str),
        **_metadata(response, reply, mouse=mouse, got=0, n_images=None),
    )


def _neuron_ids(
    reply: dict[str, Any], request: PredictRequest | GradientRequest, responses: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """(n,) as requested or as in the reply; empty if neither names them."""
    requested = None if request.neuron_ids is None else np.asarray(request.neuron_ids, dtype=np.int64)
    ids = requested
    if reply.get("neuron_ids") is not None:
        ids = np.asarray(field(reply, "neuron_ids", list), dtype=np.int64)
        if requested is not None and not np.array_equal(ids, requested):
            raise invalid("the reply is for other neurons than were requested", len(ids), len(requested))
    if ids is not None and len(ids) != responses.shape[1]:
        raise invalid("the reply has another number of neurons", responses.shape[1], len(ids))
    return np.empty(0, dtype=np.int64) if ids is None else ids


def _metadata(
    response: httpx.Response, reply: dict[str, Any], *, mouse: str, got: int, n_images: int | None
) -> dict[str, Any]:
    """The fields that every answer about images has: mouse, model, assumptions and request id."""
    if n_images is not None and got != n_images:
        raise invalid("the reply has another number of images", got, n_images)
    answered = field(reply, "mouse", str)
    if answered != mouse:
        raise invalid("the reply is for another mouse", answered, mouse)
    return {
        "mouse": answered,
        "model": _model(field(reply, "model", dict)),
        "assumed": tuple(str(line) for line in reply.get("assumed") or ()),
        "state": None if reply.get("state") is None else str(reply["state"]),
        "notes": tuple(_note(note) for note in reply.get("notes") or ()),
        "request_id": reply.get("request_id") or response.headers.get("x-request-id"),
    }


def _note(note: dict[str, Any]) -> Note:
    about = note.get("input")
    return Note(field(note, "code", str), None if about is None else str(about), field(note, "message", str))


@reader
def read_mice(response: httpx.Response) -> list[Mouse]:
    """A `/mice` reply."""
    return [Mouse(**_summary(mouse)) for mouse in field(json_object(response), "mice", list)]


@reader
def read_mouse(response: httpx.Response) -> MouseDetail:
    """A `/mice/{id}` reply."""
    reply = json_object(response)
    bundle, distilled = _model(field(reply, "model", dict)), reply.get("distilled") or {}
    return MouseDetail(
        **_summary({**reply, "model": bundle.name}),
        bundle=bundle,
        image_channels=_channels(reply, "image_channels"),
        behavior=_channels(reply, "behavior"),
        pupil_center=_channels(reply, "pupil_center"),
        states=tuple(_state(state) for state in reply.get("states") or ()),
        scores=dict(reply.get("scores") or {}),
        teacher=tuple(map(str, distilled.get("teacher") or ())),
        agreement=dict(distilled.get("agreement") or {}),
        members=int(reply.get("members") or bundle.members),
        licence=str(reply.get("licence") or ""),
        citation=str(reply.get("citation") or ""),
    )


@reader
def read_neurons(response: httpx.Response) -> NeuronTable:
    """A `/mice/{id}/neurons` reply."""
    reply = json_object(response)
    ids = field(reply, "neuron_ids", list)
    coordinates = [row or (math.nan,) * 3 for row in reply.get("coordinates_um") or [None] * len(ids)]
    looks_at = reply.get("readout_position_px")  # not from older servers
    model = reply.get("model")
    try:
        table = NeuronTable(
            mouse=field(reply, "mouse", str),
            model=str(model.get("name") if isinstance(model, dict) else model),
            neuron_ids=np.asarray(ids, dtype=np.int64),
            coordinates_um=np.asarray(coordinates, dtype=np.float32).reshape(-1, 3),  # (n, 3)
            readout_position_px=None if looks_at is None else np.asarray(looks_at, dtype=np.float32).reshape(-1, 2),
            response_std=_floats(reply.get("response_std") or [None] * len(ids)),
            scores={str(name): _floats(values) for name, values in (reply.get("scores") or {}).items()},
            total=int(reply.get("total", len(ids))),
            model_hash=None if reply.get("hash") is None else str(reply["hash"]),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"the neurons cannot be read: {error}", None, None) from error
    lengths = {len(ids), len(table.coordinates_um), len(table.response_std), *map(len, table.scores.values())}
    lengths |= set() if table.readout_position_px is None else {len(table.readout_position_px)}
    if len(lengths) > 1:
        raise invalid("the columns differ in length", sorted(lengths), len(ids))
    return table


def _summary(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise invalid("a mouse is not an object", type(reply).__name__, "an object")
    shape = tuple(field(reply, "image_shape", list))
    if len(shape) != 3:
        raise invalid("image_shape has the wrong length", shape, "(C, H, W)")
    return {
        "mouse_id": field(reply, "mouse", str),
        "model": field(reply, "model", str),
        "n_neurons": field(reply, "n_neurons", int),
        "image_shape": shape,
        "uses": tuple(reply.get("uses") or ()),
        "simulated": bool(reply.get("simulated", False)),
        "standardized_inputs": bool(reply.get("standardized_inputs", False)),
        "data_key": reply.get("data_key"),
    }


def _model(reply: dict[str, Any]) -> Model:
    return Model(
        name=field(reply, "name", str),
        hash=field(reply, "hash", str),
        members=int(reply.get("members") or 1),
        simulated=bool(reply.get("simulated", False)),
        notice=reply.get("notice"),
        version=None if reply.get("version") is None else str(reply["version"]),
    )


def _state(state: dict[str, Any]) -> BehaviorState:
    return BehaviorState(
        name=field(state, "name", str),
        definition=str(state.get("definition") or ""),
        trials=int(state.get("trials") or 0),
        behavior=tuple(map(float, state.get("behavior") or ())),
        pupil_center=tuple(map(float, state.get("pupil_center") or ())),
    )


def _channels(reply: dict[str, Any], name: str) -> tuple[Channel, ...]:
    channels = []
    for channel in reply.get(name) or ():
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in channel.items()
            if key in Channel.__dataclass_fields__ and value is not None
        }
        channels.append(Channel(**known))
    return tuple(channels)


def _floats(values: Sequence[float | None]) -> npt.NDArray[np.float32]:
    return np.asarray([math.nan if value is None else value for value in values], dtype=np.float32)
