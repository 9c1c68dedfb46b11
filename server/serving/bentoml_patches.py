"""Everything that depends on the internals of BentoML and of its supervisor, written for these versions:

bentoml 1.4.40, and kantoku 0.18.3, which installs the module `circus`. `tests/server/serving/test_bentoml_patches.py`
fails where an internal is no longer there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__ = ["bound_address", "isolate", "served_url", "tune_supervisor", "workers_asked"]


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
