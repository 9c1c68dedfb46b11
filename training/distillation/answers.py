"""A teacher's answers, stored beside the questions: asking is what distillation costs, so it is done once.

    questions/MOUSE/images.npy, behavior.npy, pupil_center.npy, responses.npy, done.json

`done.json` says how many rows are written. A killed run loses at most one chunk of questions.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.checkpoints.ensemble import Ensemble
from training.data.cache import PackedTrials
from training.data.metadata import InputStatistics, Statistics
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.distillation.questions import Questions
from training.errors import CheckpointError
from training.files import write_atomically, writing
from training.models.modules_by_mouse import module_name

__all__ = ["QUESTIONS", "answers_hash", "ask", "asked"]

QUESTIONS = "questions"
DONE = "done.json"


def answers_hash(questions: Questions, teacher: Ensemble) -> str:
    """What determines questions and answers, before either exists."""
    content = {"teacher": teacher.weights_hashes, "mouse": questions.mouse.mouse_id, **questions.describe()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def ask(teacher: Ensemble, questions: Questions, folder: Path, *, batch_size: int = 32) -> None:
    """Writes a mouse's questions and the teacher's answers (standardised responses, float32), or the rest of them.

    Raises:
        CheckpointError: the folder cannot be written, or what is in it cannot be read.
    """
    mouse, n = questions.mouse, len(questions)
    place = _place(folder, mouse)
    columns = {
        "images": (mouse.image_shape, questions.dtype),
        "behavior": ((mouse.n_behavior,), np.dtype(np.float32)),
        "pupil_center": ((2,), np.dtype(np.float32)),
        "responses": ((mouse.n_neurons,), np.dtype(np.float32)),
    }
    device = next(teacher.parameters()).device
    teacher.eval()
    with (
        writing(f"questions {place}", hint="What is answered is kept: run the same command again."),
        ExitStack() as stack,
    ):
        place.mkdir(parents=True, exist_ok=True)
        done = _done(place)
        if done == n:
            return
        files = {
            name: stack.enter_context(_Rows(place / f"{name}.npy", (n, *shape), dtype))
            for name, (shape, dtype) in columns.items()
        }
        bar = tqdm(
            total=n, initial=done, desc=f"asking about mouse {mouse.mouse_id}", unit="image", leave=False, disable=None
        )
        with bar, torch.inference_mode():
            while done < n:
                images, behavior, pupil_center = questions.chunk(done)
                responses = [
                    teacher(mouse.mouse_id, *(torch.from_numpy(part).to(device) for part in batch)).cpu().numpy()
                    for batch in _batches(batch_size, images, behavior, pupil_center)
                ]
                rows = dict(zip(columns, (images, behavior, pupil_center, np.concatenate(responses)), strict=True))
                for name, values in rows.items():
                    files[name].write(done, values)
                done += len(images)
                write_atomically(place / DONE, json.dumps({"rows": done}).encode())
                bar.update(len(images))


def _batches(size: int, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    return [
        tuple(array[at : at + size].astype(np.float32) for array in arrays) for at in range(0, len(arrays[0]), size)
    ]


def asked(teacher: Ensemble, questions: Questions, folder: Path) -> Recording:
    """The questions as trials of a recording, whose responses are the teacher's, standardised."""
    mouse, place = questions.mouse, _place(folder, questions.mouse)
    try:
        images, behavior, pupil_center, responses = (
            np.load(place / f"{name}.npy", mmap_mode="r")
            for name in ("images", "behavior", "pupil_center", "responses")
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place} cannot be read: {error}", hint="Delete it, and run the command again."
        ) from error
    digest = answers_hash(questions, teacher)
    packed = PackedTrials(
        images=images,
        responses=responses,
        behavior=behavior,
        pupil_center=pupil_center,
        data_hash=digest,
        not_finite={},
    )
    neurons, nothing = np.ones(mouse.n_neurons, np.float32), _statistics(1)
    return Recording(
        path=place,
        mouse_id=mouse.mouse_id,
        data_key=mouse.data_key or mouse.mouse_id,
        image_shape=mouse.image_shape,
        image_channels=mouse.image_channels,
        behavior_channels=mouse.behavior_channels,
        neuron_ids=mouse.neuron_ids,
        neuron_coordinates=mouse.neuron_coordinates,
        tiers=questions.column("tier"),
        image_ids=np.arange(len(questions)),
        trial_ids=np.arange(len(questions)),
        statistics=Statistics(
            images=mouse.images or nothing,
            responses=InputStatistics(neurons * 0, neurons, neurons * 0, neurons, neurons * 0),
            behavior=mouse.behavior or _statistics(mouse.n_behavior),
            pupil_center=mouse.pupil_center or _statistics(2),
        ),
        has_behavior=True,
        has_pupil_center=True,
        simulated=mouse.simulated,
        cache=place,
        data_hash=digest,
        inside="",
        nan_trials="refuse",
        excluded_nan={},
        _packed=packed,
    )


def _statistics(n: int) -> InputStatistics:
    zeros, ones = np.zeros(n, np.float32), np.ones(n, np.float32)
    return InputStatistics(mean=zeros, std=ones, min=-ones, max=ones, median=zeros)


def _place(folder: Path, mouse: Mouse) -> Path:
    return folder / QUESTIONS / module_name(mouse.mouse_id)


def _done(place: Path) -> int:
    path = place / DONE
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error!r}", hint=f"Delete {place} and run the same command again."
        ) from error


class _Rows:
    """A .npy file whose rows are written in any order. A memory map would end in a bus error on a full disk."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self._dtype, self._row = dtype, int(np.prod(shape[1:])) * dtype.itemsize
        self._file = path.open("r+b" if path.exists() else "w+b")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._first = self._file.tell()

    def write(self, row: int, values: np.ndarray) -> None:
        self._file.seek(self._first + row * self._row)
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._file.flush()

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
