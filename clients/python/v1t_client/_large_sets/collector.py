"""Joins the predictions of many chunks into one, in memory or in a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from v1t_client._answers.prediction import Prediction, concatenated
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.chunks import ChunkedRequest
from v1t_client._large_sets.image_sets import Images
from v1t_client._large_sets.progress import Progress
from v1t_client._large_sets.responses_file import ResponsesFile, digest
from v1t_client._protocol.arguments import ChunkOptions
from v1t_client._protocol.operations import Operations

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Collector"]


class Collector:
    """Collects the predictions of all chunks, in memory or in a file.

    Attributes:
        chunks: the requests, starting where an interrupted call stopped.
    """

    def __init__(
        self,
        operations: Operations,
        mouse: str,
        images: Images,
        *,
        output: str | os.PathLike[str] | None = None,
        force: bool = False,
        progress: bool | None = None,
        **options: Unpack[ChunkOptions],
    ) -> None:
        self.chunks = ChunkedRequest(operations, mouse, images, **options)
        n_images = self.chunks.images.n_images
        self._parts: list[Prediction] = []
        self._file = None
        if output is not None:
            self._file = ResponsesFile(
                output,
                digest=digest(self.chunks.request, self.chunks.images),
                n_images=n_images,
                spread=self.chunks.request.spread,
                force=force,
            )
            self.chunks.first = self._file.done
        self._done = self.chunks.first
        self._progress = Progress(n_images, done=self._done, shown=progress)

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
        self._done += len(prediction)
        self._progress.update(self._done)

    def prediction(self) -> Prediction:
        """The prediction for all images.

        Raises:
            InvalidArgument: there were no images.
        """
        if self._file is not None:
            return self._file.finish(self.chunks.images.names)
        if not self._parts:
            raise InvalidArgument("there are no images", expected="at least one")
        return concatenated(self._parts)
