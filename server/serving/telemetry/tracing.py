"""Attributes of a request's OpenTelemetry span: mouse, bundle, and the time of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from opentelemetry import trace

__all__ = ["describe"]


def describe(method: str, state: Mapping[str, Any]) -> None:
    """Names the current span after its route, and sets the attributes in the request's state."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.update_name(f"{method} {state['route']}")
    span.set_attributes(
        {"http.route": state["route"], "v1t.mouse": state["mouse"], "v1t.request_id": state["request_id"]}
    )
    if (bundle := state.get("bundle")) is not None:
        span.set_attributes({"v1t.bundle": bundle.manifest.name, "v1t.hash": bundle.hash})
    if (timing := state.get("timing")) is not None:
        span.set_attributes({f"v1t.seconds.{stage}": seconds for stage, seconds in asdict(timing).items()})
