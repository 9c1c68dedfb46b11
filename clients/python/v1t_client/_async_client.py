"""The client for asyncio. Each method runs an operation of `_protocol/operations.py`, as in `_client.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._errors import V1TError
from v1t_client._http_library import httpx
from v1t_client._images import Image
from v1t_client._large_sets.chunks import ChunkedRequest, run_chunks_async
from v1t_client._large_sets.collector import Collector
from v1t_client._large_sets.image_sets import Images
from v1t_client._protocol.arguments import (
    GradientOptions,
    GradientRequest,
    ImageOptions,
    ImageRequest,
    ManyOptions,
    NeuronFilters,
    PredictOptions,
    PredictRequest,
    StreamOptions,
)
from v1t_client._protocol.exchange import exchange_async
from v1t_client._protocol.http import Priority, cannot_send, http_options
from v1t_client._protocol.operations import Flow, Operations, Sleep
from v1t_client._protocol.retry import Retry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same methods with the same arguments, each to be awaited.

    Example:
        >>> async with AsyncClient() as client:                                  # doctest: +SKIP
        ...     a, b = await asyncio.gather(client.predict("A", image), client.predict("B", image))
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        priority: Priority = "interactive",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._operations = Operations(url=url, retry=Retry(retries=retries, timeout=timeout))
        self._http = httpx.AsyncClient(transport=transport, **http_options(url, api_key, priority))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections. The client cannot be used afterwards."""
        await self._http.aclose()

    async def predict(self, mouse: str, image: Image, **options: Unpack[PredictOptions]) -> Prediction:
        """See `Client.predict`."""
        request = PredictRequest(mouse=mouse, image=image, **options)
        return await self._run(self._operations.predict(request))

    async def predict_mice(
        self, mice: Sequence[str] | Literal["*"], image: Image, **options: Unpack[PredictOptions]
    ) -> dict[str, Prediction]:
        """See `Client.predict_mice`."""
        request = PredictRequest(mouse="*", image=image, **options)
        return await self._run(self._operations.predict_mice(mice, request))

    def predict_stream(self, mouse: str, images: Images, **options: Unpack[StreamOptions]) -> AsyncIterator[Prediction]:
        """See `Client.predict_stream`; iterate with `async for`."""
        return run_chunks_async(ChunkedRequest(self._operations, mouse, images, **options), self._run)

    async def predict_many(self, mouse: str, images: Images, **options: Unpack[ManyOptions]) -> Prediction:
        """See `Client.predict_many`."""
        with Collector(self._operations, mouse, images, **options) as collector:
            async for prediction in run_chunks_async(collector.chunks, self._run):
                collector.add(prediction)
            return collector.prediction()

    async def gradient(
        self, mouse: str, image: Image, *, weights: npt.ArrayLike, **options: Unpack[GradientOptions]
    ) -> Gradient:
        """See `Client.gradient`."""
        request = GradientRequest(mouse=mouse, image=image, weights=weights, **options)
        return await self._run(self._operations.gradient(request))

    async def attention(self, mouse: str, image: Image, **options: Unpack[ImageOptions]) -> Attention:
        """See `Client.attention`."""
        request = ImageRequest(mouse=mouse, image=image, **options)
        return await self._run(self._operations.attention(request))

    async def mice(self) -> list[Mouse]:
        """See `Client.mice`."""
        return await self._run(self._operations.mice())

    async def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """See `Client.mouse`."""
        return await self._run(self._operations.mouse(mouse, model=model))

    async def neurons(self, mouse: str, **filters: Unpack[NeuronFilters]) -> NeuronTable:
        """See `Client.neurons`."""
        return await self._run(self._operations.neurons(mouse, **filters))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._run(self._operations.ready())

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """See `Client.wait_until_ready`."""
        await self._run(self._operations.wait_until_ready(timeout))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Sleep):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    response = await exchange_async(self._http, step)
                except httpx.RequestError as error:
                    step = flow.throw(error)
                except V1TError:
                    raise
                except Exception as error:
                    raise cannot_send(error, is_closed=self._http.is_closed) from error
                else:
                    step = flow.send(response)
        except StopIteration as done:
            return done.value
