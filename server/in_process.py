"""A bundle in the process that asks: the application of the service, without BentoML and without a socket.

Its event loop runs in a thread. Requests take the same way through middleware, handlers, batcher and engine as over
HTTP, so that every answer, limit and error is the same. Left out is what guards a process of its own: the watchdog,
which would end the caller's process, signals, connections and the set-up of logs.

`open_bundle` is the entry point `v1t_client.in_process`, by which the client finds it without importing the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.app import create_app
from server.api.middleware import SYSTEM_ROUTES, RequestMiddleware
from server.bundle.snapshot import remove_abandoned
from server.serving import malloc
from server.serving.context import Context
from server.settings import PREFIX, Settings

__all__ = ["Exchange", "LocalServer", "open_bundle"]

# Settings of a service that other programs ask; here there is one bundle, and one caller.
_NOT_READ = ("BUNDLES", "GRPC", "API_KEYS", "API_KEYS_FILE", "ADMIN_KEYS", "ADMIN_KEYS_FILE", "PUBLIC_URL", "TRACING")
_PARTS = 4  # of a reply that wait for their reader
_LEFT = 10.0  # seconds for the requests that are cancelled at the end

_QUIET = logging.NullHandler()  # as of any library: the program decides what of the log is shown


def open_bundle(bundle: Path) -> LocalServer:
    """Loads a bundle with the settings of the environment (V1T_PROVIDER, V1T_THREADS, ...).

    A bundle that is refused does not raise: every request is answered with the reason, as by the service.

    Raises:
        SettingsError (a ValueError): a setting of the environment is wrong.
    """
    logging.getLogger("bentoml.v1t").addHandler(_QUIET)
    not_read = {f"{PREFIX}{name}" for name in _NOT_READ}
    environment = {name: value for name, value in os.environ.items() if name not in not_read}
    return LocalServer(Settings.from_environment(environment).model_copy(update={"bundles": (bundle,)}))


class LocalServer:
    """The service with these settings, on an event loop in a thread. It can be shared between threads.

    After a fork, the child has neither the thread nor a right to the engine: there, every request raises RuntimeError.
    """

    def __init__(self, settings: Settings) -> None:
        self._context = Context.open(settings)
        self._endpoints = create_app(self._context)
        self._app = RequestMiddleware(self._answer, context=self._context)
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="v1t in process", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def begin(self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Exchange:
        """Sends a request; its reply is read from the exchange.

        Args:
            target: path and query, as in the first line of a request.

        Raises:
            RuntimeError: this was closed, or opened in another process.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the bundle was opened in process {self._process}, of which this one is a fork; open it here as well"
            )
        if self._loop.is_closed():
            raise RuntimeError("the bundle is closed")
        path, _, query = target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers],
            "client": None,
            "server": None,
            "state": {},
        }
        exchange = Exchange(self._loop, body)
        exchange.task = asyncio.run_coroutine_threadsafe(self._run(scope, exchange), self._loop)
        return exchange

    def close(self) -> None:
        """Cancels what is in progress, and frees threads, memory and the private copy of the bundle."""
        if self._loop.is_closed() or os.getpid() != self._process:
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        malloc.trim()

    async def _run(self, scope: dict[str, Any], exchange: Exchange) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.end()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in SYSTEM_ROUTES:
            await self._endpoints(scope, receive, send)
            return
        if scope["path"] != "/livez":
            self._context.check_ready()
        await Response(b"\n")(scope, receive, send)

    async def _start(self) -> None:
        context = self._context
        context.batcher.start()
        await asyncio.to_thread(remove_abandoned)
        await context.repository.load()
        while context.repository.is_loading:  # a large bundle: `load` does not wait for it
            await asyncio.sleep(0.02)

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        context = self._context
        context.repository.stop()
        await context.batcher.close()
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_LEFT)
        context.repository.close()
        await asyncio.to_thread(context.decode_pool.close)
        await self._loop.shutdown_default_executor()


class Exchange:
    """One request in progress. `receive` and `send` are the application's side, on the event loop.

    Attributes:
        task: what answers it.
    """

    task: Any

    def __init__(self, loop: asyncio.AbstractEventLoop, body: bytes) -> None:
        self._loop = loop
        self._body: bytes | None = body
        self._abandoned = asyncio.Event()
        self._parts: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._space = asyncio.Semaphore(_PARTS)
        self._is_complete = False

    def head(self, timeout: float | None) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the reply.

        Raises:
            TimeoutError: they are not there within so many seconds.
            RuntimeError: the server was closed before it replied.
        """
        message = self._next(timeout)
        return message["status"], list(message["headers"])

    def read(self, timeout: float | None) -> bytes:
        """The next part of the body; b"" at its end. Raises as `head` does."""
        while not self._is_complete:
            message = self._next(timeout)
            self._is_complete = not message.get("more_body", False)
            if part := message.get("body", b""):
                return bytes(part)
        return b""

    def close(self) -> None:
        """Tells the application that nobody waits for more of the reply."""
        if not self.task.done():
            self._loop.call_soon_threadsafe(self._abandon)

    def _abandon(self) -> None:
        self._abandoned.set()
        self._space.release()

    def _next(self, timeout: float | None) -> Message:
        try:
            message = self._parts.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"the server did not reply within {timeout:g} s") from None
        if message is None:
            raise RuntimeError("the bundle was closed before its reply was complete")
        self._loop.call_soon_threadsafe(self._space.release)
        return message

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self._abandoned.is_set():
            await self._space.acquire()  # until the reader has taken earlier parts
            self._parts.put(message)

    def end(self) -> None:
        """After the reply, or where there will be none."""
        self._parts.put(None)
