"""A request's fields to checked arrays. Nothing is cast, reshaped or filled in without the reply saying so.

A field is a parsed JSON value; the form's text is parsed to the same. Errors name the field, what came and what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import orjson

from server.api.codecs.arrays import as_float32, is_number, shape_of
from server.api.codecs.images import read_images
from server.api.codecs.schemas import (
    AttentionForm,
    AttentionRequest,
    GradientForm,
    GradientRequest,
    PredictForm,
    PredictRequest,
    Resize,
    Units,
)
from server.bundle.manifest import BEHAVIOR_CHANNELS, Channel, MouseRecord, NeuronTable
from server.errors import InvalidInput, MalformedBody, NotFound, TooLarge, brief
from server.settings import Settings

__all__ = [
    "ATTENTION",
    "GRADIENT",
    "PREDICT",
    "Fields",
    "Question",
    "address",
    "check",
    "check_mice",
    "read_form",
    "read_json",
    "several_mice",
]


@dataclass(frozen=True)
class Fields:
    """The fields that a route's request may have, in JSON and as a form, and whether it asks several mice."""

    in_json: frozenset[str]
    as_form: frozenset[str]
    several_mice: bool = False


PREDICT = Fields(frozenset(PredictRequest.model_fields), frozenset(PredictForm.model_fields), several_mice=True)
GRADIENT = Fields(frozenset(GradientRequest.model_fields), frozenset(GradientForm.model_fields))
ATTENTION = Fields(frozenset(AttentionRequest.model_fields), frozenset(AttentionForm.model_fields))

_WORDS = frozenset({"mouse", "model", "units", "resize", "arrays"})  # form fields that are text, not JSON


@dataclass(frozen=True)
class Question:
    """One request, checked, in the recording's own units.

    Attributes:
        image: (B, C, H, W) float32.
        behavior: (B, 3) float32.
        pupil_center: (B, 2) float32.
        neurons: (n,) int64 positions, None for all.
        weights: (n,) or (B, n) float32, of the neurons in a gradient; None where none is asked for.
        assumed: what was filled in, changed or ignored, in words.
    """

    mouse_id: str
    image: np.ndarray
    behavior: np.ndarray
    pupil_center: np.ndarray
    neurons: np.ndarray | None
    units: Units
    spread: bool
    assumed: list[str]
    weights: np.ndarray | None = None


