"""Joins the predictions of many chunks into one, in memory or in a file."""

from __future__ import annotations

import os

from v1t_client._answers.prediction import Prediction, concatenated
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.chunks import ChunkedRequest
from v1t_client._large_sets.progress import Progress
from v1t_client._large_sets.responses_file import ResponsesFile, digest

__all__ = ["Collector"]


class Collector:
    """Collects the predictions of all chunks, in memory or in a file."""

    def __init__(
        self,
        chunks: ChunkedRequest,
        *,
        output: str | os.PathLike[str] | None,
        force: bool,
        progress: bool | None,
    ) -> None:
        self._parts: list[Prediction] = []
        self._file = None
        if output is not None:
            self._file = ResponsesFile(
                output,
                digest=digest(chunks.request, chunks.images),
                n_images=chunks.images.n_images,
                spread=chunks.request.spread,
                force=force,
            )
        self.done = 0 if self._file is None else self._file.done
        self._progress = Progress(chunks.images.n_images, done=self.done, shown=progress)

    def __enter__(self) -> Collector:
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()
        if self._file is not None:
            self._file.__exit__()

    def add(self, prediction: Prediction) -> None:
        if self._file is None:
            self._parts.append(prediction)
        else:
            self._file.add(prediction)
        self.done += len(prediction)
        self._progress.update(self.done)

    def prediction(self) -> Prediction:
        """The prediction for all images.

        Raises:
            InvalidArgument: there were no images.
        """
        if self._file is not None:
            return self._file.finish()
        if not self._parts:
            raise InvalidArgument("there are no images", expected="at least one")
        return concatenated(self._parts)
