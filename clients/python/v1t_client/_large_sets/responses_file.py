"""A .npy file of responses that grows as they arrive, and can be resumed after an interruption.

Until it is complete its name ends in `.part`; a JSON file beside it holds a digest of the request and the progress.
When it is complete, another one holds the metadata of the prediction, as `Prediction.metadata` gives it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._answers.notes import Note, merged
from v1t_client._answers.prediction import Prediction, check_same_model, concatenated
from v1t_client._answers.sidecar import sidecar_of, write_sidecar
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.image_sets import ImageSet
from v1t_client._protocol.arguments import PredictRequest
from v1t_client._replacing import cannot_write

__all__ = ["ResponsesFile", "can_resume", "digest"]


def digest(request: PredictRequest, images: ImageSet) -> str | None:
    """Identifies a request, so that only the same request resumes a file; None for an iterator, which cannot be read
    twice."""
    if images.n_images is None:
        return None
    of_all = hashlib.sha256(images.digest().encode())
    for field in fields(request):
        value = getattr(request, field.name)
        if isinstance(value, Mapping):
            value = {name: array.tolist() for name, array in value.items()}
        if field.name != "image" and value is not None:
            of_all.update(f"{field.name}={np.asarray(value).tolist()};".encode())
    return of_all.hexdigest()


def can_resume(path: Path) -> bool:
    """Whether an interrupted call left responses that the same call would resume from."""
    return path.with_name(f"{path.name}.part.json").exists()


class ResponsesFile:
    """Opens the file for writing, or resumes an interrupted one.

    Args:
        path: the .npy to write: (B, n), or (2, B, n) with spread.
        digest: identifies the request; see the function `digest`.
        n_images: B; None where it is known only at the end.
        force: start from the beginning, and replace an existing file.

    Attributes:
        done: how many images have been predicted.
        model_hash: hash of the bundle that predicted them.

    Raises:
        InvalidArgument: the file exists already, or its `.part` belongs to another request.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, digest: str | None, n_images: int | None, spread: bool, force: bool
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidArgument("output is not a path", got=type(path).__name__, expected="a name that ends in .npy")
        self.path = Path(os.fsdecode(path))
        self._part = self.path.with_name(f"{self.path.name}.part")
        self._state = self.path.with_name(f"{self.path.name}.part.json")
        self._digest, self._n_images, self._spread = digest, n_images, spread
        self._last: Prediction | None = None
        self._header = b""
        self._assumed_before: tuple[str, ...] = ()  # by an interrupted call
        self._notes_before: tuple[Note, ...] = ()
        self.done = 0
        self.model_hash: str | None = None
        if self.path.suffix != ".npy":
            raise InvalidArgument("output is not a .npy file", got=self.path.name, expected="a name that ends in .npy")
        if spread and n_images is None:
            raise InvalidArgument(
                "responses with their spread cannot be written for an unknown number of images",
                hint="Pass a list, an array or the path of a .npy file, or write each with a call of its own.",
            )
        for existing in (self.path, sidecar_of(self.path)):
            if existing.exists() and not force:
                raise InvalidArgument("output exists already", got=existing, hint="Choose another name, or add force.")
        if not force:
            self._resume()
        try:
            self._stream: io.BufferedRandom = self._part.open("r+b" if self.done else "w+b")
        except OSError as error:
            raise cannot_write(error, self.path) from error

    def __enter__(self) -> ResponsesFile:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # closing writes once more what could not be written on a full disk
            self._stream.close()
        if self.done == 0:
            for left in (self._part, self._state):
                left.unlink(missing_ok=True)

    def _resume(self) -> None:
        try:
            state = json.loads(self._state.read_text())
            size = self._part.stat().st_size
            digest, done, model_hash = state["question"], int(state["done"]), str(state["model"])
            assumed = tuple(state.get("assumed", ()))
            notes = tuple(Note(**note) for note in state.get("notes", ()))
        except (OSError, ValueError, KeyError, TypeError):
            return  # there is nothing to resume from
        if digest != self._digest or digest is None or size == 0:
            raise InvalidArgument(
                "output belongs to another, unfinished call",
                got=self._part,
                hint="Repeat that call to finish it, or add force to start from the beginning.",
            )
        # If all images are done, the last is sent again, for the metadata of its reply.
        self.done, self.model_hash = min(done, (self._n_images or done) - 1), model_hash
        self._assumed_before, self._notes_before = assumed, notes

    def add(self, prediction: Prediction) -> None:
        """Writes the responses to the next images. They survive any later failure.

        Raises:
            ModelChanged: another bundle predicted the images before.
            InvalidArgument: the file cannot be written.
        """
        if self.model_hash is not None:
            check_same_model(self.model_hash, prediction)
        self.model_hash = prediction.model.hash
        try:
            self._write(prediction)
        except OSError as error:
            hint = "Finished responses are kept: repeat the call to resume." if self.done else None
            raise cannot_write(error, self.path, hint) from error

    def _write(self, prediction: Prediction) -> None:
        n_images, n_neurons = prediction.responses.shape
        if not self._header:
            self._header = self._npy_header(self._n_images or 0, n_neurons)
            self._stream.write(self._header)
        planes = [prediction.responses] + ([] if prediction.spread is None else [prediction.spread])
        for i, plane in enumerate(planes):
            row = i * (self._n_images or 0) + self.done
            self._stream.seek(len(self._header) + 4 * row * n_neurons)
            self._stream.write(np.ascontiguousarray(plane, "<f4").data)
        self._stream.flush()
        self.done += n_images
        empty = replace(prediction, responses=prediction.responses[:0], spread=None)
        if self._last is None:
            self._last = replace(
                empty,
                assumed=tuple(dict.fromkeys((*self._assumed_before, *empty.assumed))),
                notes=merged((*self._notes_before, *empty.notes)),
            )
        else:
            self._last = concatenated([self._last, empty])
        if self._digest is not None:
            state = {
                "question": self._digest,
                "done": self.done,
                "model": self.model_hash,
                "assumed": self._last.assumed,
                "notes": [asdict(note) for note in self._last.notes],
            }
            beside = self._state.with_suffix(".new")
            beside.write_text(json.dumps(state))
            beside.replace(self._state)

    def finish(self, images: tuple[str, ...] = ()) -> Prediction:
        """Renames the finished file. The arrays of the returned prediction are mapped from it, not loaded.

        Args:
            images: the file name of each image, where they are known.
        """
        if self._last is None:
            raise InvalidArgument("there are no images", expected="at least one")
        try:
            self._finish_file()
        except OSError as error:
            raise cannot_write(error, self.path, "Finished responses are kept: repeat the call to resume.") from error
        last = replace(self._last, images=images)
        write_sidecar(last, self.path)
        array: Any = np.load(self.path, mmap_mode="r")
        if self._spread:
            return replace(last, responses=array[0], spread=array[1])
        return replace(last, responses=array)

    def _finish_file(self) -> None:
        assert self._last is not None
        header = self._npy_header(self.done, self._last.responses.shape[1])
        assert len(header) == len(self._header)
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.close()
        self._part.replace(self.path)
        self._state.unlink(missing_ok=True)

    def _npy_header(self, n_images: int, n_neurons: int) -> bytes:
        """A header whose length does not depend on the number of images; numpy's padding can be too short."""
        shape = (2, n_images, n_neurons) if self._spread else (n_images, n_neurons)
        words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words.encode()
