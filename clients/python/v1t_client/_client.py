"""The blocking client. Each method runs an operation of `_protocol/operations.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._errors import V1TError
from v1t_client._http_library import httpx
from v1t_client._images import Image
from v1t_client._large_sets.chunks import ChunkedRequest, run_chunks
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
from v1t_client._protocol.exchange import exchange
from v1t_client._protocol.http import CONNECT_TIMEOUT, Priority, cannot_send, http_options
from v1t_client._protocol.operations import Flow, Operations, Sleep
from v1t_client._protocol.retry import Retry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A client of one server. It can be shared between threads, and keeps its connections open.

    Args:
        url: the server's address.
        api_key: sent as `Authorization: Bearer`, for servers that require a key.
        timeout: seconds for one call: its requests, their retries and the pauses between them, until the whole reply is
            there. (A receptive field that the server computes may take longer, as long as events arrive.)
        retries: how often to send a request again when the server cannot be reached or is busy (429, 502, 503, 504).
            A Retry-After of the server is honoured within `timeout`.
        priority: "bulk": the server answers this client's requests after the interactive ones of others, for example of
            a rig that waits for them.
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
        priority: Priority = "interactive",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._operations = Operations(url=url, retry=Retry(retries=retries, timeout=timeout))
        self._timeout = timeout
        self._http = httpx.Client(transport=transport, **http_options(url, api_key, priority))
        # Not at the top: it imports httpcore, as httpx does only now.
        from v1t_client._protocol.connections import enforce_deadlines

        enforce_deadlines(self._http)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url)!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client cannot be used afterwards."""
        self._http.close()

    def predict(self, mouse: str, image: Image, **options: Unpack[PredictOptions]) -> Prediction:
        """Predicts the responses of the neurons of `mouse` to `image`.

        A behaviour value is one number for all images or one per image. Values that are left out are filled in from
        `state`, and `Prediction.assumed` lists them.

        Args:
            mouse: mouse id, as listed by `mice()`.
            image: (H, W), (C, H, W) or (B, C, H, W) array in the recording's own units (grey levels 0 to 255); or a
                PNG, JPEG or .npy file as path or bytes; or a PIL image; or a list of those, one image each.
            pupil_dilation: () or (B,), in the recording's units (eye-camera pixels).
            pupil_dilation_derivative: () or (B,), eye-camera pixels per second.
            running_speed: () or (B,), cm/s.
            behavior: behaviour channels by name, () or (B,) each, such as {"whisking": 0.3}: for mice that were
                recorded with other channels than these three. `MouseDetail.behavior` lists a mouse's channels.
            pupil_center: (2,) or (B, 2), x and y in eye-camera pixels.
            neuron_ids: (n,), the recording's unit ids; the responses keep this order. All neurons by default.
            units: "standardized" (the default: divided by the neuron's response std) or "raw".
            spread: also return the standard deviation over the ensemble's members. False by default.
            resize: how to fit an image of another size than the mouse's: "fit" (whole image, padded), "fill" (covers
                the frame, overflow cut) or "crop" (unscaled, centred cut). By default another size is refused.
            model: bundle name, needed where several bundles contain this mouse.
            state: what fills in behaviour and gaze that are left out: the training "median" (the server's default),
                the training "mean", or what the mouse's trials at "rest" or "running" were; see `MouseDetail.states`.
            strict: refuse inputs outside what was recorded. By default `Prediction.notes` says so.

        Raises:
            OutsideRecording: `strict` was given, and an input is outside what was recorded.
            InvalidArgument: an argument cannot be sent.
            ServerError: the server refused; the message includes its hint.
            ConnectionFailed, TimedOut: no reply.
        """
        request = PredictRequest(mouse=mouse, image=image, **options)
        return self._run(self._operations.predict(request))

    def predict_mice(
        self, mice: Sequence[str] | Literal["*"], image: Image, **options: Unpack[PredictOptions]
    ) -> dict[str, Prediction]:
        """Predicts the responses of several mice to the same image, with one request and one bundle.

        Args:
            mice: mouse ids, or "*" for all mice of the bundle (named by `model` where several are served).
            image, options: as for `predict`, without `neuron_ids`.

        Example:
            >>> client.predict_mice("*", "image.png")["A"].responses.shape           # doctest: +SKIP
            (1, 7538)
        """
        request = PredictRequest(mouse="*", image=image, **options)
        return self._run(self._operations.predict_mice(mice, request))

    def predict_stream(self, mouse: str, images: Images, **options: Unpack[StreamOptions]) -> Iterator[Prediction]:
        """Predicts the responses to any number of images, chunk by chunk and in order, in bounded memory.

        Each chunk is a request that is retried for as long as the client's `timeout`, so that a busy or restarting
        server only delays the stream. If the server changes its bundle in between, `ModelChanged` is raised.

        Args:
            images: a (B, C, H, W) array, memory-mapped or not; the path of a .npy file of that shape, or of a folder
                of image files (in natural order: 1, 2, 10); a list or an iterator of images as `predict` takes them.
            chunk: most images per request (64 by default); fewer where images are large.
            in_flight: number of requests that are sent at the same time (2 by default).
            first: index of the first image, to continue a stream that was interrupted. 0 by default.
            options: also those of `predict`; behaviour per image is (B,), also where `first` is not 0.

        Example:
            >>> for prediction in client.predict_stream("A", "images.npy"):          # doctest: +SKIP
            ...     total += prediction.responses.sum(axis=0)
        """
        return run_chunks(ChunkedRequest(self._operations, mouse, images, **options), self._run)

    def predict_many(self, mouse: str, images: Images, **options: Unpack[ManyOptions]) -> Prediction:
        """Predicts the responses to any number of images as one prediction; see `predict_stream`.

        Args:
            output: a .npy file that receives the responses as they arrive; the arrays of the returned prediction are
                mapped from it. After an interruption the same call resumes where it stopped. A JSON file beside it
                (`responses.npy.json`) has the mouse, model, neuron ids, file names, assumptions and notes.
            force: replace the file, and discard what an interrupted call left. False by default.
            progress: show a progress line on stderr; by default only if stderr is a terminal.
            options: also `chunk` and `in_flight` of `predict_stream`, and the options of `predict`.
        """
        with Collector(self._operations, mouse, images, **options) as collector:
            for prediction in run_chunks(collector.chunks, self._run):
                collector.add(prediction)
            return collector.prediction()

    def gradient(
        self, mouse: str, image: Image, *, weights: npt.ArrayLike, **options: Unpack[GradientOptions]
    ) -> Gradient:
        """The gradient of a weighted sum of responses with respect to the inputs, image by image.

        For one image per neuron, pass weights with one row per image, such as `numpy.eye(n)`.

        Args:
            image: as for `predict`.
            weights: (n,) for all images, or (B, n): the weight of each neuron, in the order of `neuron_ids`.
            options: as for `predict`, without `spread`: pupil_dilation, pupil_dilation_derivative, running_speed,
                behavior, pupil_center, neuron_ids, units, resize, model, state, strict.

        Raises:
            NotFound: this bundle was exported without gradients.
            InvalidArgument, ServerError, ConnectionFailed, TimedOut: as for `predict`.
        """
        request = GradientRequest(mouse=mouse, image=image, weights=weights, **options)
        return self._run(self._operations.gradient(request))

    def attention(self, mouse: str, image: Image, **options: Unpack[ImageOptions]) -> Attention:
        """The attention rollout of each member: where the core looks (V1T, appendix A.6).

        Args:
            image: as for `predict`.
            options: as for `predict`: pupil_dilation, pupil_dilation_derivative, running_speed, behavior, pupil_center,
                resize, model, state, strict.

        Raises:
            NotFound: this bundle has no attention maps; those of convolutional cores have none.
            InvalidArgument, ServerError, ConnectionFailed, TimedOut: as for `predict`.
        """
        request = ImageRequest(mouse=mouse, image=image, **options)
        return self._run(self._operations.attention(request))

    def mice(self) -> list[Mouse]:
        """The mice that this server serves."""
        return self._run(self._operations.mice())

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """One mouse with its input statistics, test scores and licence."""
        return self._run(self._operations.mouse(mouse, model=model))

    def neurons(self, mouse: str, **filters: Unpack[NeuronFilters]) -> NeuronTable:
        """The neurons of a mouse, in the order of the responses.

        Args:
            x_min, x_max, y_min, y_max, z_min, z_max: bounds of the cortical position, um.
            score: which test score `score_min` is about.
            score_min: only neurons with at least this score.
            limit, offset: return at most `limit` neurons, leaving out the first `offset`.
            model: bundle name, needed where several bundles contain this mouse.
        """
        return self._run(self._operations.neurons(mouse, **filters))

    def ready(self) -> bool:
        """Whether the server's models are loaded and warmed up. Raises ConnectionFailed if there is no server."""
        return self._run(self._operations.ready())

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits for a server that is starting, for at most `timeout` seconds.

        Raises:
            NotReady, ConnectionFailed, TimedOut: it was not ready in time.
        """
        self._run(self._operations.wait_until_ready(timeout))

    def _predict_chunk(self, request: PredictRequest) -> Prediction:
        """As `predict`, retried until the timeout, and in halves where all is too much."""
        return self._run(self._operations.predict_chunk(request))

    def _stream(self, path: str, content: Any, *, accept: str) -> AbstractContextManager[httpx.Response]:
        """A POST of JSON whose reply is read while it arrives, for experiments that run on the server."""
        if self._http.is_closed:
            raise cannot_send(RuntimeError(), is_closed=True)
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
                    response = exchange(self._http, step)
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
