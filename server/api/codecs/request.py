"""A request's fields to a question: everything that the engine computes it from, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from pydantic import BaseModel

from server.api.codecs.behavior import BehaviorReader
from server.api.codecs.images.reader import ImageReader
from server.api.codecs.parsing.arrays import as_float32, shape_of
from server.api.codecs.parsing.json_text import check_keys, parse_json
from server.api.codecs.parsing.validation import unknown_fields, validated
from server.api.codecs.recorded_range import ImageRange, Outside, refuse, standardized_note
from server.api.codecs.schemas import (
    AttentionForm,
    AttentionRequest,
    GradientForm,
    GradientRequest,
    Note,
    PredictForm,
    PredictRequest,
    SensoriumBehavior,
    State,
    Units,
)
from server.bundle.manifest import MouseRecord
from server.bundle.neurons import NeuronTable
from server.errors import InvalidInput, NotFound, TooLarge, brief
from server.inference.stimulus import Stimulus
from server.settings import Settings

__all__ = [
    "ImageRequest",
    "Question",
    "named_mice",
    "question_about",
    "questions_about",
    "read_form",
    "read_json",
    "read_request",
]

ImageRequest: TypeAlias = PredictRequest | GradientRequest | AttentionRequest

_FORMS: Mapping[type[ImageRequest], type[BaseModel]] = {
    PredictRequest: PredictForm,
    GradientRequest: GradientForm,
    AttentionRequest: AttentionForm,
}
_BEHAVIOR_EXPECTED = 'channels and their values, such as {"running_speed": 3}'
_WORDS = frozenset({"mouse", "model", "units", "resize", "state"})  # form fields that are text, not JSON


@dataclass(frozen=True)
class Question:
    """A checked request about one mouse.

    Attributes:
        stimulus: what the mouse is shown and does, and the neurons that are read.
        units: of the responses in the reply.
        spread: whether the reply has the std over members.
        state: what filled in behaviour and pupil centre that were left out.
        assumed: what was filled in, changed or ignored, in words.
        notes: on inputs outside of what was recorded.
        weights: (n,) or (B, n) float32, of the neurons in a gradient; None for other requests.
    """

    stimulus: Stimulus
    units: Units
    spread: bool
    state: State
    assumed: list[str]
    notes: list[Note]
    weights: np.ndarray | None = None

    @property
    def mouse_id(self) -> str:
        return self.stimulus.mouse_id


def read_json(body: bytes) -> dict[str, Any]:
    """The fields of a JSON body. The parser refuses NaN, Infinity and deep nesting."""
    fields = parse_json(body, "the body")
    if not isinstance(fields, dict):
        raise InvalidInput("the body is not a JSON object", got=brief(fields), expected='{"mouse": ..., "image": ...}')
    return fields


def read_form(parts: Iterable[tuple[str, str | bytes]], model: type[ImageRequest]) -> dict[str, Any]:
    """The fields of a form, as JSON would have given them; `image` becomes a list of files."""
    known = _FORMS[model].model_fields
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    for name, value in parts:
        if name not in known:
            raise unknown_fields([name], list(known))
        if name == "image":
            if isinstance(value, str):
                raise InvalidInput(
                    "image is text", got=brief(value), expected="a file", hint="curl -F image=@picture.png"
                )
            files.append(value)
            continue
        if isinstance(value, bytes):
            raise InvalidInput(f"{name} is a file", expected="text", hint="Only image is a file.")
        if name in fields:
            raise InvalidInput(f"{name} is given twice", expected="one field", hint="Write several values as [1, 2].")
        is_list_of_mice = name == "mouse" and model is PredictRequest and value.startswith("[")
        fields[name] = value if name in _WORDS and not is_list_of_mice else _json_text(name, value)
    if files:
        fields["image"] = files
    x, y = fields.pop("pupil_center_x", None), fields.pop("pupil_center_y", None)
    if x is not None or y is not None:
        fields["pupil_center"] = _join_pupil_center(x, y, fields)
    return fields


def _json_text(name: str, text: str) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        expected = "true or false" if name in ("spread", "strict") else "a number, or a list such as [1, 2]"
        expected = _BEHAVIOR_EXPECTED if name == "behavior" else expected
        raise InvalidInput(f"{name} cannot be read", got=brief(text), expected=expected) from None
    check_keys(text.encode(), value, name)
    return value


def _join_pupil_center(x: Any, y: Any, fields: dict[str, Any]) -> Any:
    if x is None or y is None or "pupil_center" in fields:
        raise InvalidInput(
            "the pupil centre is given in part, or twice",
            got=brief(sorted({"pupil_center_x": x, "pupil_center_y": y, **fields})),
            expected="pupil_center, or both pupil_center_x and pupil_center_y",
        )
    if not isinstance(x, list) and not isinstance(y, list):
        return [x, y]
    if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
        raise InvalidInput(
            "pupil_center_x and pupil_center_y do not pair up", got=f"{brief(x)} and {brief(y)}", expected="one of each"
        )
    return [list(pair) for pair in zip(x, y, strict=True)]


def read_request(fields: dict[str, Any], model: type[ImageRequest]) -> ImageRequest:
    """The fields as the route's type; null counts as left out. Arrays are read later, against the mouse."""
    given = {name: value for name, value in fields.items() if value is not None}
    if "mouse" not in given and not given.keys() - model.model_fields.keys():
        raise InvalidInput("mouse is missing", expected="a mouse's name", hint="GET /mice lists them.")
    return validated(model, {"image": None} | given)  # an image that is missing is reported with the mouse's shape


