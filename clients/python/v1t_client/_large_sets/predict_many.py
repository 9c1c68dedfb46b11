"""What both clients do with sets of images that are larger than a request: go through the answers, or gather them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from v1t_client._answers.prediction import Prediction, concatenated
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.chunks import CHUNK, Stream, answers, answers_async
from v1t_client._large_sets.image_sets import Images, open_images
from v1t_client._large_sets.progress import Progress
from v1t_client._large_sets.responses_file import ResponsesFile, digest
from v1t_client._protocol.operations import Flow, Operations
from v1t_client._protocol.requests import Asked

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncLargeSets", "LargeSets"]

IN_FLIGHT = 2  # chunks; the server computes one while the other travels


class LargeSets(ABC):
    """The part of `Client` that asks about more images than fit a request, or memory."""

    _operations: Operations

    @abstractmethod
    def _run(self, flow: Flow[Prediction]) -> Prediction: ...

    def predict_stream(
        self,
        mouse: str,
        images: Images,
        *,
        chunk: int = CHUNK,
        in_flight: int = IN_FLIGHT,
        first: int = 0,
        **asked: Unpack[Asked],
    ) -> Iterator[Prediction]:
        """The answers to any number of images, chunk by chunk, in order; neither side holds more than a few chunks.

        A chunk is asked again until it is answered, each for as long as the client's `timeout`, so that a busy or
        restarting server is waited for. If another bundle takes over in the middle, `ModelChanged` is raised.

        Args:
            images: a (B, C, H, W) array, memory-mapped or not; the path of a .npy file of that shape, or of a folder
                of image files (in the order of their names); a list or an iterator of images as `predict` takes them.
            chunk: images in one request, at most; fewer where they are large.
            in_flight: requests under way at once.
            first: the image to begin with, to go on with a stream that stopped.
            asked: as in `predict`; behaviour per image is (B,), also where `first` is not 0.

        Example:
            >>> for prediction in client.predict_stream("A", "images.npy"):          # doctest: +SKIP
            ...     total += prediction.responses.sum(axis=0)
        """
        if not isinstance(first, int) or first < 0:
            raise InvalidArgument("first is no position", got=repr(first), expected="an integer, 0 or more")
        stream = Stream(self._operations, mouse, open_images(images), chunk=chunk, **asked)
        return answers(stream, self._run, in_flight=in_flight, first=first)

    def predict_many(
        self,
        mouse: str,
        images: Images,
        *,
        output: str | os.PathLike[str] | None = None,
        force: bool = False,
        progress: bool | None = None,
        chunk: int = CHUNK,
        in_flight: int = IN_FLIGHT,
        **asked: Unpack[Asked],
    ) -> Prediction:
        """The answers to any number of images as one prediction; see `predict_stream`.

        Args:
            output: a .npy file that takes the responses as they come, so that memory does not; those of the prediction
                are then mapped from it. After an interruption the same call goes on where it stopped.
            force: replace that file, or what is there of it.
            progress: show a line of progress on stderr; None: if that is a terminal.
        """
        stream = Stream(self._operations, mouse, open_images(images), chunk=chunk, **asked)
        with Collection(stream, output=output, force=force, progress=progress) as collection:
            for prediction in answers(stream, self._run, in_flight=in_flight, first=collection.done):
                collection.add(prediction)
            return collection.prediction()


class AsyncLargeSets(ABC):
    """`LargeSets` for asyncio."""

    _operations: Operations

    @abstractmethod
    async def _run(self, flow: Flow[Prediction]) -> Prediction: ...

    def predict_stream(
        self,
        mouse: str,
        images: Images,
        *,
        chunk: int = CHUNK,
        in_flight: int = IN_FLIGHT,
        first: int = 0,
        **asked: Unpack[Asked],
    ) -> AsyncIterator[Prediction]:
        """See `Client.predict_stream`; go through it with `async for`."""
        if not isinstance(first, int) or first < 0:
            raise InvalidArgument("first is no position", got=repr(first), expected="an integer, 0 or more")
        stream = Stream(self._operations, mouse, open_images(images), chunk=chunk, **asked)
        return answers_async(stream, self._run, in_flight=in_flight, first=first)

    async def predict_many(
        self,
        mouse: str,
        images: Images,
        *,
        output: str | os.PathLike[str] | None = None,
        force: bool = False,
        progress: bool | None = None,
        chunk: int = CHUNK,
        in_flight: int = IN_FLIGHT,
        **asked: Unpack[Asked],
    ) -> Prediction:
        """See `Client.predict_many`."""
        stream = Stream(self._operations, mouse, open_images(images), chunk=chunk, **asked)
        with Collection(stream, output=output, force=force, progress=progress) as collection:
            async for prediction in answers_async(stream, self._run, in_flight=in_flight, first=collection.done):
                collection.add(prediction)
            return collection.prediction()


class Collection:
    """Where the answers of a set gather: in memory, or in a file."""

    def __init__(
        self,
        stream: Stream,
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
                question=digest(stream.question, stream.images),
                n_images=stream.images.n_images,
                spread=stream.question.spread,
                force=force,
            )
        self.done = 0 if self._file is None else self._file.done
        self._progress = Progress(stream.images.n_images, done=self.done, shown=progress)

    def __enter__(self) -> Collection:
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
        """Of all images.

        Raises:
            InvalidArgument: there were none.
        """
        if self._file is not None:
            return self._file.finish()
        if not self._parts:
            raise InvalidArgument("there are no images", expected="at least one")
        return concatenated(self._parts)
