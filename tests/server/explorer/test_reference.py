"""/docs: the API, readable, and tried from the page."""

from __future__ import annotations

import httpx
import pytest
from support.browser import Explorer

pytestmark = pytest.mark.slow


def test_every_operation_is_listed_and_opens(explorer: Explorer) -> None:
    explorer.open("docs", settle=False)
    document = httpx.get(f"{explorer.url}/docs.json").json()
    operations = {verb["operationId"] for verbs in document["paths"].values() for verb in verbs.values()}
    explorer.wait("return document.querySelector('.operation')")
    assert set(explorer.js("return [...document.querySelectorAll('.operation')].map((one) => one.id)")) == operations
    explorer.js("document.querySelectorAll('.operation').forEach((one) => { one.open = true })")
    explorer.wait("return document.querySelectorAll('.operation form').length === arguments[0]", len(operations))
    text = explorer.text("#predict")
    for field in document["components"]["schemas"]["PredictRequest"]["properties"]:
        assert field in text


@pytest.mark.parametrize(
    "operation",
    ["predict", "gradient", "attention", "receptive_fields", "mice", "mouse", "neurons", "v2_server_metadata"],
)
def test_an_operation_can_be_tried_as_it_stands(explorer: Explorer, operation: str) -> None:
    explorer.open("docs", settle=False)
    explorer.wait("return document.getElementById(arguments[0])", operation)
    explorer.js("document.getElementById(arguments[0]).open = true", operation)
    explorer.wait("return document.querySelector(`#${arguments[0]} form`)", operation)
    explorer.js("document.querySelector(`#${arguments[0]} form`).requestSubmit()", operation)
    status = explorer.wait("return document.querySelector(`#${arguments[0]} .reply`)?.dataset.status", operation)
    assert status == "200", explorer.text(f"#{operation} .reply")
