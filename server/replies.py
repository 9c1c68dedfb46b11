"""What is said of a prediction, and of the mice: plain data from the engine to the bodies of replies."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import orjson

from server.contract import MouseRecord, NeuronTable
from server.errors import InvalidInput, NotAcceptable, brief
from server.schemas import ModelInfo, MouseDetail, MouseSummary
from server.stimulus import Question

if TYPE_CHECKING:
    from server.engine import Engine, Prediction

__all__ = ["JSON", "NPY", "accepted", "describe", "json_body", "model_info", "npy_body", "scaled", "summarize"]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"


def accepted(accept: str | None) -> Literal["application/json", "application/x-npy"]:
    """The media type to reply in, by the Accept header; JSON where both would do.

    Raises:
        NotAcceptable: neither would do.
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
    as_json, as_npy = weights.get(JSON, fallback), weights.get(NPY, fallback)
    if max(as_json, as_npy) <= 0:
        raise NotAcceptable("there is no reply of that type", got=brief(accept), expected=f"{JSON} or {NPY}")
    return JSON if as_json >= as_npy else NPY


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
    for values in (response, spread):
        if values is not None and not np.isfinite(values).all():
            raise InvalidInput(
                "the twin has no finite response to this input",
                got="values far outside of what was recorded",
                expected="values near the training range",
                hint=f"GET /mice/{question.mouse_id} gives it.",
            )
    return response, spread


def model_info(engine: Engine) -> dict[str, Any]:
    """Which bundle answered."""
    manifest = engine.manifest
    return ModelInfo(
        name=manifest.name,
        hash=engine.hash,
        members=manifest.members,
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
    array = np.ascontiguousarray(response if spread is None else np.stack([response, spread]), dtype=np.float32)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    head = _head(engine, question, request_id)
    head["assumed"] = question.assumed
    return stream.getvalue(), json.dumps(head, ensure_ascii=True, separators=(",", ":"))


def summarize(engine: Engine, record: MouseRecord) -> dict[str, Any]:
    """A mouse in a line, as GET /mice lists it."""
    return MouseSummary(**_mouse(engine, record), model=engine.manifest.name).model_dump()


def describe(engine: Engine, record: MouseRecord) -> dict[str, Any]:
    """A mouse in full."""
    return MouseDetail(
        **_mouse(engine, record),
        model=ModelInfo(**model_info(engine)),
        image_channels=record.image_channels,
        behavior=record.behavior,
        pupil_center=record.pupil_center,
        standardized_inputs=record.standardized_inputs,
        scores=record.scores,
        members=engine.manifest.members,
        licence=engine.manifest.licence,
        citation=engine.manifest.citation,
    ).model_dump()


def _mouse(engine: Engine, record: MouseRecord) -> dict[str, Any]:
    return {
        "mouse": record.mouse_id,
        "data_key": record.data_key,
        "n_neurons": record.n_neurons,
        "image_shape": record.image_shape,
        "simulated": engine.manifest.simulated,
        "uses": list(record.uses),
    }
