"""Batches of all mice: the longest recording sets the epoch's length, shorter ones cycle (paper, section 4.2)."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from training.data.recordings import Recording
from training.errors import RecordingError

__all__ = ["MouseBatch", "epoch_batches", "read_ahead", "read_batch", "steps_per_epoch"]

T = TypeVar("T")

# image (B, C, H, W), behavior (B, 3), pupil_center (B, 2), standardised response (B, N)
MouseBatch = tuple[Tensor, Tensor, Tensor, Tensor]


def steps_per_epoch(recordings: Mapping[str, Recording], batch_size: int) -> int:
    """Updates in one epoch.

    Raises:
        RecordingError: a mouse has fewer than two training trials.
    """
    trials = {mouse_id: len(recording.tier("train")) for mouse_id, recording in recordings.items()}
    for mouse_id, n in trials.items():
        if n < 2:
            raise RecordingError(f"mouse {mouse_id!r} has too few training trials", got=n, expected="2 or more")
    return -(-max(trials.values()) // batch_size)


def epoch_batches(
    recordings: Mapping[str, Recording], *, batch_size: int, seed: int, epoch: int
) -> Iterator[dict[str, np.ndarray]]:
    """For every step, each mouse's trials by file number.

    The order depends on seed, epoch and mouse alone, so that a resumed run sees what an unbroken one would.
    """
    steps = steps_per_epoch(recordings, batch_size)
    streams = {
        mouse_id: _cycle(recording.tier("train").indices, batch_size, np.random.default_rng([seed, epoch, i]))
        for i, (mouse_id, recording) in enumerate(recordings.items())
    }
    for _ in range(steps):
        yield {mouse_id: next(stream) for mouse_id, stream in streams.items()}


def _cycle(trials: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        shuffled = rng.permutation(trials)
        for start in range(0, len(shuffled), batch_size):
            yield shuffled[start : start + batch_size]


def read_batch(recording: Recording, indices: np.ndarray, device: torch.device) -> MouseBatch:
    """Trials as tensors: inputs in the recording's own units, responses divided by their std."""
    batch = recording.batch(indices)
    response = batch.response / recording.response_std
    image, behavior, pupil_center = batch.image, batch.behavior, batch.pupil_center
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (image, behavior, pupil_center, response)]
    image_t, behavior_t, pupil_t, response_t = (tensor.to(device, non_blocking=True) for tensor in tensors)
    return image_t, behavior_t, pupil_t, response_t


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, the next ones made in a thread meanwhile; what goes wrong there is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(found: tuple[bool, Any]) -> None:
        placed = False
        while not placed and not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(found, timeout=0.1)
                placed = True

    def work() -> None:
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()
