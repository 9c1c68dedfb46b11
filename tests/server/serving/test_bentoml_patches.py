"""The internals of BentoML and of its supervisor that `bentoml_patches` uses exist, and the patches work."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import warnings
from types import SimpleNamespace
from typing import Any

import click
import pytest
import uvicorn
from circus.arbiter import Arbiter
from circus.controller import Controller
from opentelemetry.instrumentation import asgi
from uvicorn.protocols.http import httptools_impl

from server.serving import bentoml_patches
from server.serving.limits.connection import Connection

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's, in its own imports
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.utils.analytics import usage_stats
    from bentoml_cli.serve import build_serve_command

SERVE = build_serve_command().commands["serve"]  # before a service of another test changes the configuration


def test_usage_reports_stay_off_though_the_answer_was_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "False")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "somewhere")
    usage_stats.do_not_track.cache_clear()
    assert not usage_stats.do_not_track()
    monkeypatch.delenv("BENTOML_DO_NOT_TRACK")
    bentoml_patches.isolate()
    assert usage_stats.do_not_track()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_the_bound_address_is_the_configuration_s_without_a_command_line() -> None:
    http = BentoMLContainer.http
    assert bentoml_patches.bound_address() == (http.host.get(), http.port.get())


def serve_command(**options: Any) -> click.Context:
    """The context of `bentoml serve` with these options, each of which it has."""
    context = click.Context(SERVE)
    context.params = {str(parameter.name): None for parameter in SERVE.params}
    assert context.params.keys() >= options.keys()
    context.params |= options
    return context


def test_options_of_the_command_come_before_the_configuration() -> None:
    with serve_command(host="0.0.0.0", port=0, api_workers=None):
        assert bentoml_patches.bound_address() == ("0.0.0.0", 0)


@pytest.mark.parametrize(
    ("option", "configured", "workers"),
    [(None, 1, 1), (None, None, 1), (3, 1, 3), (1, 4, 4), (None, "cpu_count", "cpu_count")],
)
def test_workers_are_counted_wherever_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, option: int | None, configured: Any, workers: Any
) -> None:
    with serve_command(api_workers=option):
        monkeypatch.setattr(BentoMLContainer.config, "get", lambda: {"services": {"twins": {"workers": configured}}})
        assert bentoml_patches.workers_asked("twins") == workers


@pytest.mark.parametrize(
    ("mapped", "url"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://10.0.0.7:8080", "https://10.0.0.7:8080"),
        ("http://::1:3000", "http://[::1]:3000"),
    ],
)
def test_the_served_url_can_be_opened(monkeypatch: pytest.MonkeyPatch, mapped: str, url: str) -> None:
    monkeypatch.setenv("BENTOML_RUNNER_MAP", json.dumps({"twins": mapped}))
    assert bentoml_patches.served_url("twins") == url
    monkeypatch.delenv("BENTOML_RUNNER_MAP")
    assert bentoml_patches.served_url("twins") is None


async def test_requests_leave_no_timer_behind() -> None:
    from bentoml._internal.server.http.traffic import TimeoutMiddleware
    from starlette.responses import Response

    bentoml_patches.remove_timers()
    loop = asyncio.get_running_loop()
    armed: list[float] = []
    call_later = loop.call_later
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    def count(delay: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        armed.append(delay)
        return call_later(delay, *arguments, **more)

    loop.call_later = count  # type: ignore[method-assign]
    await TimeoutMiddleware(Response("answer"), 60)({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert sent == ["http.response.start", "http.response.body"]
    assert armed == []


def test_uvicorn_has_the_internals_that_the_connection_extends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "replaced below")
    bentoml_patches.use_protocol(Connection)
    config = uvicorn.Config(app=lambda: None)
    config.load()
    assert config.http_protocol_class is Connection
    protocol = inspect.getsource(httptools_impl)
    for internal in (
        'msg = "Invalid HTTP request received."',
        "def send_400_response(self, msg: str)",
        "def _unsupported_upgrade_warning(self)",
        "def _unset_keepalive_if_required(self)",
        "self.ws_protocol_class",
        "self.pipeline",
        "self.flow.pause_reading()",
        "if self.cycle and not self.cycle.response_complete:",
        "self.waiting_for_100_continue",
        "self.message_event.set()",
        "if self.disconnected:",
    ):
        assert internal in protocol


def test_the_supervisor_has_the_internals_that_are_adjusted() -> None:
    assert "self.check_delay" in inspect.getsource(Controller.start)
    stopping = inspect.getsource(Arbiter)
    for internal in (
        "def _stop_watchers",
        "self._stopping = True",
        "yield self._stop_watchers(",
        "self.sockets.close_all()",
    ):
        assert internal in stopping


def test_the_supervisor_checks_often_and_closes_the_port_before_it_stops_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Controller, "start", lambda controller: calls.append("start"))
    bentoml_patches.tune_supervisor(check_seconds=2)
    sockets = SimpleNamespace(close_all=lambda: calls.append("close"))
    arbiter: Any = SimpleNamespace(_stopping=False, sockets=sockets, _stop_watchers=lambda: calls.append("stop"))
    controller: Any = SimpleNamespace(arbiter=arbiter, check_delay=10_000)
    Controller.start(controller)
    assert controller.check_delay == 2000
    arbiter._stop_watchers()  # a reload keeps the port open
    arbiter._stopping = True
    arbiter._stop_watchers()
    assert calls == ["start", "stop", "close", "stop"]


@pytest.mark.parametrize(("excluded", "composed"), [(".*", 0), ("livez", 1), ("", 1)])
async def test_tracing_that_excludes_everything_does_not_compose_urls(
    monkeypatch: pytest.MonkeyPatch, excluded: str, composed: int
) -> None:
    bentoml_patches.shorten_excluded_tracing()
    urls, answered = [], []
    of_scope = asgi.get_host_port_url_tuple
    monkeypatch.setattr(asgi, "get_host_port_url_tuple", lambda scope: urls.append(scope) or of_scope(scope))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered.append(scope["path"])

    layer = asgi.OpenTelemetryMiddleware(app, excluded_urls=excluded)
    scope = {
        "type": "http",
        "scheme": "http",
        "path": "/mice",
        "headers": [],
        "server": ("localhost", 1),
        "method": "GET",
    }
    await layer({**scope, "query_string": b""}, None, None)
    assert answered == ["/mice"]
    assert bool(urls) == bool(composed)
