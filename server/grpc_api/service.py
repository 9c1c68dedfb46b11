"""The gRPC service: its methods, health and reflection, and the server that runs them on the worker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection

from server.api.endpoints.dispatch import LARGE
from server.api.endpoints.inference_protocol import model_name
from server.errors import (
    Busy,
    InvalidInput,
    MalformedBody,
    NotFound,
    NotReady,
    Refused,
    RequestTimeout,
    TwinError,
    brief,
)
from server.grpc_api.codecs import infer_body, infer_response, model_path, parsed, parsed_size, response_of
from server.grpc_api.exchange import Call, Refusal, refused
from server.grpc_api.messages import POOL, SERVICE, message
from server.serving.context import Context
from server.settings import PREFIX, SettingsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["GRPCServer"]

logger = logging.getLogger("bentoml.v1t")

_HEALTH = "grpc.health.v1.Health"
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_SLOW = 10.0  # seconds that one message may take to arrive
_AT_ONCE = 8  # questions of one stream that are answered at once
_MOST_CALLS = 1024
_HEALTH_PERIOD = 0.5  # seconds between two looks, for those that watch
_KEEPALIVE = 60_000  # milliseconds after which a silent client is asked whether it is still there

Messages: TypeAlias = AsyncIterator[bytes]
Servicer: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class GRPCServer:
    """The service on its addresses.

    A message is received whole before it can be looked at. No message of a caller without a key is therefore received,
    and few messages are at once.

    Args:
        app: answers the requests that calls are turned into: the application inside the middleware.
    """

    def __init__(self, context: Context, app: ASGIApp) -> None:
        self._context = context
        self._app = app
        self._largest = context.settings.max_body
        self._n_slots = max(2, context.memory.total // 4 // self._largest)  # messages that a quarter of memory holds
        self._receiving = asyncio.Semaphore(self._n_slots)
        self._n_streams = 0
        self._server: grpc.aio.Server | None = None
        self.ports: list[int] = []

    async def start(self) -> None:
        """Starts to listen, on the running event loop.

        Raises:
            SettingsError: it cannot listen on an address.
        """
        self._server = server = grpc.aio.server(
            handlers=self._handlers(),
            options=[
                ("grpc.max_receive_message_length", self._largest),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # otherwise two servers could share a port
                ("grpc.keepalive_time_ms", _KEEPALIVE),
            ],
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        for address in self._context.settings.grpc:
            try:
                self.ports.append(server.add_insecure_port(address))
            except RuntimeError as error:
                raise SettingsError(f"{PREFIX}GRPC: cannot listen on {address}: {error}") from None
        await server.start()
        logger.info("gRPC on %s", ", ".join(self._context.settings.grpc))

    async def stop(self) -> None:
        """Stops; calls in flight were drained with the requests of HTTP, and those that remain are cancelled."""
        if self._server is not None:
            await self._server.stop(0.5)

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        # A handler of a stream of messages receives the first one when it asks for it. On the wire, one message is one.
        methods = {
            "ServerLive": unary(self._open(self._server_live)),
            "ServerReady": unary(self._open(self._server_ready)),
            "ServerMetadata": unary(self._keyed(self._server_metadata)),
            "ModelReady": unary(self._keyed(self._model_ready)),
            "ModelMetadata": unary(self._keyed(self._model_metadata)),
            "ModelConfig": unary(self._keyed(self._model_config)),
            "ModelStatistics": unary(self._keyed(self._statistics)),
            "ModelInfer": unary(self._keyed(self._infer)),
            "ModelStreamInfer": stream(self._kept(self._stream_infer)),
            "RepositoryIndex": unary(self._keyed(self._index)),
            "RepositoryModelLoad": unary(self._keyed(self._load, is_admin=True)),
            "RepositoryModelUnload": unary(self._keyed(self._unload, is_admin=True)),
        }
        health = {"Check": unary(self._open(self._health)), "Watch": stream(self._kept(self._watch_health))}
        mirror = {"ServerReflectionInfo": stream(self._kept(self._reflect))}
        return tuple(
            grpc.method_handlers_generic_handler(name, handlers)
            for name, handlers in ((SERVICE, methods), (_HEALTH, health), (_REFLECTION, mirror))
        )

    # Around the methods

    def _open(self, method: Callable[[Call], Awaitable[Any]]) -> Callable[[Messages, Servicer], Awaitable[bytes]]:
        """A method that everyone may call; its message says nothing that matters, and is not received."""

        async def handle(messages: Messages, servicer: Servicer) -> bytes:
            async with _errors(servicer):
                answer: bytes = (await method(Call(self._app, servicer))).SerializeToString()
            return answer

        return handle

    def _keyed(
        self, method: Callable[[Call, bytes], Awaitable[Any]], *, is_admin: bool = False
    ) -> Callable[[Messages, Servicer], Awaitable[bytes]]:
        """A method of one message and one answer."""

        async def handle(messages: Messages, servicer: Servicer) -> bytes:
            async with _errors(servicer):
                call = Call(self._app, servicer)
                await self._check_key(call, is_admin=is_admin)
                async with self._receiving:
                    received = await _received(messages)
                answer: bytes = (await method(call, received)).SerializeToString()
            return answer

        return handle

    def _kept(
        self, method: Callable[[Call, Messages, Servicer], Awaitable[None]]
    ) -> Callable[[Messages, Servicer], Awaitable[None]]:
        """A method whose stream is kept open."""

        async def handle(messages: Messages, servicer: Servicer) -> None:
            async with _errors(servicer):
                call = Call(self._app, servicer)
                await self._check_key(call)
                with self._counted_stream():
                    await method(call, messages, servicer)

        return handle

    async def _check_key(self, call: Call, *, is_admin: bool = False) -> None:
        """Ends the call if its key is wrong, before its message is received."""
        access = self._context.access
        try:
            (access.check_admin if is_admin else access.check)(call.authorization)
        except TwinError:  # refused by the middleware, which counts it and writes the log line
            (await call.ask(*(("POST", "/admin/reload") if is_admin else ("GET", "/v2")))).check()
            raise

    @contextlib.contextmanager
    def _counted_stream(self) -> Iterator[None]:
        if self._n_streams >= self._n_slots:
            raise Busy(
                "the server has as many open streams as it may",
                got=f"{self._n_streams + 1} at once",
                expected=f"at most {self._n_slots}",
                hint=f"Close a stream, or call ModelInfer. A higher {PREFIX}MEMORY or a lower {PREFIX}MAX_BODY allows "
                "more.",
                retry_after=5,
            )
        self._n_streams += 1
        try:
            yield
        finally:
            self._n_streams -= 1

    # The methods

    async def _server_live(self, call: Call) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, call: Call) -> Any:
        return message("ServerReadyResponse")(ready=self._is_ready())

    async def _server_metadata(self, call: Call, received: bytes) -> Any:
        return response_of("ServerMetadataResponse", (await call.ask("GET", "/v2")).check())

    async def _model_ready(self, call: Call, received: bytes) -> Any:
        asked = parsed("ModelReadyRequest", received)
        reply = await call.ask("GET", f"{model_path(asked.name, asked.version)}/ready")
        if reply.status != 503:
            reply.check()
        return message("ModelReadyResponse")(ready=reply.status == 200)

    async def _model_metadata(self, call: Call, received: bytes) -> Any:
        asked = parsed("ModelMetadataRequest", received)
        reply = await call.ask("GET", model_path(asked.name, asked.version))
        return response_of("ModelMetadataResponse", reply.check())

    async def _model_config(self, call: Call, received: bytes) -> Any:
        asked = parsed("ModelConfigRequest", received)
        reply = await call.ask("GET", f"{model_path(asked.name, asked.version)}/config")
        config = response_of("ModelConfig", reply.check())
        return message("ModelConfigResponse")(config=config)

    async def _statistics(self, call: Call, received: bytes) -> Any:
        asked = parsed("ModelStatisticsRequest", received)
        path = f"{model_path(asked.name, asked.version)}/stats" if asked.name else "/v2/models/stats"
        return response_of("ModelStatisticsResponse", (await call.ask("GET", path)).check())

    async def _index(self, call: Call, received: bytes) -> Any:
        body = (await call.ask("POST", "/v2/repository/index")).check()
        return response_of("RepositoryIndexResponse", b'{"models": %b}' % body)

    async def _load(self, call: Call, received: bytes) -> Any:
        asked = parsed("RepositoryModelLoadRequest", received)
        if asked.parameters:
            raise InvalidInput(
                "a model is loaded as it is on disk",
                got=brief(sorted(asked.parameters)),
                expected="no parameters of the load",
            )
        (await call.ask("POST", "/admin/reload")).check()
        self._find(asked.model_name)
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, call: Call, received: bytes) -> Any:
        asked = parsed("RepositoryModelUnloadRequest", received)
        self._find(asked.model_name)
        (await call.ask("POST", "/admin/reload")).check()
        if self._is_served(asked.model_name):
            raise Refused(
                "the model is still on disk, and served",
                got=brief(asked.model_name),
                hint="Move its bundle out of the folder that is served, then unload it again.",
            )
        return message("RepositoryModelUnloadResponse")()

    def _find(self, name: str) -> None:
        if not self._is_served(name):
            raise NotFound("there is no such model", got=brief(name), hint="RepositoryIndex lists them.")

    def _is_served(self, name: str) -> bool:
        """Whether it is the name of a bundle, or of a model of one."""
        bundles = self._context.repository.bundles
        models = (model_name(bundle.name, mouse_id) for bundle in bundles for mouse_id in bundle.manifest.mice)
        return any(name == bundle.name for bundle in bundles) or name in models

    async def _infer(self, call: Call, received: bytes) -> Any:
        memory = self._context.memory.reservation()
        try:
            memory.set(parsed_size(received), "a message")
            if len(received) > LARGE:
                in_thread = memory.used_by(infer_body)
                asked, body, json_length = await self._context.decode_pool.run(len(received), in_thread, received)
            else:
                asked, body, json_length = infer_body(received)
        finally:
            memory.release()
        del received
        path = f"{model_path(asked.model_name, asked.model_version)}/infer"
        reply = await call.ask("POST", path, body, json_length)
        content = reply.check()
        return infer_response(content, int(reply.headers["inference-header-content-length"]))

    async def _stream_infer(self, call: Call, messages: Messages, servicer: Servicer) -> None:
        """Answers in the order of the questions, several of which are computed at once."""
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(_AT_ONCE)

        async def read() -> None:
            async for received in messages:
                await answers.put(group.create_task(self._streamed(call, received)))
            await answers.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (answer := await answers.get()) is not None:
                await servicer.write((await answer).SerializeToString())

    async def _streamed(self, call: Call, received: bytes) -> Any:
        answer = message("ModelStreamInferResponse")
        try:
            return answer(infer_response=await self._infer(call, received))
        except (TwinError, Refusal) as error:
            text = (refused(error) if isinstance(error, TwinError) else error).text
            if len(received) <= LARGE and not isinstance(error, MalformedBody):
                asked = parsed("ModelInferRequest", received)
                about = message("ModelInferResponse")(model_name=asked.model_name, id=asked.id)
                return answer(error_message=text, infer_response=about)
            return answer(error_message=text)

    # Health and reflection

    def _is_ready(self) -> bool:
        try:
            self._context.check_ready()
        except NotReady:
            return False
        return True

    async def _health(self, call: Call) -> Any:
        """Of the process, for every name of a service."""
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if self._is_ready() else response.NOT_SERVING)

    async def _watch_health(self, call: Call, messages: Messages, servicer: Servicer) -> None:
        told = None
        while True:
            if (now := (await self._health(call)).SerializeToString()) != told:
                await servicer.write(now)
                told = now
            await asyncio.sleep(_HEALTH_PERIOD)

    async def _reflect(self, call: Call, messages: Messages, servicer: Servicer) -> None:
        async def asked() -> AsyncIterator[Any]:
            async for received in messages:
                yield reflection_pb2.ServerReflectionRequest.FromString(received)

        servicer_of_all = reflection.ReflectionServicer((SERVICE, _HEALTH, _REFLECTION), pool=_everything())
        async for answer in servicer_of_all.ServerReflectionInfo(asked(), None):
            await servicer.write(answer.SerializeToString())


def _everything() -> Any:
    """The pool, with the descriptions of health and reflection."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return POOL


async def _received(messages: Messages) -> bytes:
    try:
        async with asyncio.timeout(_SLOW):
            return await anext(messages)
    except TimeoutError:
        raise RequestTimeout("the message did not arrive in time", expected=f"all of it in {_SLOW:g} s") from None
    except StopAsyncIteration:
        raise MalformedBody("the call has no message") from None


@contextlib.asynccontextmanager
async def _errors(servicer: Servicer) -> AsyncIterator[None]:
    """Ends the call with the status of an error."""
    try:
        try:
            yield
        except (TwinError, Refusal) as error:
            refusal = refused(error) if isinstance(error, TwinError) else error
            await servicer.abort(refusal.code, refusal.text, refusal.trailers)
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            raise
        except Exception:
            logger.exception("a gRPC call failed")
            await servicer.abort(grpc.StatusCode.INTERNAL, "the server failed on this request; its log says why")
    except grpc.aio.InternalError:  # the call has ended: the client left, or gRPC itself refused its message
        raise asyncio.CancelledError from None
