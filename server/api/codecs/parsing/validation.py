"""Checks plain data against the types of `schemas`, and translates pydantic's errors into ours."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from server.errors import InvalidInput, brief

__all__ = ["unknown_fields", "validated"]

M = TypeVar("M", bound=BaseModel)

_HINTS = {"mouse": "GET /mice lists them.", "neuron_ids": "GET /mice/{mouse}/neurons lists them."}
_TAGS = frozenset({"str", "int", "float", "bool"})  # pydantic names the member of a union that it tried


def validated(model: type[M], fields: dict[str, Any]) -> M:
    """The fields as the model's type.

    Raises:
        InvalidInput: names the field, what it holds and what it accepts.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _translated(model, error.errors(include_url=False)) from None


def unknown_fields(names: list[str], known: list[str]) -> InvalidInput:
    """The error for fields that the request does not have."""
    of_mouse = "behavior" in known and names[0].isidentifier()
    hint = f'If it is a behaviour channel of the mouse: behavior={{"{names[0]}": 1}}.' if of_mouse else None
    return InvalidInput(
        f"unknown field{'s'[: len(names) > 1]} {', '.join(map(brief, names[:5]))}",
        got=brief(names),
        expected=", ".join(sorted(known)),
        hint=hint,
    )


def _translated(model: type[BaseModel], errors: list[ErrorDetails]) -> InvalidInput:
    unknown = [str(error["loc"][-1]) for error in errors if error["type"] == "extra_forbidden"]
    if unknown:
        nested = next(error for error in errors if error["type"] == "extra_forbidden")["loc"][:-1]
        if nested:
            return InvalidInput(f"{_path(nested)} has an unknown field", got=brief(unknown), hint="See /docs.json.")
        return unknown_fields(sorted(unknown), list(model.model_fields))
    field = str(errors[0]["loc"][0])
    of_field = [error for error in errors if str(error["loc"][0]) == field]
    if errors[0]["type"] == "missing":
        info = model.model_fields.get(field)
        return InvalidInput(f"{_path(errors[0]['loc'])} is missing", expected=info.description if info else None)
    innermost = max(of_field, key=lambda error: len(_path(error["loc"])))  # the member of a union that fits best
    path = _path(innermost["loc"])
    accepted = dict.fromkeys(_accepted(error) for error in of_field if _path(error["loc"]) == path)
    return InvalidInput(
        f"{path} is not valid", got=brief(innermost["input"]), expected=" or ".join(accepted), hint=_HINTS.get(field)
    )


def _accepted(error: ErrorDetails) -> str:
    if error["type"] == "too_short":
        return f"a list of at least {error['ctx']['min_length']}"
    return error["msg"].removeprefix("Input should be ")


def _path(location: tuple[int | str, ...]) -> str:
    """A field in the notation of the request, such as inputs[0].shape."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in _TAGS:
            path += f".{part}" if path else part
    return path
