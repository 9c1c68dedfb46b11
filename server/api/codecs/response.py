"""What is said of a prediction, and of the mice: plain data from the engine to the bodies of replies."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson

from server.api.codecs.request import Question
from server.api.codecs.schemas import ModelInfo, MouseDetail, MouseSummary
from server.bundle.manifest import MouseRecord, NeuronTable
from server.errors import InvalidInput, NotAcceptable, brief
from server.serving.discovery import version_of

if TYPE_CHECKING:
    from server.inference.engine import Engine, Gradient, Prediction
    from server.serving.repository import Bundle

__all__ = [
    "JSON",
    "NPY",
    "Attention",
    "about",
    "accepted",
    "attention_json",
    "attention_npy",
    "check_finite",
    "describe",
    "gradient_json",
    "gradient_npy",
    "json_body",
    "mice_json",
    "mice_npy",
    "model_info",
    "npy_body",
    "scaled",
    "summarize",
]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"


def accepted(accept: str | None, written: tuple[str, ...] = (JSON, NPY)) -> str:
    """The media type to reply in, by the Accept header; of those that would do equally, the first that we write.

    Raises:
        NotAcceptable: none would do.
    """
    weights: dict[str, float] = {}
    for part in (accept or "*/*").split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[media_type] = max(weight, weights.get(media_type, 0.0))
    fallback = weights.get("application/*", weights.get("*/*", 0.0))
    best = max(written, key=lambda media_type: weights.get(media_type, fallback))
    if weights.get(best, fallback) <= 0:
        raise NotAcceptable("there is no reply of that type", got=brief(accept), expected=" or ".join(written))
    return best


def scaled(prediction: Prediction, question: Question, neurons: NeuronTable) -> tuple[np.ndarray, np.ndarray | None]:
    """Responses and, if asked for, their spread, (B, n) float32 each, in the units that were asked for.

    Raises:
        InvalidInput: the input is so far from anything recorded that the twin has no finite response to it.
    """
    response, spread = prediction.response, prediction.spread if question.spread else None
    if question.units == "raw":
        std = neurons.response_std if question.neurons is None else neurons.response_std[question.neurons]
        response = response * std
        spread = None if spread is None else spread * std
    check_finite(question, *(values for values in (response, spread) if values is not None))
    return response, spread


def check_finite(question: Question, *arrays: np.ndarray) -> None:
    """Raises InvalidInput where a response is no number."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidInput(
            "the twin has no finite response to this input",
            got="values far outside of what was recorded",
            expected="values near the training range",
            hint=f"GET /mice/{question.mouse_id} gives it.",
        )


def model_info(engine: Engine | Bundle) -> dict[str, Any]:
    """Which bundle answered."""
    manifest = engine.manifest
    return ModelInfo(
        name=manifest.name,
        version=version_of(engine.bundle),
        hash=engine.hash,
        members=manifest.members,
        provider=engine.provider,
        precision=engine.precision,
        simulated=manifest.simulated,
        notice=manifest.notice,
    ).model_dump()


def _head(engine: Engine, question: Question, request_id: str) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model": model_info(engine),
        "mouse": question.mouse_id,
        "units": question.units,
    }


def _neuron_ids(engine: Engine, question: Question) -> np.ndarray:
    ids = engine.neurons[question.mouse_id].ids
    return ids if question.neurons is None else ids[question.neurons]


def json_body(engine: Engine, question: Question, prediction: Prediction, request_id: str) -> bytes:
    """The reply in JSON; each float32 in the fewest digits that give it back."""
    response, spread = scaled(prediction, question, engine.neurons[question.mouse_id])
    reply = _head(engine, question, request_id)
    reply["neuron_ids"] = np.ascontiguousarray(_neuron_ids(engine, question), dtype=np.int64)
    reply["responses"] = np.ascontiguousarray(response, dtype=np.float32)
    if spread is not None:
        reply["spread"] = np.ascontiguousarray(spread, dtype=np.float32)
    reply["assumed"] = question.assumed
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def npy_body(engine: Engine, question: Question, prediction: Prediction, request_id: str) -> tuple[bytes, str]:
    """The reply as .npy, float32 (B, n) or with spread (2, B, n), and all the rest for the V1T-Reply header.

    Neuron ids are not in the header, which proxies keep short: they are those that were asked for, in that order, or
    all in the order of /mice/{id}/neurons.
    """
    response, spread = scaled(prediction, question, engine.neurons[question.mouse_id])
    array = response if spread is None else np.stack([response, spread])
    return _npy(array), about(engine, question, request_id)


def about(engine: Engine, question: Question, request_id: str) -> str:
    """The V1T-Reply header: everything of a reply but its arrays."""
    return _header({**_head(engine, question, request_id), "assumed": question.assumed})


def mice_json(
    engine: Engine, questions: Sequence[Question], predictions: Sequence[Prediction], request_id: str
) -> bytes:
    """The reply of several mice in JSON: those of `json_body`, what they have in common said once."""
    mice = []
    for question, prediction in zip(questions, predictions, strict=True):
        response, spread = scaled(prediction, question, engine.neurons[question.mouse_id])
        of_mouse = {
            "mouse": question.mouse_id,
            "neuron_ids": np.ascontiguousarray(_neuron_ids(engine, question), dtype=np.int64),
            "responses": np.ascontiguousarray(response, dtype=np.float32),
            "assumed": question.assumed,
        }
        if spread is not None:
            of_mouse["spread"] = np.ascontiguousarray(spread, dtype=np.float32)
        mice.append(of_mouse)
    reply = _head(engine, questions[0], request_id)
    del reply["mouse"]
    return orjson.dumps({**reply, "mice": mice}, option=orjson.OPT_SERIALIZE_NUMPY)


