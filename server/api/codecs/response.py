"""Answers to questions and descriptions of mice, and their two encodings: JSON, and .npy with a header."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson
from starlette.responses import Response

from server.api.codecs.request import Question
from server.api.codecs.schemas import Distilled, ModelInfo, MouseDetail, MouseSummary
from server.bundle.manifest import MouseRecord
from server.errors import InvalidInput, NotAcceptable, brief
from server.serving.discovery import version_of

if TYPE_CHECKING:
    from server.inference.engine import Engine, Gradient, Prediction
    from server.serving.repository import Bundle

__all__ = [
    "JSON",
    "NPY",
    "Answer",
    "Attention",
    "accepted",
    "attention_answer",
    "check_finite",
    "describe",
    "gradient_answer",
    "head_of",
    "header_text",
    "json_response",
    "model_info",
    "neuron_arrays",
    "neuron_std",
    "prediction_answer",
    "several_mice_answer",
    "summarize",
]

SAID: Final = ("state", "assumed", "notes")  # what a reply says about its inputs
JSON: Final = "application/json"
NPY: Final = "application/x-npy"


@dataclass(frozen=True)
class Answer:
    """The reply to a question, before it is encoded.

    Attributes:
        head: plain data that every encoding has: in the JSON body, or in the V1T-Reply header of .npy.
        arrays: by name, for JSON.
        stack: the arrays of .npy, one after another.
    """

    head: dict[str, Any]
    arrays: dict[str, Any]
    stack: Sequence[np.ndarray]

    def encoded(self, media_type: str) -> Response:
        """The reply in JSON or .npy.

        Neuron ids are not in the header of .npy, as proxies limit its length: they are those of the request, in its
        order, or all in the order of /mice/{id}/neurons.
        """
        if media_type == NPY:
            return Response(_npy(self.stack), headers={"V1T-Reply": header_text(self.head)}, media_type=NPY)
        last = {name: part for name, part in self.head.items() if name in SAID}
        return json_response({name: part for name, part in self.head.items() if name not in SAID} | self.arrays | last)


def json_response(content: Any) -> Response:
    """Plain data and arrays in JSON; each float32 in the fewest digits that give it back, NaN as null."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def header_text(head: dict[str, Any]) -> str:
    """The V1T-Reply header: ASCII JSON."""
    return json.dumps(head, ensure_ascii=True, separators=(",", ":"))


