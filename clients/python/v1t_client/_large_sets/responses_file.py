"""A .npy of responses that grows as they come, and goes on where it was interrupted.

Until it is whole it goes by its name with `.part`; a small JSON beside that says what was asked and how far it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._answers.prediction import Prediction, check_same_model
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.image_sets import ImageSet
from v1t_client._protocol.requests import Question

__all__ = ["ResponsesFile", "digest", "is_begun"]


def digest(question: Question, images: ImageSet) -> str | None:
    """Tells what was asked, so that nobody goes on with the answers to another question; None for an iterator, which
    cannot be gone through again."""
    if images.n_images is None:
        return None
    of_all = hashlib.sha256(images.digest().encode())
    for field in fields(question):
        value = getattr(question, field.name)
        if field.name != "image" and value is not None:
            of_all.update(f"{field.name}={np.asarray(value).tolist()};".encode())
    return of_all.hexdigest()


def is_begun(path: Path) -> bool:
    """Whether answers were kept that the same call would go on with."""
    return path.with_name(f"{path.name}.part.json").exists()


class ResponsesFile:
    """Opens the file, or goes on with it.

    Args:
        path: the .npy to write: (B, n), or (2, B, n) with spread.
        question: what `digest` gives.
        n_images: B; None where only the end tells.
        force: begin anew, and replace what is there.

    Attributes:
        done: how many images were answered already.
        model_hash: of the bundle that answered them.

    Raises:
        InvalidArgument: the file is there already, or holds the beginning of another question's answer.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, question: str | None, n_images: int | None, spread: bool, force: bool
    ) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f"{self.path.name}.part")
        self._state = self.path.with_name(f"{self.path.name}.part.json")
        self._question, self._n_images, self._spread = question, n_images, spread
        self._last: Prediction | None = None
        self._header = b""
        self.done = 0
        self.model_hash: str | None = None
        if self.path.suffix != ".npy":
            raise InvalidArgument("output is no .npy file", got=self.path.name, expected="a name that ends .npy")
        if spread and n_images is None:
            raise InvalidArgument(
                "responses and their spread of an unknown number of images cannot be written as they come",
                hint="Pass a list, an array or the path of a .npy file, or write the two by two calls.",
            )
        if self.path.exists() and not force:
            raise InvalidArgument("output exists already", got=self.path, hint="Choose another name, or add force.")
        if not force:
            self._go_on()
        try:
            self._stream: io.BufferedRandom = self._part.open("r+b" if self.done else "w+b")
        except OSError as error:
            raise InvalidArgument(f"output cannot be written: {error.strerror or error}", got=self.path) from error

    def __enter__(self) -> ResponsesFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _go_on(self) -> None:
        try:
            state = json.loads(self._state.read_text())
            size = self._part.stat().st_size
            question, done, model_hash = state["question"], int(state["done"]), str(state["model"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # there is no beginning that could be used
        if question != self._question or question is None or size == 0:
            raise InvalidArgument(
                "output was begun by another question",
                got=self._part,
                hint="Ask the same again to go on with it, or add force to begin anew.",
            )
        # The last image is asked again if all were answered: whatever is said beside the numbers comes with it.
        self.done, self.model_hash = min(done, (self._n_images or done) - 1), model_hash

    def add(self, prediction: Prediction) -> None:
        """Writes the next images' responses; what was added is not lost, whatever comes.

        Raises:
            ModelChanged: another bundle answered the images before.
        """
        if self.model_hash is not None:
            check_same_model(self.model_hash, prediction)
        self.model_hash = prediction.model.hash
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
        self._last = replace(prediction, responses=prediction.responses[:0], spread=None)
        if self._question is not None:
            state = {"question": self._question, "done": self.done, "model": self.model_hash}
            beside = self._state.with_suffix(".new")
            beside.write_text(json.dumps(state))
            beside.replace(self._state)

    def finish(self) -> Prediction:
        """Gives the file its name; the prediction's arrays are those of the file, mapped and not loaded."""
        if self._last is None:
            raise InvalidArgument("there are no images", expected="at least one")
        header = self._npy_header(self.done, self._last.responses.shape[1])
        assert len(header) == len(self._header)
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.close()
        self._part.replace(self.path)
        self._state.unlink(missing_ok=True)
        array: Any = np.load(self.path, mmap_mode="r")
        if self._spread:
            return replace(self._last, responses=array[0], spread=array[1])
        return replace(self._last, responses=array)

    def _npy_header(self, n_images: int, n_neurons: int) -> bytes:
        """Of one length for any number of images: numpy's own padding may not suffice."""
        shape = (2, n_images, n_neurons) if self._spread else (n_images, n_neurons)
        words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words.encode()
