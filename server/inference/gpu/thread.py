"""The thread that makes all calls of one engine on a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from server.inference.gpu.recorded import GPU

__all__ = ["GPUThread"]

T = TypeVar("T")


class GPUThread:
    """Onnxruntime keeps cuDNN's plans and recorded kernels for the thread that made them. In another one they are made
    again, which takes seconds; so an engine is loaded, warmed and asked in the same one.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        # Not one of a pool: a call that never ends would keep the process from ending.
        threading.Thread(target=_serve, args=(self._calls,), name="gpu", daemon=True).start()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """The function's result, or its error."""
        result: Future[T] = Future()
        self._calls.put((result, function, args))
        return result.result()

    def call_alone(self, function: Callable[..., T], *args: Any) -> T:
        """The same, while no other engine uses the GPU."""
        return self.call(_alone, function, *args)

    def end(self) -> None:
        """Ends the thread after the calls that wait."""
        self._calls.put(None)


def _alone(function: Callable[..., T], *args: Any) -> T:
    with GPU:
        return function(*args)


def _serve(calls: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        result, function, args = call
        try:
            outcome = function(*args)
        except BaseException as error:  # the caller raises it
            result.set_exception(error)
        else:
            result.set_result(outcome)
            del outcome
        del call, result, function, args  # an idle thread keeps no engine in memory