def _npy(arrays: Sequence[np.ndarray]) -> bytes:
    """One .npy after another, as `numpy.load` reads them from one open file."""
    stream = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(stream, _float32(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def accepted(accept: str | None, written: tuple[str, ...] = (JSON, NPY)) -> str:
    """The media type of the reply, by the Accept header; the first of equally acceptable ones.

    Raises:
        NotAcceptable: none is acceptable.
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
        raise NotAcceptable(
            "the server does not write replies of that type", got=brief(accept), expected=" or ".join(written)
        )
    return best


def head_of(engine: Engine, question: Question, request_id: str) -> dict[str, Any]:
    """What every reply to a question says beside its arrays."""
    return {
        "request_id": request_id,
        "model": model_info(engine),
        "mouse": question.mouse_id,
        "units": question.units,
        "state": question.state,
        "assumed": question.assumed,
        "notes": [note.model_dump() for note in question.notes],
    }


def model_info(engine: Engine | Bundle) -> dict[str, Any]:
    """The bundle that answered, as `ModelInfo` describes it."""
    manifest = engine.manifest
    return {
        "name": manifest.name,
        "version": version_of(engine.bundle),
        "hash": engine.hash,
        "members": manifest.members,
        "provider": engine.provider,
        "precision": engine.precision,
        "simulated": manifest.simulated,
        "notice": manifest.notice,
    }


def neuron_std(engine: Engine, question: Question) -> np.ndarray:
    """(n,) response std of the question's neurons."""
    std, positions = engine.neurons[question.mouse_id].response_std, question.stimulus.neurons
    return std if positions is None else std[positions]


def check_finite(question: Question, *arrays: np.ndarray) -> None:
    """Raises InvalidInput where a result is not finite: the input is too far from anything recorded."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidInput(
            "the twin has no finite response to this input",
            got="values far outside of what was recorded",
            expected="values near the training range",
            hint=f"GET /mice/{question.mouse_id} gives it.",
        )


def neuron_arrays(
    engine: Engine, question: Question, response: np.ndarray, spread: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Neuron ids, responses and spread in the units of the question."""
    if question.units == "raw":
        std = neuron_std(engine, question)
        response, spread = response * std, None if spread is None else spread * std
    ids, positions = engine.neurons[question.mouse_id].ids, question.stimulus.neurons
    arrays = {
        "neuron_ids": np.ascontiguousarray(ids if positions is None else ids[positions], dtype=np.int64),
        "responses": _float32(response),
    }
    if question.spread and spread is not None:
        arrays["spread"] = _float32(spread)
    check_finite(question, *(array for name, array in arrays.items() if name != "neuron_ids"))
    return arrays


def prediction_answer(engine: Engine, question: Question, prediction: Prediction, request_id: str) -> Answer:
    """The reply to POST /predict: .npy (B, n), with spread (2, B, n)."""
    arrays = neuron_arrays(engine, question, prediction.response, prediction.spread)
    return Answer(head_of(engine, question, request_id), arrays, [_stacked(arrays)])


def _stacked(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([arrays["responses"], arrays["spread"]]) if "spread" in arrays else arrays["responses"]


def several_mice_answer(
    engine: Engine, questions: Sequence[Question], predictions: Sequence[Prediction], request_id: str
) -> Answer:
    """The reply where several mice were asked: what they have in common once, and one .npy per mouse."""
    answers = [
        prediction_answer(engine, question, prediction, request_id)
        for question, prediction in zip(questions, predictions, strict=True)
    ]
    mice = [{name: answer.head.pop(name) for name in ("mouse", *SAID)} for answer in answers]
    in_json = [{"mouse": mouse["mouse"]} | answer.arrays | mouse for mouse, answer in zip(mice, answers, strict=True)]
    return Answer(
        answers[0].head | {"mice": mice}, {"mice": in_json}, [array for answer in answers for array in answer.stack]
    )


def gradient_answer(engine: Engine, question: Question, gradient: Gradient, request_id: str) -> Answer:
    """The reply to POST /gradient: .npy of d image (B, C, H, W), responses, d behavior and d pupil_center."""
    derivatives = {name: _float32(getattr(gradient, name)) for name in ("image", "behavior", "pupil_center")}
    check_finite(question, *derivatives.values())
    arrays = neuron_arrays(engine, question, gradient.response)
    stack = [derivatives["image"], arrays["responses"], derivatives["behavior"], derivatives["pupil_center"]]
    channels = [channel.name for channel in engine.manifest.mice[question.mouse_id].behavior]
    head = head_of(engine, question, request_id) | {"behavior_channels": channels}
    return Answer(head, arrays | {"gradient": derivatives}, stack)


class Attention(NamedTuple):
    """Attention rollout of each member, (B, M, h, w) in [0, 1]."""

    maps: np.ndarray


def attention_answer(engine: Engine, question: Question, attention: Attention, request_id: str) -> Answer:
    """The reply to POST /attention: .npy (B, M, h, w)."""
    check_finite(question, attention.maps)
    head = head_of(engine, question, request_id)
    del head["units"]
    return Answer(head, {"attention": _float32(attention.maps)}, [attention.maps])


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
        states=record.states,
        crop=bundle.manifest.crop,
        scores=record.scores,
        distilled=_distilled(bundle, record),
        members=bundle.manifest.members,
        licence=bundle.manifest.licence,
        citation=bundle.manifest.citation,
    ).model_dump()


def _distilled(bundle: Bundle, record: MouseRecord) -> Distilled | None:
    made = bundle.manifest.provenance.distillation
    if made is None:
        return None
    agreement = made.agreement.get(record.mouse_id, {})
    return Distilled(teacher=made.teacher, speedup=made.speedup, agreement=agreement)


def _mouse(bundle: Bundle, record: MouseRecord) -> dict[str, Any]:
    return {
        "mouse": record.mouse_id,
        "data_key": record.data_key,
        "n_neurons": record.n_neurons,
        "image_shape": record.image_shape,
        "simulated": bundle.manifest.simulated,
        "standardized_inputs": record.standardized_inputs,
        "uses": list(record.uses),
    }