def named_mice(request: ImageRequest) -> list[str] | Literal["*"] | None:
    """The mice that are asked together, "*" for all of a bundle; None where the request is about one mouse.

    Raises:
        InvalidInput: the list is empty or repeats a mouse.
    """
    mice = request.mouse
    if isinstance(mice, list):
        if not mice or len(set(mice)) < len(mice):
            raise InvalidInput(
                "mouse is not a list of different mice",
                got=brief(mice),
                expected='a name, a list of names, or "*" for all',
            )
        return mice
    return "*" if mice == "*" and isinstance(request, PredictRequest) else None


def question_about(
    record: MouseRecord,
    request: ImageRequest,
    neurons: NeuronTable,
    settings: Settings,
    *,
    shown: ImageRange | None = None,
) -> Question:
    """The request as a question about one mouse. Decodes the images, which may take a while.

    Args:
        shown: of the images that the mouse will be shown, where they are not those of the request.

    Raises:
        OutsideRecording: the request is strict, and an input lies outside of what was recorded.
    """
    assumed: list[str] = []
    outside: list[Outside] = []
    positions = units = None
    if not isinstance(request, AttentionRequest):
        positions, units = _positions(request.neuron_ids, record, neurons), request.units
    if units == "raw":
        _check_raw(positions, record, neurons)
    n_neurons = len(neurons) if positions is None else len(positions)
    image = ImageReader(record, request.resize, settings, assumed).read(request.image)
    reader = BehaviorReader(record, len(image), request.state, assumed, outside)
    stimulus = Stimulus(
        mouse_id=record.mouse_id,
        image=image,
        behavior=reader.behavior(_behavior_of(request)),
        pupil_center=reader.pupil_center(request.pupil_center),
        neurons=positions,
    )
    if shown is None:
        shown = ImageRange(record)
        shown.add(image)
    outside[:0] = shown.found()
    if request.strict and outside:
        raise refuse(outside[0], record.mouse_id)
    return Question(
        stimulus=stimulus,
        units=units or "standardized",
        spread=isinstance(request, PredictRequest) and request.spread,
        state=reader.state,
        assumed=assumed,
        notes=standardized_note(record) + [one.note() for one in outside],
        weights=_weights(request.weights, len(image), n_neurons) if isinstance(request, GradientRequest) else None,
    )


def questions_about(
    records: Sequence[MouseRecord], request: PredictRequest, neurons: Mapping[str, NeuronTable], settings: Settings
) -> list[Question]:
    """One question per mouse. What is left out is filled in by each mouse's own statistics."""
    if request.neuron_ids is not None:
        raise InvalidInput(
            "neuron_ids are those of one mouse",
            got=f"{len(records)} mice",
            expected="no neuron_ids with several mice",
            hint="Ask the mice one by one, or choose from the reply.",
        )
    questions: list[Question] = []
    for record in records:
        questions.append(question_about(record, request, neurons[record.mouse_id], settings))
        n_images = len(questions[0].stimulus.image)
        if n_images * len(records) > settings.max_images:
            raise TooLarge(
                "too many images in one request",
                got=f"{n_images} for {len(records)} mice each",
                expected=f"at most {settings.max_images} in all",
                hint="Send them in several requests.",
            )
    return questions


def _behavior_of(request: ImageRequest) -> dict[str, Any]:
    """Channel -> its value, of `behavior` and of the fields for single channels."""
    named = {} if request.behavior is None else request.behavior
    if not isinstance(named, dict):
        raise InvalidInput("behavior is not an object", got=brief(named), expected=_BEHAVIOR_EXPECTED)
    single = {name: value for name in SensoriumBehavior.model_fields if (value := getattr(request, name)) is not None}
    if twice := sorted(single.keys() & named.keys()):
        expected = "one value, in behavior or as a field of its own"
        raise InvalidInput(f"{twice[0]} is given twice", got=f"{twice[0]} and behavior", expected=expected)
    return {**single, **{name: value for name, value in named.items() if value is not None}}


def _weights(value: Any, n_images: int, n_neurons: int) -> np.ndarray:
    expected = f"{n_neurons} numbers, one per neuron, or {n_images} such lists"
    shape = shape_of(value, "weights")
    if shape not in {(n_neurons,), (n_images, n_neurons)}:
        raise InvalidInput("weights does not fit the neurons", got=f"shape {shape}", expected=expected)
    return as_float32(np.array(value, dtype=np.float64), "weights")


def _positions(ids: list[int] | None, record: MouseRecord, neurons: NeuronTable) -> np.ndarray | None:
    if ids is None:
        return None
    hint = f"GET /mice/{record.mouse_id}/neurons lists them."
    if len(set(ids)) != len(ids):
        twice = next(neuron_id for neuron_id, count in Counter(ids).items() if count > 1)
        raise InvalidInput("neuron_ids repeats an id", got=twice, expected="each id once")
    positions = [neurons.position(neuron_id) for neuron_id in ids]
    unknown = [neuron_id for neuron_id, position in zip(ids, positions, strict=True) if position is None]
    if unknown:
        raise NotFound(f"mouse {record.mouse_id!r} has no such neurons", got=brief(unknown), hint=hint)
    return np.array(positions, dtype=np.int64)


def _check_raw(positions: np.ndarray | None, record: MouseRecord, neurons: NeuronTable) -> None:
    std = neurons.response_std if positions is None else neurons.response_std[positions]
    if not np.isfinite(std).all():
        raise InvalidInput(
            f"the response std of mouse {record.mouse_id!r} is not known, so that raw units are not",
            got="units=raw",
            expected="units=standardized",
        )
