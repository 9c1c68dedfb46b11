"""Batches of all mice: the longest recording sets the length of an epoch, shorter ones repeat (paper, section 4.2)."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.recordings import Recording
from training.errors import RecordingError

__all__ = ["MouseBatch", "batches_of", "epoch_batches", "read_ahead", "read_batch", "steps_per_epoch"]

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

    The order depends only on seed, epoch and mouse, so that a resumed run sees the same trials as an uninterrupted one.
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
    arrays = (batch.image, batch.behavior, batch.pupil_center, batch.response / recording.response_std)
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    image_t, behavior_t, pupil_t, response_t = (tensor.to(device, non_blocking=True) for tensor in tensors)
    return image_t, behavior_t, pupil_t, response_t


def batches_of(
    recording: Recording, indices: np.ndarray, device: torch.device, *, size: int = 32, progress: str | None = None
) -> Iterator[tuple[np.ndarray, MouseBatch]]:
    """Trials in batches, in order: their file numbers, and their tensors. `progress` labels a progress bar."""
    starts = range(0, len(indices), size)
    for start in tqdm(starts, desc=progress, unit="batch", leave=False, disable=None if progress else True):
        part = indices[start : start + size]
        yield part, read_batch(recording, part, device)


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, read ahead in a thread; an exception in the thread is raised here."""
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