def read_json(body: bytes) -> dict[str, Any]:
    """The fields of a JSON body. NaN, Infinity and deep nesting are refused by the parser."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody("the body is not valid JSON", got=brief(str(error)), expected="a JSON object") from None
    if not isinstance(fields, dict):
        raise InvalidInput("the body is not a JSON object", got=brief(fields), expected='{"mouse": ..., "image": ...}')
    return fields


def read_form(parts: Iterable[tuple[str, str | bytes]], known: Fields = PREDICT) -> dict[str, Any]:
    """The fields of a form, as JSON would have given them; `image` becomes a list of files."""
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    for name, value in parts:
        if name not in known.as_form:
            raise _unknown_fields([name], known.as_form)
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
        is_word = name in _WORDS and not (name == "mouse" and known.several_mice and value.startswith("["))
        fields[name] = value if is_word else _json_text(name, value)
    if files:
        fields["image"] = files
    x, y = fields.pop("pupil_center_x", None), fields.pop("pupil_center_y", None)
    if x is not None or y is not None:
        fields["pupil_center"] = _join_pupil_center(x, y, fields)
    return fields


def _json_text(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        expected = "true or false" if name == "spread" else "a number, or a list such as [1, 2]"
        raise InvalidInput(f"{name} cannot be read", got=brief(text), expected=expected) from None


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


def address(fields: dict[str, Any], known: Fields = PREDICT) -> tuple[str, str | None]:
    """Which mouse, of which model, is asked; no field may be unknown."""
    unknown = sorted(fields.keys() - known.in_json)
    if unknown:
        raise _unknown_fields(unknown, known.in_json)
    mouse, model = fields.get("mouse"), fields.get("model")
    if mouse is None:
        raise InvalidInput("mouse is missing", expected="a mouse's name", hint="GET /mice lists them.")
    for name, value in (("mouse", mouse), ("model", model)):
        if value is not None and not isinstance(value, str):
            raise InvalidInput(f"{name} is not text", got=brief(value), expected="a name in quotes")
    return mouse, model


def several_mice(fields: dict[str, Any], known: Fields) -> list[str] | Literal["*"] | None:
    """The mice that are asked together, "*" for all; None where one is, as the route may always be."""
    mice = fields.get("mouse")
    if not known.several_mice or (isinstance(mice, str) and mice != "*"):
        return None
    if isinstance(mice, list):
        if not mice or not all(isinstance(mouse, str) for mouse in mice) or len(set(mice)) < len(mice):
            raise InvalidInput(
                "mouse is no list of mice", got=brief(mice), expected='a name, such names, each once, or "*" for all'
            )
        return mice
    return "*" if mice == "*" else None


def _unknown_fields(names: list[str], known: frozenset[str]) -> InvalidInput:
    return InvalidInput(
        f"unknown field{'s' if len(names) > 1 else ''} {', '.join(map(brief, names[:5]))}",
        got=brief(names),
        expected=", ".join(sorted(known)),
    )


def check(
    fields: dict[str, Any], record: MouseRecord, neurons: NeuronTable, settings: Settings, known: Fields = PREDICT
) -> Question:
    """Everything else about the fields, against the mouse that is asked. May take a while: images are decoded here."""
    assumed: list[str] = []
    units: Units = _choice(fields, "units", get_args(Units)) or "standardized"
    resize: Resize | None = _choice(fields, "resize", get_args(Resize))
    spread = fields.get("spread")
    if spread is not None and not isinstance(spread, bool):
        raise InvalidInput("spread is not true or false", got=brief(spread), expected="true or false")
    positions = _positions(fields.get("neuron_ids"), record, neurons)
    if units == "raw":
        _check_raw(positions, record, neurons)
    n_neurons = len(neurons) if positions is None else len(positions)
    image = read_images(fields.get("image"), record, resize, settings, assumed)
    return Question(
        mouse_id=record.mouse_id,
        image=image,
        behavior=_behavior(fields, record, len(image), assumed),
        pupil_center=_pupil_center(fields.get("pupil_center"), record, len(image), assumed),
        neurons=positions,
        units=units,
        spread=bool(spread),
        assumed=assumed,
        weights=_weights(fields.get("weights"), len(image), n_neurons) if "weights" in known.in_json else None,
    )


def check_mice(
    fields: dict[str, Any],
    records: Sequence[MouseRecord],
    neurons: Mapping[str, NeuronTable],
    settings: Settings,
) -> list[Question]:
    """One question for each mouse; what is left out becomes each mouse's own training mean."""
    if fields.get("neuron_ids") is not None:
        raise InvalidInput(
            "neuron_ids are those of one mouse",
            got=f"{len(records)} mice",
            expected="no neuron_ids with several mice",
            hint="Ask the mice one by one, or choose from the reply.",
        )
    questions: list[Question] = []
    for record in records:
        questions.append(check(fields, record, neurons[record.mouse_id], settings))
        n_images = len(questions[0].image)
        if n_images * len(records) > settings.max_images:
            raise TooLarge(
                "too many images in one request",
                got=f"{n_images} for {len(records)} mice each",
                expected=f"at most {settings.max_images} in all",
                hint="Send them in several requests.",
            )
    return questions


def _weights(value: Any, n_images: int, n_neurons: int) -> np.ndarray:
    expected = f"{n_neurons} numbers, one per neuron, or {n_images} such lists"
    if value is None:
        raise InvalidInput("weights is missing", expected=expected)
    shape = shape_of(value, "weights")
    if shape not in {(n_neurons,), (n_images, n_neurons)}:
        raise InvalidInput("weights does not fit the neurons", got=f"shape {shape}", expected=expected)
    return as_float32(np.array(value, dtype=np.float64), "weights")


