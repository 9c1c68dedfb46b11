"""BentoML's supervisor: looks after the worker every second, not every ten, so that one that dies is soon replaced."""

from __future__ import annotations

from typing import Any

__all__ = ["look_often"]


def look_often(seconds: float = 1.0) -> None:
    """Sets how often the supervisor of this process looks; to be called before it starts.

    Circus waits for no signal of a child that died, and BentoML, which starts it, has no setting for its period.
    """
    from circus.controller import Controller

    start = Controller.start

    def start_looking_often(controller: Any) -> None:
        controller.check_delay = 1000 * seconds
        start(controller)

    Controller.start = start_looking_often
