"""The client that blocks. It only runs the flows of `_operations.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._images import Image
from v1t_client._large_sets.predict_many import LargeSets
from v1t_client._protocol.http import CONNECT_TIMEOUT, http_options, send_options
from v1t_client._protocol.operations import Flow, Operations, Sleep
from v1t_client._protocol.requests import Asked, GradientQuestion, Question, Resize, Shown, Units
from v1t_client._protocol.retry import Retry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Client"]

T = TypeVar("T")


class Client(LargeSets):
    """Asks a server about the neurons of a mouse. Safe to share between threads; keeps its connections open.

    Args:
        url: the server's address.
        api_key: sent as `Authorization: Bearer`, where the server asks for one.
        timeout: seconds for one call with its retries. Bytes that keep coming are waited for.
        retries: how often to ask again when nothing answers or the server is busy (429, 502, 503, 504). Its
            Retry-After is honoured, as far as `timeout` reaches.
        transport: an httpx transport in place of the network, for tests.

    Example:
        >>> with Client("http://127.0.0.1:3000") as client:                      # doctest: +SKIP
        ...     client.predict("A", "image.png", pupil_dilation=41).responses.shape
        (1, 7538)
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._operations = Operations(url=url, retry=Retry(retries=retries, timeout=timeout))
        self._timeout = timeout
        self._http = httpx.Client(transport=transport, **http_options(url, api_key))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client cannot be used after."""
        self._http.close()

    def predict(
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
        """What the neurons of `mouse` would do, shown `image`.

        A behaviour value is one number for all images or one per image. Those left out become the mouse's training
        mean, and `Prediction.assumed` says so.

        Args:
            mouse: mouse id, as listed by `mice()`.
            image: (H, W), (C, H, W) or (B, C, H, W) array in the recording's own units (grey levels 0 to 255); or a
                PNG, JPEG or .npy file as path or bytes; or a PIL image; or a list of those, one image each.
            pupil_dilation: () or (B,), in the recording's units (eye-camera pixels).
            pupil_dilation_derivative: () or (B,), eye-camera pixels per second.
            running_speed: () or (B,), cm/s.
            pupil_center: (2,) or (B, 2), x and y in eye-camera pixels.
            neuron_ids: (n,), the recording's unit ids; the responses keep this order. All neurons if left out.
            units: "standardized" (divided by the neuron's response std) or "raw".
            spread: also return the standard deviation over the ensemble's members.
            resize: how to bring an image of another size to the mouse's: "fit" (whole image, padded), "fill" (covers,
                overflow cut) or "crop" (unscaled, centred cut). Without it another size is refused.
            model: bundle name, where several bundles hold this mouse.

        Raises:
            InvalidArgument: an argument cannot be sent.
            ServerError: the server refused; the message repeats its hint.
            ConnectionFailed, TimedOut: no answer came.
        """
        return self._run(
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

    def predict_mice(
        self, mice: Sequence[str] | Literal["*"], image: Image, **asked: Unpack[Asked]
    ) -> dict[str, Prediction]:
        """What the neurons of several mice would do, all shown the same: one request, answered by one bundle.

        Args:
            mice: mouse ids, or "*" for all of the bundle (which `model` names where several are served).
            image, asked: as in `predict`; `neuron_ids` cannot be asked of several mice.

        Example:
            >>> client.predict_mice("*", "image.png")["A"].responses.shape           # doctest: +SKIP
            (1, 7538)
        """
        return self._run(self._operations.predict_mice(mice, Question(mouse="*", image=image, **asked)))

    def gradient(
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
        """How a weighted sum of responses changes with what `mouse` is shown and does, image by image.

        For many neurons at once, one image each: weights with a row per image, such as `numpy.eye(n)`.

        Args:
            image, pupil_dilation, pupil_dilation_derivative, running_speed, pupil_center: as for `predict`.
            weights: (n,) for all images, or (B, n): how much each neuron counts, in the order of `neuron_ids`.
            neuron_ids: (n,), the neurons of the sum. All of the mouse's if left out.
            units: of the responses whose derivative it is, "standardized" or "raw".
            resize, model: as for `predict`.

        Raises:
            NotFound: this twin was exported without gradients.
            InvalidArgument, ServerError, ConnectionFailed, TimedOut: as for `predict`.
        """
        return self._run(
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

    def attention(
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
        """Where the twin's core looks: the attention rollout of each member (V1T, appendix A.6).

        Args:
            image, pupil_dilation, pupil_dilation_derivative, running_speed, pupil_center: as for `predict`.
            resize, model: as for `predict`.

        Raises:
            NotFound: this twin has no attention, as a convolutional core has none.
            InvalidArgument, ServerError, ConnectionFailed, TimedOut: as for `predict`.
        """
        return self._run(
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

    def mice(self) -> list[Mouse]:
        """The mice that this server can be asked about."""
        return self._run(self._operations.mice())

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """One mouse with its input statistics, test scores and licence."""
        return self._run(self._operations.mouse(mouse, model=model))

    def neurons(
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
        """The neurons of a mouse, those within the bounds: cortical position in um, test score by name."""
        return self._run(
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

    def ready(self) -> bool:
        """Whether the server's models are loaded and warm. Raises ConnectionFailed if there is no server."""
        return self._run(self._operations.ready())

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits for a server that is starting, up to `timeout` seconds.

        Raises:
            NotReady, ConnectionFailed, TimedOut: it was not ready in time.
        """
        self._run(self._operations.wait_until_ready(timeout))

    def _stream(self, path: str, content: Any, *, accept: str) -> AbstractContextManager[httpx.Response]:
        """One POST of JSON whose reply is read as it comes, for experiments that a server runs."""
        timeout = httpx.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT))
        return self._http.stream("POST", path, json=content, headers={"Accept": accept}, timeout=timeout)

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Sleep):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    response = self._http.request(**send_options(step))
                except httpx.RequestError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
