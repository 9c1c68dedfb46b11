"""The client to `await`. It only runs the flows of `_operations.py`, as `_client.py` does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

import httpx
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._images import Image
from v1t_client._large_sets.predict_many import AsyncLargeSets
from v1t_client._protocol.http import http_options, send_options
from v1t_client._protocol.operations import Flow, Operations, Sleep
from v1t_client._protocol.requests import Asked, GradientQuestion, Question, Resize, Shown, Units
from v1t_client._protocol.retry import Retry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient(AsyncLargeSets):
    """`Client` for asyncio: the same arguments and methods, each to be awaited.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._operations = Operations(url=url, retry=Retry(retries=retries, timeout=timeout))
        self._http = httpx.AsyncClient(transport=transport, **http_options(url, api_key))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections. The client cannot be used after."""
        await self._http.aclose()

    async def predict(
        self,
        mouse: str,
        image: Image,
        *,
        pupil_dilation: npt.ArrayLike | None = None,
        pupil_dilation_derivative: npt.ArrayLike | None = None,
        running_speed: npt.ArrayLike | None = None,
        pupil_center: npt.ArrayLike | None = None,
        neuron_ids: Sequence[int] | npt.ArrayLike | None = None,
        units: Units = "standardized",
        spread: bool = False,
        resize: Resize | None = None,
        model: str | None = None,
    ) -> Prediction:
        """See `Client.predict`."""
        return await self._run(
            self._operations.predict(
                Question(
                    mouse=mouse,
                    image=image,
                    pupil_dilation=pupil_dilation,
                    pupil_dilation_derivative=pupil_dilation_derivative,
                    running_speed=running_speed,
                    pupil_center=pupil_center,
                    neuron_ids=neuron_ids,
                    units=units,
                    spread=spread,
                    resize=resize,
                    model=model,
                )
            )
        )

    async def predict_mice(
        self, mice: Sequence[str] | Literal["*"], image: Image, **asked: Unpack[Asked]
    ) -> dict[str, Prediction]:
        """See `Client.predict_mice`."""
        return await self._run(self._operations.predict_mice(mice, Question(mouse="*", image=image, **asked)))

    async def gradient(
        self,
        mouse: str,
        image: Image,
        *,
        weights: npt.ArrayLike,
        pupil_dilation: npt.ArrayLike | None = None,
        pupil_dilation_derivative: npt.ArrayLike | None = None,
        running_speed: npt.ArrayLike | None = None,
        pupil_center: npt.ArrayLike | None = None,
        neuron_ids: Sequence[int] | npt.ArrayLike | None = None,
        units: Units = "standardized",
        resize: Resize | None = None,
        model: str | None = None,
    ) -> Gradient:
        """See `Client.gradient`."""
        return await self._run(
            self._operations.gradient(
                GradientQuestion(
                    mouse=mouse,
                    image=image,
                    pupil_dilation=pupil_dilation,
                    pupil_dilation_derivative=pupil_dilation_derivative,
                    running_speed=running_speed,
                    pupil_center=pupil_center,
                    weights=weights,
                    neuron_ids=neuron_ids,
                    units=units,
                    resize=resize,
                    model=model,
                )
            )
        )

    async def attention(
        self,
        mouse: str,
        image: Image,
        *,
        pupil_dilation: npt.ArrayLike | None = None,
        pupil_dilation_derivative: npt.ArrayLike | None = None,
        running_speed: npt.ArrayLike | None = None,
        pupil_center: npt.ArrayLike | None = None,
        resize: Resize | None = None,
        model: str | None = None,
    ) -> Attention:
        """See `Client.attention`."""
        return await self._run(
            self._operations.attention(
                Shown(
                    mouse=mouse,
                    image=image,
                    pupil_dilation=pupil_dilation,
                    pupil_dilation_derivative=pupil_dilation_derivative,
                    running_speed=running_speed,
                    pupil_center=pupil_center,
                    resize=resize,
                    model=model,
                )
            )
        )

    async def mice(self) -> list[Mouse]:
        """See `Client.mice`."""
        return await self._run(self._operations.mice())

    async def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """See `Client.mouse`."""
        return await self._run(self._operations.mouse(mouse, model=model))

    async def neurons(
        self,
        mouse: str,
        *,
        model: str | None = None,
        x_min: float | None = None,
        x_max: float | None = None,
        y_min: float | None = None,
        y_max: float | None = None,
        z_min: float | None = None,
        z_max: float | None = None,
        score: str | None = None,
        score_min: float | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> NeuronTable:
        """See `Client.neurons`."""
        return await self._run(
            self._operations.neurons(
                mouse,
                model=model,
                x_min=x_min,
                x_max=x_max,
                y_min=y_min,
                y_max=y_max,
                z_min=z_min,
                z_max=z_max,
                score=score,
                score_min=score_min,
                limit=limit,
                offset=offset,
            )
        )

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
                    response = await self._http.request(**send_options(step))
                except httpx.RequestError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
