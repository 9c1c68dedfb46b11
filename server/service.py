"""The BentoML service: life cycle and layers. `bentoml serve` in the repository's root starts it."""

# ruff: noqa: E402
from __future__ import annotations

from server.serving import bentoml_patches

bentoml_patches.isolate()  # before BentoML is imported

import asyncio
import contextlib
import gc
import logging
import sys
from functools import partial
from typing import Any

import bentoml
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.app import create_app
from server.api.cors import cors_options
from server.api.middleware import SYSTEM_ROUTES, RequestMiddleware
from server.bundle.snapshot import remove_abandoned
from server.errors import NotReady
from server.grpc_api import addresses
from server.serving import malloc
from server.serving.access import listening_hosts, port_problem, refusal
from server.serving.context import Context
from server.serving.limits.connection import Connection
from server.serving.telemetry import logs
from server.serving.watchdog import Watchdog
from server.settings import Settings, SettingsError

__all__ = ["TwinServer", "create_service"]

# Seconds for which one thread may keep the interpreter while another waits for it, in place of 5 ms: the engine needs
# it around each graph of a run, and the loop, which answers requests, would keep it that long each time.
_SWITCH_INTERVAL = 0.0005

logger = logging.getLogger("bentoml.v1t")

_NAME = "twin_server"
_SEVERAL_WORKERS = (
    "BentoML is configured to start {workers} workers. Each would hold its own models, queue and limits, and a reload "
    "would reach only one of them. Start one server for each device, on a port of its own, behind a load balancer; and "
    f"set services.{_NAME}.workers in BentoML's configuration, and --api-workers, to 1 or not at all."
)


def create_service(settings: Settings) -> Any:
    """A BentoML service with its own context; nothing is loaded before it starts."""
    context = Context.open(settings)
    access, repository, batcher = context.access, context.repository, context.batcher
    app = create_app(context)
    if settings.grpc:
        addresses.check_installed()
    bentoml_patches.remove_timers()
    bentoml_patches.shorten_excluded_tracing()
    bentoml_patches.use_protocol(partial(Connection, connections=context.connections))

    def in_front_of(bentoml_app: ASGIApp) -> ASGIApp:
        # Not mounted: the layers of BentoML between its middleware and a mounted application take time.
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            is_ours = scope["type"] == "http" and scope["path"] not in SYSTEM_ROUTES
            await (app if is_ours else bentoml_app)(scope, receive, send)

        return answer

    @bentoml.service(
        name=_NAME,
        workers=1,  # one per device: the batcher and the sessions are in this process
        http={"host": "127.0.0.1", "port": 3000},
        metrics={"enabled": False},  # ours have bounded labels
        logging={"access": {"enabled": False}},
        tracing={} if settings.tracing else {"excluded_urls": ".*"},
    )
    class TwinServer:
        """Digital twins of mouse visual cortex over HTTP."""

        def __init__(self) -> None:
            logs.configure(settings.log)
            malloc.limit_arenas()

        @bentoml.on_deployment
        def before_the_port_opens() -> None:  # BentoML makes it static
            # Runs in the process of `bentoml serve`, which can still exit; a worker that exits is restarted for ever.
            logs.configure(settings.log)
            host, port = bentoml_patches.bound_address()
            if (workers := bentoml_patches.workers_asked(_NAME)) != 1:
                sys.exit(f"The server cannot start: {_SEVERAL_WORKERS.format(workers=workers)}")
            exposed = [host, *addresses.hosts(settings.grpc)]
            if not access.may_listen(exposed):
                sys.exit(f"The server cannot start:\n{refusal(exposed)}")
            if (problem := port_problem(host, port) or addresses.address_problem(settings.grpc)) is not None:
                sys.exit(f"The server cannot start: {problem}")
            bentoml_patches.tune_supervisor()

        @bentoml.on_startup
        async def start(self) -> None:
            sys.setswitchinterval(_SWITCH_INTERVAL)
            gc.freeze()  # what was imported stays: the garbage collector does not look at it again and again
            logger.info("settings: %s", settings.describe())
            self._grpc = await self._start_grpc()
            # The check above is only in `bentoml serve`; this one covers every other way to start the process.
            access.listen(listening_hosts())
            if access.problem is not None:
                logger.error("%s", access.problem)
            if unknown := Settings.unknown(resembling=False):
                logger.warning("not settings of the server, and ignored: %s", ", ".join(unknown))
            batcher.start()
            context.connections.start()
            megabytes = context.memory.total // 1024**2
            logger.info("memory for requests: %d MB; connections: at most %d", megabytes, context.connections.limit)
            self._watchdog = Watchdog(settings.run_timeout, lambda: batcher.running, batcher.fail_pending)
            self._watchdog.start()
            context.shutdown.handle_signals(lambda: batcher.fail_pending("the server is shutting down"))
            self._loading = asyncio.create_task(self._load(), name="repository")

        async def _start_grpc(self) -> Any:
            if not settings.grpc:
                return None
            from server.grpc_api.service import GRPCServer  # in the worker: gRPC's threads do not outlive a fork

            server = GRPCServer(context, RequestMiddleware(app, context=context))
            await server.start()
            return server

        async def _load(self) -> None:
            await asyncio.to_thread(remove_abandoned)
            await repository.load()
            with contextlib.suppress(NotReady):
                context.check_ready()
                url = bentoml_patches.served_url(_NAME)
                logger.info("ready%s", f": open {url}" if url else "")
            if settings.watch is not None:
                await repository.watch(settings.watch)

        @bentoml.on_shutdown
        async def stop(self) -> None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
            if self._grpc is not None:
                await self._grpc.stop()
            await batcher.close()
            await context.connections.stop()
            self._watchdog.stop()
            repository.close()
            context.shutdown.release_signals()

        async def __is_ready__(self) -> bool:
            context.check_ready()  # raises NotReady with the reason, which the middleware turns into the reply
            return True

    service: Any = TwinServer  # the decorator made a bentoml.Service of the class
    if (options := cors_options(settings)) is not None:
        service.add_asgi_middleware(CORSMiddleware, **options)
    service.add_asgi_middleware(RequestMiddleware, context=context)
    service.add_asgi_middleware(in_front_of)
    return service


try:
    TwinServer = create_service(Settings.from_environment())
except SettingsError as _error:
    sys.exit(f"The server cannot start:\n{_error}")
