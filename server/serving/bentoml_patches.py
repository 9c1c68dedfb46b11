"""BentoML's supervisor, tuned: a worker that dies is replaced within a second, and a port that closes is closed."""

from __future__ import annotations

from typing import Any

__all__ = ["tune"]


def tune(seconds: float = 1.0) -> None:
    """Changes the supervisor of this process; to be called before it starts, as BentoML has settings for neither.

    Args:
        seconds: how often it looks whether the worker lives, where it would look every ten.
    """
    from circus.controller import Controller

    start = Controller.start

    def start_tuned(controller: Any) -> None:
        controller.check_delay = 1000 * seconds
        _let_go_of_the_port(controller.arbiter)
        start(controller)

    Controller.start = start_tuned


def _let_go_of_the_port(arbiter: Any) -> None:
    """Has it close its copy of the listening socket before it stops the worker, which has its own.

    Otherwise, once the worker has closed that, the queue of the other goes on taking requests that nobody reads.
    """
    stop_watchers = arbiter._stop_watchers

    def close_and_stop_watchers(*arguments: Any, **more: Any) -> Any:
        if arbiter._stopping:
            arbiter.sockets.close_all()
        return stop_watchers(*arguments, **more)

    arbiter._stop_watchers = close_and_stop_watchers
