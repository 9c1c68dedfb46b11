"""Several equal predictors used as one: each gets work as it is free, and loses what it does not do to the others."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, check_same_model, concatenated
from v1t_client._client import Client
from v1t_client._errors import InvalidArgument, check_count
from v1t_client._images import Image
from v1t_client._large_sets.chunks import CHUNK, IN_FLIGHT
from v1t_client._large_sets.image_sets import Images, ImageSet, open_images
from v1t_client._large_sets.progress import Progress
from v1t_client._large_sets.responses_zarr import ResponsesZarr
from v1t_client._large_sets.work_queue import WorkQueue
from v1t_client._protocol.arguments import (
    GradientOptions,
    ImageOptions,
    NeuronFilters,
    PredictOptions,
    PredictRequest,
    part_of,
    per_image,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Replicas", "Task", "Worker"]

_FEWEST = 8  # images that are worth a request of their own

R = TypeVar("R")
Task = Callable[[Client], Any]
Worker = Callable[[Task], Any]  # calls the task with its client, here or on another machine


class Replicas:
    """Several servers of the same twin as one predictor, for experiments and for sets of any number of images.

    Args:
        clients: of the servers.

    Example:
        >>> with Client("http://a:3000") as a, Client("http://b:3000") as b:         # doctest: +SKIP
        ...     Replicas([a, b]).predict_to_zarr("A", "images.zarr", "responses.zarr")
    """

    def __init__(self, clients: Sequence[Client] = (), *, workers: Sequence[Worker] = ()) -> None:
        workers = [*workers, *(partial(_call, client) for client in clients)]
        if not workers:
            raise InvalidArgument("clients is empty", expected="at least one client")
        self.n_replicas = len(workers)
        # Two of each, so that a replica computes one request while the next is on its way.
        self._queue: WorkQueue[Task, Any] = WorkQueue([worker for worker in workers for _ in range(IN_FLIGHT)])

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; the clients stay open."""
        self._queue.close()

    def run(self, tasks: Iterable[Callable[[Client], R]]) -> Generator[tuple[int, R], None, None]:
        """Calls each task with the client of a replica that is free; yields (number of the task, result) unordered."""
        return self._queue.run(tasks)

    def in_order(self, tasks: Iterable[Callable[[Client], R]]) -> list[R]:
        """The results of all tasks."""
        return [result for _, result in sorted(self.run(tasks), key=lambda found: found[0])]

    def predict(self, mouse: str, image: Image, **options: Unpack[PredictOptions]) -> Prediction:
        """As `Client.predict`; a batch of images is divided among the replicas."""
        if not isinstance(image, np.ndarray) or image.ndim != 4:
            return self._one(lambda client: client.predict(mouse, image, **options))
        request = PredictRequest(mouse=mouse, image=image, **options)
        n_images = len(image)
        size = max(_FEWEST, math.ceil(n_images / self.n_replicas))
        rows = [slice(start, min(start + size, n_images)) for start in range(0, n_images, size)]
        parts = [part_of(request, image[one], one) for one in rows]
        return concatenated(self.in_order([partial(_predict_chunk, request=part) for part in parts]))

    def gradient(
        self, mouse: str, image: Image, *, weights: npt.ArrayLike, **options: Unpack[GradientOptions]
    ) -> Gradient:
        """As `Client.gradient`, of one replica."""
        return self._one(lambda client: client.gradient(mouse, image, weights=weights, **options))

    def attention(self, mouse: str, image: Image, **options: Unpack[ImageOptions]) -> Attention:
        """As `Client.attention`, of one replica."""
        return self._one(lambda client: client.attention(mouse, image, **options))

    def mice(self) -> list[Mouse]:
        """As `Client.mice`, of one replica."""
        return self._one(lambda client: client.mice())

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """As `Client.mouse`, of one replica."""
        return self._one(lambda client: client.mouse(mouse, model=model))

    def neurons(self, mouse: str, **filters: Unpack[NeuronFilters]) -> NeuronTable:
        """As `Client.neurons`, of one replica."""
        return self._one(lambda client: client.neurons(mouse, **filters))

    def predict_to_zarr(
        self,
        mouse: str,
        images: Images | ImageSet,
        output: str | os.PathLike[str],
        *,
        chunk: int = CHUNK,
        force: bool = False,
        progress: bool | None = None,
        **options: Unpack[PredictOptions],
    ) -> dict[str, Any]:
        """Writes the responses to any number of images to a Zarr folder, chunk by chunk, each exactly once.

        After any interruption, also `kill -9` or a full disk, the same call resumes: it predicts the chunks that are
        missing. The folder is called `output.part` until it is complete. It has the arrays `responses` and `spread`
        (image, neuron), the coordinates `neuron` and `image` (file names), and in its attributes the twin with its
        hash, the state of behaviour, all options, what was assumed, and notes; `xarray.open_zarr` opens it.

        Args:
            images: as for `Client.predict_many`, or the path of a Zarr array (B, C, H, W) that ends in .zarr. A call
                that resumes compares their number, their names and the first one.
            chunk: images in one request, and in one chunk of the output.
            force: replace the folder, and discard what an interrupted call left.
            progress: show a progress line on stderr; by default only if stderr is a terminal.
            options: those of `Client.predict`.

        Returns:
            The attributes of the folder.

        Raises:
            InvalidArgument: the folder holds another prediction (its twin, images or options differ), or cannot be
                written.
            V1TError: every replica failed; finished chunks are kept.
        """
        check_count("chunk", chunk, least=1)
        path = Path(os.fsdecode(output))
        opened = open_images(images)
        n_images = opened.n_images
        if n_images is None:
            raise InvalidArgument("an iterator of images cannot be resumed", expected="a list, an array or a path")
        if n_images == 0:
            raise InvalidArgument("there are no images", expected="at least one")
        request = PredictRequest(mouse=mouse, image=None, **options)
        for name, values in per_image(request).items():
            if len(values) != n_images:
                raise InvalidArgument(
                    f"{name} does not fit the images", got=len(values), expected=f"one for all, or {n_images}"
                )
        bundle = self.mouse(mouse, model=request.model).bundle
        if bundle.version is not None:  # servers that have loaded a newer version meanwhile still answer
            request = replace(request, model=f"{bundle.name}@{bundle.version}")
        ids = np.asarray(self._neuron_ids(request) if request.neuron_ids is None else request.neuron_ids, np.int64)
        file = ResponsesZarr(
            path,
            request={**_identity(request), "model": bundle.hash, "images": opened.digest(), "chunk": chunk},
            attributes={
                "mouse": mouse,
                "model": bundle.name,
                "model_version": bundle.version,
                "model_hash": bundle.hash,
                "simulated": bundle.simulated,
                "notice": bundle.notice,
                "units": request.units,
            },
            n_images=n_images,
            chunk=chunk,
            neuron_ids=ids,
            names=opened.names,
            spread=request.spread,
            force=force,
        )
        with file:
            if file.is_complete:
                return file.attributes
            done = n_images - sum(len(range(n_images)[file.rows(i)]) for i in file.missing)
            tasks = (
                partial(_predict_chunk, request=part_of(request, opened.rows(rows), rows), model_hash=bundle.hash)
                for rows in map(file.rows, file.missing)
            )
            with Progress(n_images, done=done, shown=progress) as line, closing(self.run(tasks)) as results:
                for i, prediction in results:
                    file.add(file.missing[i], prediction)
                    line.advance(len(prediction))
            return file.finish()

    def _neuron_ids(self, request: PredictRequest) -> npt.NDArray[np.int64]:
        return self.neurons(request.mouse, model=request.model).neuron_ids

    def _one(self, task: Callable[[Client], R]) -> R:
        return self.in_order([task])[0]


def _call(client: Client, task: Callable[[Client], R]) -> R:
    return task(client)


def _predict_chunk(client: Client, *, request: PredictRequest, model_hash: str | None = None) -> Prediction:
    """A task.

    Raises:
        ModelChanged: a bundle of another hash than `model_hash` answered.
    """
    prediction = client._predict_chunk(request)
    if model_hash is not None:
        check_same_model(model_hash, prediction)
    return prediction


def _identity(request: PredictRequest) -> dict[str, Any]:
    """The options of a request as JSON values; long arrays by their digest."""
    values: dict[str, Any] = {}
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in ("image", "model") or value is None or value is False:
            continue
        if isinstance(value, Mapping):
            values |= {f"{field.name}.{name}": _short(np.asarray(array)) for name, array in value.items()}
        else:
            values[field.name] = _short(value) if isinstance(value, np.ndarray) else value
    return values


def _short(array: npt.NDArray[Any]) -> Any:
    if array.size <= 8:
        return array.tolist()
    return f"sha256 {hashlib.sha256(array.astype(float).tobytes()).hexdigest()}"
