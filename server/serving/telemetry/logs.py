"""Log formats: BentoML's text, or one JSON object per line. Lines about a request have its id."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

__all__ = ["REQUEST_ID", "JsonFormatter", "configure"]

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

_LOGGERS = ("", "bentoml", "uvicorn.error", "circus")  # with handlers of BentoML; "" is the root


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message, and the `fields` of a call's `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(kind: Literal["text", "json"]) -> None:
    """Sets the log format of this process; to be called after BentoML has made its handlers."""
    if kind == "text":
        return
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonFormatter())