def _choice(fields: dict[str, Any], name: str, words: tuple[str, ...]) -> Any:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and value in words):
        return value
    raise InvalidInput(f"{name} is none of its words", got=brief(value), expected=" or ".join(words))


def _positions(ids: Any, record: MouseRecord, neurons: NeuronTable) -> np.ndarray | None:
    if ids is None:
        return None
    hint = f"GET /mice/{record.mouse_id}/neurons lists them."
    if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
        raise InvalidInput(
            "neuron_ids is not a list of whole numbers", got=brief(ids), expected="such as [12, 99]", hint=hint
        )
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


def _per_image(value: Any, name: str, n_images: int) -> np.ndarray:
    if is_number(value):
        return np.full(n_images, as_float32(np.asarray(value, dtype=np.float64), name), dtype=np.float32)
    if not isinstance(value, list):
        raise InvalidInput(f"{name} is not a number", got=brief(value), expected="a number, or a list of one per image")
    shape = shape_of(value, name)
    if shape != (n_images,):
        raise InvalidInput(
            f"{name} does not fit the images", got=f"shape {shape}", expected=f"a number, or a list of {n_images}"
        )
    return as_float32(np.array(value, dtype=np.float64), name)


def _behavior(fields: dict[str, Any], record: MouseRecord, n_images: int, assumed: list[str]) -> np.ndarray:
    channels = {channel.name: channel for channel in record.behavior}
    columns = []
    for name, unit in BEHAVIOR_CHANNELS:
        channel = channels.get(name, Channel(name=name, unit=unit))
        value = fields.get(name)
        if value is None:
            mean = _left_out(name, [channel], "behavior", record, assumed)
            columns.append(np.full(n_images, mean[0], dtype=np.float32))
            continue
        columns.append(_per_image(value, name, n_images))
        _note_ignored(name, "behavior", record, assumed)
    return np.stack(columns, axis=1)  # (B, 3)


def _pupil_center(value: Any, record: MouseRecord, n_images: int, assumed: list[str]) -> np.ndarray:
    if value is None:
        mean = _left_out("pupil_center", record.pupil_center, "pupil_center", record, assumed)
        return np.tile(np.array(mean, dtype=np.float32), (n_images, 1))
    if not isinstance(value, list):
        raise InvalidInput("pupil_center is not a pair", got=brief(value), expected="[x, y]")
    shape = shape_of(value, "pupil_center")
    if shape not in {(2,), (n_images, 2)}:
        raise InvalidInput(
            "pupil_center does not fit the images",
            got=f"shape {shape}",
            expected=f"[x, y], or {n_images} such pairs",
        )
    _note_ignored("pupil_center", "pupil_center", record, assumed)
    centers = as_float32(np.array(value, dtype=np.float64), "pupil_center")
    return np.array(np.broadcast_to(centers, (n_images, 2)))


def _left_out(name: str, channels: list[Channel], group: str, record: MouseRecord, assumed: list[str]) -> list[float]:
    """The training mean of each channel, noted, or an error where the mouse needs the value and no mean is known."""
    means = [channel.mean for channel in channels]
    known = [mean for mean in means if mean is not None]
    if group not in record.uses:
        return [mean or 0.0 for mean in means]  # changes nothing, so there is nothing to say
    if len(known) < len(means):
        raise InvalidInput(
            f"{name} is missing and mouse {record.mouse_id!r} has no training mean to stand in for it",
            expected=f"{name}, standardised" if record.standardized_inputs else name,
            hint=f"GET /mice/{record.mouse_id} says what this mouse uses.",
        )
    text = f"{known[0]:.4g}" if len(known) == 1 else f"({', '.join(f'{mean:.4g}' for mean in known)})"
    assumed.append(f"{name} left out: the training mean {text} {channels[0].unit} of mouse {record.mouse_id} was used")
    return known


def _note_ignored(name: str, group: str, record: MouseRecord, assumed: list[str]) -> None:
    if group not in record.uses:
        assumed.append(f"{name} is ignored: the responses of mouse {record.mouse_id} do not depend on it in this model")
