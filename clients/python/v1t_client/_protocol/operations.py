"""The operations of the client without I/O: each is a generator, so that both clients can run it.

A flow yields `Send` and receives an `httpx.Response` (or has an `httpx.RequestError` thrown in), or yields `Sleep`.
`Client` runs flows with blocking calls, `AsyncClient` with `await`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, check_same_model, concatenated
from v1t_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    ModelChanged,
    NotFound,
    NotReady,
    ReplyInvalid,
    TimedOut,
    TooLarge,
    V1TError,
    check_count,
)
from v1t_client._http_library import httpx
from v1t_client._images import image_names
from v1t_client._protocol import replies, requests
from v1t_client._protocol.arguments import GradientRequest, ImageRequest, NeuronFilters, PredictRequest, part_of
from v1t_client._protocol.requests import HttpRequest
from v1t_client._protocol.retry import RETRIED_ERRORS, RETRIED_STATUSES, Retry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Flow", "Operations", "Send", "Sleep"]


@dataclass(frozen=True)
class Send:
    """Send this request and return the reply, within `timeout` seconds."""

    request: HttpRequest
    timeout: float


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


T = TypeVar("T")
Answer = TypeVar("Answer", Prediction, Gradient)
Flow = Generator["Send | Sleep", "httpx.Response | None", T]


class Operations:
    """The operations of one client, and its cache of neuron ids.

    Args:
        url: the server's address, for error messages.
        retry: when to send a request again.
    """

    def __init__(self, *, url: str, retry: Retry) -> None:
        self._url = url
        self._retry = retry
        self._until_deadline = replace(retry, retries=sys.maxsize)
        self._neuron_ids: dict[tuple[str, str], npt.NDArray[np.int64]] = {}  # (mouse, model hash) -> (N,)

    def predict(
        self, request: PredictRequest, *, retry: Retry | None = None, statuses: frozenset[int] = RETRIED_STATUSES
    ) -> Flow[Prediction]:
        http_request, n_images = requests.build_predict(request)
        names = image_names(request.image)
        call = (retry or self._retry).begin()

        def attempt() -> Flow[Prediction]:
            response = yield from self._exchange(http_request, call, statuses)
            prediction = replies.read_prediction(response, request, n_images)
            return _named((yield from self._with_neuron_ids(prediction, call)), names)

        return (yield from _repeat_if_model_changed(attempt))

    def predict_mice(self, mice: Sequence[str] | Literal["*"], request: PredictRequest) -> Flow[dict[str, Prediction]]:
        """One request, or one per mouse where an older server refuses requests for several mice."""
        http_request, n_images = requests.build_predict_mice(mice, request)
        names = None if isinstance(mice, str) else list(mice)
        files = image_names(request.image)
        call = self._retry.begin()

        def attempt() -> Flow[dict[str, Prediction]]:
            try:
                response = yield from self._exchange(http_request, call)
            except NotFound as refusal:
                return (yield from self._predict_each_mouse(names, request, refusal, call))
            predictions = {}
            for prediction in replies.read_predictions(response, request, n_images, mice=names):
                predictions[prediction.mouse] = _named((yield from self._with_neuron_ids(prediction, call)), files)
            return predictions

        return (yield from _repeat_if_model_changed(attempt))

    def _predict_each_mouse(
        self, mice: list[str] | None, request: PredictRequest, refusal: NotFound, call: Retry
    ) -> Flow[dict[str, Prediction]]:
        """One request per mouse; raises the server's refusal if one of the mice does not exist."""
        known = replies.read_mice((yield from self._exchange(requests.build_mice(), call)))
        available = [mouse.mouse_id for mouse in known if request.model in (None, mouse.model)]
        names = available if mice is None else mice
        if not names or not set(names) <= set(available):
            raise refusal
        predictions: dict[str, Prediction] = {}
        for mouse in names:
            predictions[mouse] = yield from self.predict(replace(request, mouse=mouse), retry=call)
            check_same_model(predictions[names[0]].model.hash, predictions[mouse])
        return predictions

    def predict_chunk(self, request: PredictRequest) -> Flow[Prediction]:
        """Retries until the timeout. A request that is too large or too slow is split into halves.

        The image of the request is a list or an array of images.
        """
        image: Any = request.image
        n = len(image)
        if n == 1:
            return (yield from self.predict(request, retry=self._until_deadline))
        try:
            return (yield from self.predict(request, retry=self._until_deadline, statuses=RETRIED_STATUSES - {504}))
        except (DeadlineExceeded, TimedOut, TooLarge):
            first, rest = slice(0, n // 2), slice(n // 2, n)
        before = yield from self.predict_chunk(part_of(request, image[first], first))
        after = yield from self.predict_chunk(part_of(request, image[rest], rest))
        return concatenated([before, after])

    def gradient(self, request: GradientRequest) -> Flow[Gradient]:
        http_request, n_images = requests.build_gradient(request)
        call = self._retry.begin()

        def attempt() -> Flow[Gradient]:
            response = yield from self._exchange(http_request, call)
            return (yield from self._with_neuron_ids(replies.read_gradient(response, request, n_images), call))

        return (yield from _repeat_if_model_changed(attempt))

    def attention(self, request: ImageRequest) -> Flow[Attention]:
        http_request, n_images = requests.build_attention(request)
        return replies.read_attention((yield from self._exchange(http_request)), request, n_images)

    def mice(self) -> Flow[list[Mouse]]:
        return replies.read_mice((yield from self._exchange(requests.build_mice())))

    def mouse(self, mouse: str, *, model: str | None) -> Flow[MouseDetail]:
        return replies.read_mouse((yield from self._exchange(requests.build_mouse(mouse, model=model))))

    def neurons(self, mouse: str, **filters: Unpack[NeuronFilters]) -> Flow[NeuronTable]:
        """One request if there is a limit; otherwise as many as it takes to read every neuron."""
        return (yield from self._neurons(mouse, filters, self._retry.begin()))

    def _neurons(self, mouse: str, filters: NeuronFilters, call: Retry) -> Flow[NeuronTable]:
        pages: list[NeuronTable] = []
        start = filters.get("offset") or 0
        check_count("offset", start, least=0)
        while True:
            filters["offset"] = start or None
            request = requests.build_neurons(mouse, **filters)
            page = replies.read_neurons((yield from self._exchange(request, call)))
            if pages and page.model_hash != pages[0].model_hash:
                raise ModelChanged(
                    "the server loaded another bundle between two pages of neurons", hint="Repeat the call."
                )
            pages.append(page)
            start += len(page)
            if filters.get("limit") is not None or len(page) == 0 or start >= page.total:
                return _join(pages)

    def ready(self) -> Flow[bool]:
        """One request, without retries."""
        timeout = self._retry.timeout
        try:
            response = yield Send(requests.build_ready(), timeout)
        except httpx.RequestError as error:
            raise self._no_reply(error, attempts=1) from error
        assert response is not None
        if response.status_code == 503:
            return False
        if response.status_code != 200:
            raise replies.read_refusal(response)
        return True

    def wait_until_ready(self, timeout: float) -> Flow[None]:
        """Polls until the server is ready, also while nothing answers at the URL yet."""
        if not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise InvalidArgument("timeout is not a duration", got=repr(timeout), expected="seconds, 0 or more")
        started = self._retry.clock()
        pause = 0.1
        while True:
            remaining = timeout - (self._retry.clock() - started)
            try:
                response = yield Send(requests.build_ready(), max(0.05, min(remaining, 5.0)))
                assert response is not None
                if response.status_code == 200:
                    return
                failure: V1TError = replies.read_refusal(response)
                if response.status_code not in RETRIED_STATUSES:
                    raise failure
                if response.status_code == 503:
                    failure = NotReady(
                        f"the server at {self._url} is not ready after {timeout:g} s",
                        status=503,
                        code="not_ready",
                        hint="Its log shows which bundle it is loading, or why it refused one.",
                    )
            except (*RETRIED_ERRORS, httpx.TimeoutException) as error:
                failure = self._no_reply(error, attempts=1)
            except httpx.RequestError as error:
                raise self._no_reply(error, attempts=1) from error
            if self._retry.clock() - started + pause >= timeout:
                raise failure
            yield Sleep(pause)
            pause = min(2.0, pause * 1.5)

    def _with_neuron_ids(self, answer: Answer, call: Retry) -> Flow[Answer]:
        """Adds the neuron ids, which a binary reply about all neurons leaves out."""
        n_neurons = answer.responses.shape[1]
        if len(answer.neuron_ids) == n_neurons:
            return answer
        key = (answer.mouse, answer.model.hash)
        if key not in self._neuron_ids:
            name, version = answer.model.name, answer.model.version
            model = name if version is None else f"{name}@{version}"
            try:
                table = yield from self._neurons(answer.mouse, {"model": model}, call)
            except NotFound as error:  # behind a balancer, by a server that does not have this version yet or any more
                raise ModelChanged(
                    f"{model!r} answered, and was then not found for its neuron ids", hint="Repeat the call."
                ) from error
            if table.model_hash not in (None, answer.model.hash):
                raise ModelChanged(
                    f"the server loaded another bundle named {name!r} between a reply and its neuron ids",
                    got=str(table.model_hash)[:12],
                    expected=answer.model.hash[:12],
                    hint="Repeat the call.",
                )
            self._neuron_ids[key] = table.neuron_ids
        ids = self._neuron_ids[key]
        if len(ids) != n_neurons:
            raise ReplyInvalid(
                f"unexpected reply: the neurons of mouse {answer.mouse!r} changed between two requests",
                got=f"{len(ids)} neuron ids",
                expected=n_neurons,
                hint="The server may have just loaded another bundle of this name. Repeat the call.",
            )
        return replace(answer, neuron_ids=ids)

    def _exchange(
        self, request: HttpRequest, call: Retry | None = None, statuses: frozenset[int] = RETRIED_STATUSES
    ) -> Flow[httpx.Response]:
        """Sends until a reply has status 200, within the retries and the deadline of the call that it is a part of."""
        call = (call or self._retry).begin()
        attempt = 0
        while True:
            retry_after: float | None = None
            cause: Exception | None = None
            failure: V1TError
            try:
                response = yield Send(request, max(0.05, call.timeout - call.elapsed))
            except httpx.RequestError as error:
                failure, cause = self._no_reply(error, attempts=attempt + 1), error
                again = isinstance(error, RETRIED_ERRORS)
            else:
                assert response is not None
                if response.status_code == 200:
                    return response
                failure = refusal = replies.read_refusal(response)
                again, retry_after = refusal.status in statuses, refusal.retry_after
            pause = call.pause(attempt, retry_after=retry_after) if again else None
            if pause is None:
                raise failure from cause
            yield Sleep(pause)
            attempt += 1

    def _no_reply(self, error: httpx.RequestError, *, attempts: int) -> V1TError:
        reason = str(error) or type(error).__name__
        tried = "" if attempts == 1 else f" ({attempts} attempts)"
        if isinstance(error, httpx.DecodingError):
            return ReplyInvalid(f"unexpected reply from {self._url}: {reason}")
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return TimedOut(
                f"no reply from {self._url} in time ({reason}){tried}",
                hint="Send fewer images per call, or raise Client(timeout=...).",
            )
        if not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return ConnectionFailed(
                f"the connection to {self._url} broke before the reply was complete: {reason}{tried}",
                hint="Was the server restarted, or is there a proxy in between? Repeat the call; its log may say more.",
            )
        return ConnectionFailed(
            f"no answer from {self._url}: {reason}{tried}",
            hint="Is the server running? `make serve` starts one; another URL: Client(url), --url or V1T_URL.",
        )


def _named(prediction: Prediction, names: tuple[str, ...]) -> Prediction:
    """The prediction with the file names of its images; one file of several images names none of them."""
    return replace(prediction, images=names) if len(names) == len(prediction) else prediction


def _repeat_if_model_changed(attempt: Callable[[], Flow[T]]) -> Flow[T]:
    """Runs it again, once, if the server changed its bundle between the requests that one answer takes."""
    try:
        return (yield from attempt())
    except ModelChanged:
        return (yield from attempt())


def _join(pages: list[NeuronTable]) -> NeuronTable:
    if len(pages) == 1:
        return pages[0]
    pages = [page for page in pages if len(page)]
    looks_at = [page.readout_position_px for page in pages if page.readout_position_px is not None]
    return replace(
        pages[0],
        neuron_ids=np.concatenate([page.neuron_ids for page in pages]),
        coordinates_um=np.concatenate([page.coordinates_um for page in pages]),
        readout_position_px=np.concatenate(looks_at) if len(looks_at) == len(pages) else None,
        response_std=np.concatenate([page.response_std for page in pages]),
        scores={name: np.concatenate([page.scores[name] for page in pages]) for name in pages[0].scores},
    )
