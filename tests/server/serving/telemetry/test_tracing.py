"""Spans, as BentoML's tracing records them with V1T_TRACING=true."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.http import ExcludeList
from support.in_process import cpu_settings, create_service
from support.in_process import serving as serving_client
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's, in its own imports
    from bentoml._internal.configuration.containers import BentoMLContainer

    from server.service import create_service


@pytest.fixture
def twin(tmp_path: Path) -> TinyTwin:
    return write_tiny_bundle(tmp_path / "tiny")


@asynccontextmanager
async def serving(twin: TinyTwin) -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    BentoMLContainer.tracer_provider.set(provider)
    # BentoML remembers what the first service of a process left out.
    BentoMLContainer.tracing_excluded_urls.set(ExcludeList([]))
    try:
        async with serving_client(cpu_settings(twin.folder, tracing=True)) as client:
            exporter.clear()
            yield client, exporter
    finally:
        BentoMLContainer.tracer_provider.reset()
        BentoMLContainer.tracing_excluded_urls.reset()


async def test_a_span_names_the_mouse_and_the_bundle_and_times_the_stages(twin: TinyTwin) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (1, 8, 12)).tolist()
    async with serving(twin) as (client, exporter):
        parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
        headers = {"X-Request-Id": "trial-7", "traceparent": parent}
        assert (await client.post("/predict", json={"mouse": "A", "image": image}, headers=headers)).status_code == 200
        (await client.get("/mice/nobody")).json()
        spans = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    asked, missed = spans
    assert asked.name == "POST /predict"
    assert f"{asked.context.trace_id:032x}" == "0123456789abcdef0123456789abcdef"
    said = dict(asked.attributes or {})
    assert (said["v1t.mouse"], said["v1t.request_id"]) == ("A", "trial-7")
    assert (said["v1t.bundle"], said["v1t.hash"]) == ("tiny", twin.manifest.hash)
    parts = [said[f"v1t.seconds.{part}"] for part in ("reading", "queued", "computing", "writing")]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in parts)
    took = (asked.end_time - asked.start_time) / 1e9
    assert 0 < sum(parts) < took  # type: ignore[arg-type]
    assert missed.name == "GET /mice/{mouse}"
    assert dict(missed.attributes or {})["http.status_code"] == 404


@pytest.mark.parametrize(("tracing", "excluded"), [(True, {}), (False, {"excluded_urls": ".*"})])
def test_without_the_setting_bentoml_traces_nothing(tracing: bool, excluded: dict[str, str]) -> None:
    assert create_service(Settings(tracing=tracing)).config["tracing"] == excluded
