"""The log as JSON: every line is an object, with the request id if it is about a request, and without keys."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest
from support.live_server import serving
from support.tiny_bundle import write_tiny_bundle

from server.serving.telemetry.logs import REQUEST_ID, JsonFormatter

KEY = "a-key-of-the-lab-0123"


def line_of(record: logging.LogRecord) -> dict[str, object]:
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)  # type: ignore[no-any-return]


def test_a_line_has_the_message_and_the_request_id() -> None:
    record = logging.LogRecord("bentoml.v1t", logging.WARNING, "", 0, "a %s\nb", ("x",), None)
    record.fields = {"ms": 1.5}
    assert line_of(record).items() >= {"level": "warning", "message": "a x\nb", "ms": 1.5}.items()
    assert "request_id" not in line_of(record)
    token = REQUEST_ID.set("7")
    assert line_of(record)["request_id"] == "7"
    REQUEST_ID.reset(token)


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (ValueError, error, error.__traceback__))
    assert "second" in str(line_of(record)["exception"])


@pytest.mark.slow
def test_a_server_writes_json_with_request_ids_and_no_keys(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles" / "tiny")
    settings = {"V1T_LOG": "json", "V1T_ACCESS_LOG": "true", "V1T_API_KEYS": KEY}
    with serving(tmp_path / "bundles", tmp_path, **settings) as server:
        server.wait_for("/readyz", 200)
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "trial-7"}
        assert httpx.get(f"{server.url}/mice/A", headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/mice/A%0Aforged", headers={"X-Request-Id": "trial-8"}).status_code == 401
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (mine,) = (line for line in lines if line.get("request_id") == "trial-7")
    assert (mine["route"], mine["mouse"], mine["status"]) == ("/mice/{mouse}", "A", 200)
    assert mine["caller"].startswith("key-")
    assert any(line.get("request_id") == "trial-8" and line["status"] == 401 for line in lines)
    assert any(line["message"].startswith("settings: ") for line in lines)
    assert KEY not in text
