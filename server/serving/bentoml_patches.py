"""Everything that depends on the internals of BentoML, of its supervisor and of its web server, for these versions:

bentoml 1.4.40; kantoku 0.18.3, which installs the module `circus`; uvicorn 0.54.0, whose protocol
`limits/connection.py` extends. `tests/server/serving/test_bentoml_patches.py` fails where an internal is no longer
there.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = [
    "bound_address",
    "isolate",
    "remove_timers",
    "served_url",
    "shorten_excluded_tracing",
    "tune_supervisor",
    "use_protocol",
    "workers_asked",
]


def isolate() -> None:
    """Keeps BentoML's usage reports off and Prometheus in memory; to be called before `import bentoml`.

    BentoML reports its use to its makers unless BENTOML_DO_NOT_TRACK is set; an operator who wants that sets it to
    False. It also has Prometheus keep its numbers in files that all servers of a user share, and empties their folder
    whenever one starts; here is one worker, whose numbers stay in its memory.
    """
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    # The command line has read the variable before this module could set it, and cached the answer.
    if usage_stats := sys.modules.get("bentoml._internal.utils.analytics.usage_stats"):
        usage_stats.do_not_track.cache_clear()


def use_protocol(protocol: Callable[..., Any]) -> None:
    """Makes uvicorn use this protocol for connections, where its configuration has none, as BentoML's has.

    The protocol counts malformed requests; uvicorn's log line for each of them is dropped.
    """
    from uvicorn.config import HTTP_PROTOCOLS

    protocols: dict[str, Any] = HTTP_PROTOCOLS
    protocols["auto"] = protocol
    logging.getLogger("uvicorn.error").addFilter(_is_not_about_malformed_http)


def _is_not_about_malformed_http(record: logging.LogRecord) -> bool:
    return record.msg != "Invalid HTTP request received."


def remove_timers() -> None:
    """Leaves the time limits of requests to our middleware.

    BentoML's own limit arms a timer for each request and never cancels it: it keeps the request in memory until then.
    """
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    async def without_timer(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    patched: Any = TimeoutMiddleware
    patched.__call__ = without_timer


@functools.cache
def shorten_excluded_tracing() -> None:
    """Passes requests by BentoML's OpenTelemetry layer where it excludes all, which is how it is turned off.

    It would compose the URL of each request to find it among the excluded ones.
    """
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    traced = OpenTelemetryMiddleware.__call__

    async def unless_all_are_excluded(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if self.excluded_urls and self.excluded_urls.url_disabled(""):  # what matches nothing at all matches anything
            await self.app(scope, receive, send)
        else:
            await traced(self, scope, receive, send)

    patched: Any = OpenTelemetryMiddleware
    patched.__call__ = unless_all_are_excluded


def bound_address() -> tuple[str, int]:
    """Where `bentoml serve` will listen, in its process: the options --host and --port, or the configuration."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    http = BentoMLContainer.http
    host, port = _option("host"), _option("port")
    return str(host or http.host.get()), int(http.port.get() if port is None else port)


def workers_asked(service: str) -> int | str:
    """The number of workers that `bentoml serve` is asked to start, by its options or BentoML's configuration."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    configured: int | str = BentoMLContainer.config.get()["services"][service].get("workers") or 1
    return configured if configured != 1 else _option("api_workers") or 1


def _option(name: str) -> Any:
    """An option of the command that this process runs; None where it is not given."""
    import click

    context = click.get_current_context(silent=True)
    return context.params.get(name) if context else None


def served_url(service: str) -> str | None:
    """The URL of the service on this machine, in a worker that `bentoml serve` started; elsewhere None."""
    url = json.loads(os.environ.get("BENTOML_RUNNER_MAP", "{}")).get(service)
    if url is None:
        return None
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    return f"{scheme}://[{host}]:{port}" if ":" in host else url


def tune_supervisor(check_seconds: float = 1.0) -> None:
    """Adjusts the supervisor of this process before it starts: BentoML has no settings for either.

    A worker that died is replaced after `check_seconds`, not ten. On shutdown the supervisor closes its copy of the
    listening socket before it stops the worker; otherwise the kernel would continue to queue
    connections that no process accepts, once the worker has closed its own.
    """
    from circus.controller import Controller

    start = Controller.start

    def start_tuned(controller: Any) -> None:
        controller.check_delay = 1000 * check_seconds
        _close_port_first(controller.arbiter)
        start(controller)

    Controller.start = start_tuned


def _close_port_first(arbiter: Any) -> None:
    stop_watchers = arbiter._stop_watchers

    def close_and_stop_watchers(*arguments: Any, **more: Any) -> Any:
        if arbiter._stopping:
            arbiter.sockets.close_all()
        return stop_watchers(*arguments, **more)

    arbiter._stop_watchers = close_and_stop_watchers
