"""Errors, in this server's form and in that of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from server.api.codecs.schemas.fields import ClosedModel

__all__ = [
    "ErrorBody",
    "ErrorReply",
    "ProtocolError",
]


class ErrorBody(ClosedModel):
    code: str = Field(examples=["invalid_input"])
    message: str
    got: Any = None
    expected: Any = None
    hint: str | None = None


class ErrorReply(ClosedModel):
    error: ErrorBody
    request_id: str


class ProtocolError(ClosedModel):
    error: str