def mice_npy(
    engine: Engine, questions: Sequence[Question], predictions: Sequence[Prediction], request_id: str
) -> tuple[bytes, str]:
    """The same as one .npy for each mouse, one after another in the order of the header's mice."""
    arrays = []
    for question, prediction in zip(questions, predictions, strict=True):
        response, spread = scaled(prediction, question, engine.neurons[question.mouse_id])
        arrays.append(response if spread is None else np.stack([response, spread]))
    head = _head(engine, questions[0], request_id)
    del head["mouse"]
    mice = [{"mouse": question.mouse_id, "assumed": question.assumed} for question in questions]
    return _npy(*arrays), _header({**head, "mice": mice})


def _npy(*arrays: np.ndarray) -> bytes:
    """One .npy after another, as `numpy.load` reads them from one open file."""
    stream = io.BytesIO()
    for array in arrays:
        contiguous = np.ascontiguousarray(array, dtype=np.float32)
        np.lib.format.write_array(stream, contiguous, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _header(head: dict[str, Any]) -> str:
    return json.dumps(head, ensure_ascii=True, separators=(",", ":"))


def gradient_json(engine: Engine, question: Question, gradient: Gradient, request_id: str) -> bytes:
    """The reply to POST /gradient in JSON."""
    response = _scaled_response(engine, question, gradient)
    reply = _head(engine, question, request_id)
    reply["neuron_ids"] = np.ascontiguousarray(_neuron_ids(engine, question), dtype=np.int64)
    reply["responses"] = np.ascontiguousarray(response, dtype=np.float32)
    reply["gradient"] = {
        "image": np.ascontiguousarray(gradient.image),
        "behavior": np.ascontiguousarray(gradient.behavior),
        "pupil_center": np.ascontiguousarray(gradient.pupil_center),
    }
    reply["assumed"] = question.assumed
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def gradient_npy(engine: Engine, question: Question, gradient: Gradient, request_id: str) -> tuple[bytes, str]:
    """The same as four arrays one after another: the image's gradient, responses, behaviour's, the pupil centre's."""
    response = _scaled_response(engine, question, gradient)
    head = {**_head(engine, question, request_id), "assumed": question.assumed}
    return _npy(gradient.image, response, gradient.behavior, gradient.pupil_center), _header(head)


def _scaled_response(engine: Engine, question: Question, gradient: Gradient) -> np.ndarray:
    """Responses in the units asked for; those of the gradient are in its weights already."""
    response = gradient.response
    if question.units == "raw":
        response = response * response_std(engine, question)
    check_finite(question, response, gradient.image, gradient.behavior, gradient.pupil_center)
    return response


def response_std(engine: Engine, question: Question) -> np.ndarray:
    """(n,), of the neurons that are asked about."""
    std = engine.neurons[question.mouse_id].response_std
    return std if question.neurons is None else std[question.neurons]


class Attention(NamedTuple):
    """Attention rollout of each member, (B, M, h, w) in [0, 1]."""

    maps: np.ndarray


def attention_json(engine: Engine, question: Question, attention: Attention, request_id: str) -> bytes:
    """The reply to POST /attention in JSON."""
    check_finite(question, attention.maps)
    reply = _head(engine, question, request_id)
    del reply["units"]
    reply["attention"] = np.ascontiguousarray(attention.maps, dtype=np.float32)
    reply["assumed"] = question.assumed
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def attention_npy(engine: Engine, question: Question, attention: Attention, request_id: str) -> tuple[bytes, str]:
    """The same, the maps as .npy."""
    check_finite(question, attention.maps)
    head = {**_head(engine, question, request_id), "assumed": question.assumed}
    del head["units"]
    return _npy(attention.maps), _header(head)


def summarize(bundle: Bundle, record: MouseRecord) -> dict[str, Any]:
    """A mouse in a line, as GET /mice lists it."""
    return MouseSummary(**_mouse(bundle, record), model=bundle.name).model_dump()


def describe(bundle: Bundle, record: MouseRecord) -> dict[str, Any]:
    """A mouse in full."""
    return MouseDetail(
        **_mouse(bundle, record),
        model=ModelInfo(**model_info(bundle)),
        image_channels=record.image_channels,
        behavior=record.behavior,
        pupil_center=record.pupil_center,
        standardized_inputs=record.standardized_inputs,
        scores=record.scores,
        members=bundle.manifest.members,
        licence=bundle.manifest.licence,
        citation=bundle.manifest.citation,
    ).model_dump()


def _mouse(bundle: Bundle, record: MouseRecord) -> dict[str, Any]:
    return {
        "mouse": record.mouse_id,
        "data_key": record.data_key,
        "n_neurons": record.n_neurons,
        "image_shape": record.image_shape,
        "simulated": bundle.manifest.simulated,
        "uses": list(record.uses),
    }
