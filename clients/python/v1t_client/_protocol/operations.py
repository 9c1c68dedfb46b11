"""What the client does, without I/O: each operation is a generator that asks for its sends and sleeps.

A flow yields `Send` and gets an `httpx.Response` back (or an `httpx.RequestError` thrown in), or yields `Sleep`. The
clients run flows, one with blocking calls and one with `await`, so nothing here is written twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import httpx
import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, check_same_model, concatenated
from v1t_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    ModelChanged,
    NotFound,
    NotReady,
    ReplyInvalid,
    TimedOut,
    TooLarge,
    V1TError,
)
from v1t_client._protocol import requests
from v1t_client._protocol.replies import (
    read_attention,
    read_gradient,
    read_mice,
    read_mouse,
    read_neurons,
    read_prediction,
    read_predictions,
    read_refusal,
)
from v1t_client._protocol.requests import Call, GradientQuestion, Question, Shown, part_of
from v1t_client._protocol.retry import RETRIED_ERRORS, RETRIED_STATUSES, Retry

__all__ = ["Flow", "Operations", "Send", "Sleep"]


@dataclass(frozen=True)
class Send:
    """Send this request and hand back the reply, within `timeout` seconds."""

    call: Call
    timeout: float


@dataclass(frozen=True)
class Sleep:
    """Do nothing for so long."""

    seconds: float


T = TypeVar("T")
Answer = TypeVar("Answer", Prediction, Gradient)
Flow = Generator["Send | Sleep", "httpx.Response | None", T]


class Operations:
    """The operations of one client, and what it remembers between them.

    Args:
        url: where the server is; used in messages only.
        retry: when to ask again.
    """

    def __init__(self, *, url: str, retry: Retry) -> None:
        self._url = url
        self._retry = retry
        self._patient = replace(retry, retries=sys.maxsize)
        self._neuron_ids: dict[tuple[str, str], npt.NDArray[np.int64]] = {}  # (mouse, model hash) -> (N,)

    def predict(
        self, question: Question, *, retry: Retry | None = None, statuses: frozenset[int] = RETRIED_STATUSES
    ) -> Flow[Prediction]:
        call, n_images = requests.build_predict(question)
        asked = _asked(question.neuron_ids)

        def ask() -> Flow[Prediction]:
            response = yield from self._exchange(call, retry, statuses)
            prediction = read_prediction(
                response, mouse=question.mouse, n_images=n_images, spread=question.spread, neuron_ids=asked
            )
            return (yield from self._with_neuron_ids(prediction))

        return (yield from _once_more(ask))

    def predict_mice(self, mice: Sequence[str] | Literal["*"], question: Question) -> Flow[dict[str, Prediction]]:
        """One request; of a server that is older than such requests, one for each mouse."""
        call, n_images = requests.build_predict_mice(mice, question)
        asked = None if mice == "*" else list(mice)

        def ask() -> Flow[dict[str, Prediction]]:
            try:
                response = yield from self._exchange(call)
            except NotFound as refusal:
                return (yield from self._one_by_one(asked, question, refusal))
            answers = {}
            for prediction in read_predictions(response, mice=asked, n_images=n_images, spread=question.spread):
                answers[prediction.mouse] = yield from self._with_neuron_ids(prediction)
            return answers

        return (yield from _once_more(ask))

    def _one_by_one(self, mice: list[str] | None, question: Question, refusal: NotFound) -> Flow[dict[str, Prediction]]:
        """Asks a server that refused them together; raises its refusal if it does not have them all."""
        known = yield from self.mice()
        there = [mouse.mouse_id for mouse in known if question.model in (None, mouse.model)]
        wanted = there if mice is None else mice
        if not wanted or not set(wanted) <= set(there):
            raise refusal
        answers: dict[str, Prediction] = {}
        for mouse in wanted:
            answers[mouse] = yield from self.predict(replace(question, mouse=mouse))
            check_same_model(answers[wanted[0]].model.hash, answers[mouse])
        return answers

    def predict_patiently(self, question: Question) -> Flow[Prediction]:
        """Asks as often as the timeout allows; what is too much for one request is asked in halves.

        The question's image is a list or an array of images.
        """
        image: Any = question.image
        n = len(image)
        if n == 1:
            return (yield from self.predict(question, retry=self._patient))
        try:
            return (yield from self.predict(question, retry=self._patient, statuses=RETRIED_STATUSES - {504}))
        except (DeadlineExceeded, TimedOut, TooLarge):
            first, rest = slice(0, n // 2), slice(n // 2, n)
        before = yield from self.predict_patiently(part_of(question, image[first], first))
        after = yield from self.predict_patiently(part_of(question, image[rest], rest))
        return concatenated([before, after])

    def gradient(self, question: GradientQuestion) -> Flow[Gradient]:
        call, n_images = requests.build_gradient(question)
        asked = _asked(question.neuron_ids)

        def ask() -> Flow[Gradient]:
            response = yield from self._exchange(call)
            gradient = read_gradient(response, mouse=question.mouse, n_images=n_images, neuron_ids=asked)
            return (yield from self._with_neuron_ids(gradient))

        return (yield from _once_more(ask))

    def attention(self, shown: Shown) -> Flow[Attention]:
        call, n_images = requests.build_attention(shown)
        return read_attention((yield from self._exchange(call)), mouse=shown.mouse, n_images=n_images)

    def mice(self) -> Flow[list[Mouse]]:
        return read_mice((yield from self._exchange(requests.build_mice())))

    def mouse(self, mouse: str, *, model: str | None) -> Flow[MouseDetail]:
        return read_mouse((yield from self._exchange(requests.build_mouse(mouse, model=model))))

    def neurons(
        self, mouse: str, *, limit: int | None, offset: int | None, **filters: str | float | None
    ) -> Flow[NeuronTable]:
        """One request with a limit; without one, as many as it takes to have every neuron."""
        pages: list[NeuronTable] = []
        start = offset or 0
        while True:
            call = requests.build_neurons(mouse, **filters, limit=limit, offset=start or None)
            page = read_neurons((yield from self._exchange(call)))
            if pages and page.model_hash != pages[0].model_hash:
                raise ModelChanged(
                    "the server has loaded another bundle between two pages of neurons", hint="Ask again."
                )
            pages.append(page)
            start += len(page)
            if limit is not None or len(page) == 0 or start >= page.total:
                return _join(pages)

    def ready(self) -> Flow[bool]:
        """One look, without retries."""
        timeout = self._retry.timeout
        try:
            response = yield Send(requests.build_ready(), timeout)
        except httpx.RequestError as error:
            raise self._no_reply(error, attempts=1) from error
        assert response is not None
        if response.status_code == 503:
            return False
        if response.status_code != 200:
            raise read_refusal(response)
        return True

    def wait_until_ready(self, timeout: float) -> Flow[None]:
        """Looks until the server is ready, also while nothing answers at the URL yet."""
        started = self._retry.clock()
        pause = 0.1
        while True:
            remaining = timeout - (self._retry.clock() - started)
            try:
                response = yield Send(requests.build_ready(), max(0.05, min(remaining, 5.0)))
                assert response is not None
                if response.status_code == 200:
                    return
                failure: V1TError = read_refusal(response)
                if response.status_code not in RETRIED_STATUSES:
                    raise failure
                if response.status_code == 503:
                    failure = NotReady(
                        f"the server at {self._url} is not ready after {timeout:g} s",
                        status=503,
                        code="not_ready",
                        hint="Its log says which bundle it loads, or refuses.",
                    )
            except (*RETRIED_ERRORS, httpx.TimeoutException) as error:
                failure = self._no_reply(error, attempts=1)
            except httpx.RequestError as error:
                raise self._no_reply(error, attempts=1) from error
            if self._retry.clock() - started + pause >= timeout:
                raise failure
            yield Sleep(pause)
            pause = min(2.0, pause * 1.5)

    def _with_neuron_ids(self, answer: Answer) -> Flow[Answer]:
        """The answer with the ids of its neurons, which a binary reply about all of them leaves out."""
        n_neurons = answer.responses.shape[1]
        if len(answer.neuron_ids) == n_neurons:
            return answer
        key = (answer.mouse, answer.model.hash)
        if key not in self._neuron_ids:
            name, version = answer.model.name, answer.model.version
            model = name if version is None else f"{name}@{version}"
            table = yield from self.neurons(answer.mouse, model=model, limit=None, offset=None)
            if table.model_hash not in (None, answer.model.hash):
                raise ModelChanged(
                    f"the server has loaded another bundle of the name {name!r} between an answer and its neuron ids",
                    got=str(table.model_hash)[:12],
                    expected=answer.model.hash[:12],
                    hint="Ask again.",
                )
            self._neuron_ids[key] = table.neuron_ids
        ids = self._neuron_ids[key]
        if len(ids) != n_neurons:
            raise ReplyInvalid(
                f"unexpected reply: the neurons of mouse {answer.mouse!r} changed between two requests",
                got=f"{len(ids)} neuron ids",
                expected=n_neurons,
                hint="The server may just have loaded another bundle of this name; ask again.",
            )
        return replace(answer, neuron_ids=ids)

    def _exchange(
        self, call: Call, retry: Retry | None = None, statuses: frozenset[int] = RETRIED_STATUSES
    ) -> Flow[httpx.Response]:
        """Sends until a reply with status 200 comes, as far as the retries and the deadline reach."""
        retry = retry or self._retry
        started = retry.clock()
        attempt = 0
        while True:
            elapsed = retry.clock() - started
            retry_after: float | None = None
            cause: Exception | None = None
            failure: V1TError
            try:
                response = yield Send(call, max(0.05, retry.timeout - elapsed))
            except httpx.RequestError as error:
                failure, cause = self._no_reply(error, attempts=attempt + 1), error
                again = isinstance(error, RETRIED_ERRORS)
            else:
                assert response is not None
                if response.status_code == 200:
                    return response
                failure = refusal = read_refusal(response)
                again, retry_after = refusal.status in statuses, refusal.retry_after
            elapsed = retry.clock() - started
            pause = retry.pause(attempt, elapsed=elapsed, retry_after=retry_after) if again else None
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
                hint="Ask for fewer images at once, or give Client(timeout=...) more seconds.",
            )
        if not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return ConnectionFailed(
                f"the connection to {self._url} broke before the reply was whole: {reason}{tried}",
                hint="Has the server been restarted, or is there a proxy between? Ask again; its log may say more.",
            )
        return ConnectionFailed(
            f"no answer from {self._url}: {reason}{tried}",
            hint="Is the server running? `make serve` starts one; another URL: Client(url), --url or V1T_URL.",
        )


def _asked(neuron_ids: Sequence[int] | npt.ArrayLike | None) -> npt.NDArray[np.int64] | None:
    return None if neuron_ids is None else np.asarray(neuron_ids, dtype=np.int64)


def _once_more(ask: Callable[[], Flow[T]]) -> Flow[T]:
    """Asks again if the server changed its bundle between the requests that an answer takes."""
    try:
        return (yield from ask())
    except ModelChanged:
        return (yield from ask())


def _join(pages: list[NeuronTable]) -> NeuronTable:
    if len(pages) == 1:
        return pages[0]
    pages = [page for page in pages if len(page)]
    return replace(
        pages[0],
        neuron_ids=np.concatenate([page.neuron_ids for page in pages]),
        coordinates_um=np.concatenate([page.coordinates_um for page in pages]),
        response_std=np.concatenate([page.response_std for page in pages]),
        scores={name: np.concatenate([page.scores[name] for page in pages]) for name in pages[0].scores},
    )
