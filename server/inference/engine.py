"""The engine: runs a bundle's graphs on checked arrays.

`server.inference.forward` is the forward pass, and `server.inference.gradients` the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.bundle.manifest import File, Manifest, MouseRecord, load_manifest
from server.bundle.neurons import load_neurons
from server.bundle.snapshot import Snapshot
from server.errors import BundleError, NotFound
from server.inference.core import Core
from server.inference.forward import ForwardPass, Prediction
from server.inference.gpu.batch_sizes import batch_sizes
from server.inference.gpu.thread import GPUThread
from server.inference.gradients import BackwardPass, Gradient
from server.inference.graph_loader import GraphLoader, MouseGraphs, checked
from server.inference.processors import default_threads
from server.inference.sessions import Precision, Provider, Session, on_gpu
from server.inference.stimulus import Stimulus, floats

__all__ = ["Engine", "Gradient", "Prediction", "Stimulus"]

Array = npt.NDArray[np.float32]
T = TypeVar("T")


class Engine:
    """One bundle, loaded. Not thread-safe: its owner makes one call at a time.

    Args:
        max_batch: images in one pass of a core.
        thread: makes its calls on a GPU, this one included; None: the caller does.
    """

    def __init__(self, graphs: GraphLoader, *, max_batch: int, thread: GPUThread | None = None) -> None:
        bundle, manifest = graphs.bundle, graphs.manifest
        self.bundle = bundle
        self.manifest = manifest
        self.hash = manifest.hash
        self.max_batch = max_batch
        self.precision = graphs.precision
        self._graphs = graphs
        self._thread = thread
        cores, token_cores = _core_files(manifest, graphs.precision)
        if graphs.recorded_batch is not None:
            token_cores = []  # how many tokens they compute differs from call to call
        self.cores = [
            Core(
                checked("core", file, graphs.core(file)),
                partial(graphs.core, token_cores[i]) if token_cores else None,
                max_batch=max_batch,
            )
            for i, file in enumerate(cores)
        ]
        self._mice = {mouse_id: MouseGraphs.open(mouse, graphs) for mouse_id, mouse in manifest.mice.items()}
        self._forward = ForwardPass(manifest, self.cores, self._mice, threads=graphs.threads)
        self.stages = self._forward.stages
        self._backward: BackwardPass | None = None
        self._attention: list[Session] | None = None
        self.neurons = {mouse_id: load_neurons(graphs.folder, mouse) for mouse_id, mouse in manifest.mice.items()}
        self.provider = self.cores[0].session.provider
        self.device = self.cores[0].session.device

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: Provider = "auto",
        precision: Precision = "fp32",
        threads: int | None = None,
        max_batch: int = 8,
        cuda_graphs: bool = False,
    ) -> Self:
        """Loads and verifies a bundle. Later changes of its files do not matter.

        Args:
            provider: "auto", "cpu", "cuda" or "openvino"; "auto" uses CUDA where there is a GPU.
            precision: of the cores: "fp32"; "tf32", on a GPU; "fp16", where the bundle has such cores; "bf16", in
                OpenVINO.
            threads: of one core graph on the CPU; None: one per core, of those that this process may use.
            max_batch: images in one pass of the core; more are split.
            cuda_graphs: record each core's kernels once per batch size, which needs a GPU.

        Raises:
            BundleError: the bundle is incomplete, changed, of an unknown schema, or cannot run here.
        """
        bundle = Path(path)
        manifest = load_manifest(bundle)
        threads = threads or default_threads()
        if cuda_graphs and provider not in ("auto", "cuda"):
            raise BundleError(
                "CUDA graphs need a GPU",
                got=f"provider {provider!r}",
                expected="provider 'cuda'",
                hint="Set V1T_PROVIDER=cuda, or leave V1T_CUDA_GRAPHS out.",
            )
        recorded_batch = max_batch if cuda_graphs else None
        graphs = GraphLoader(bundle, manifest, Snapshot(bundle, manifest), provider, precision, threads, recorded_batch)
        if not on_gpu(provider):
            return cls(graphs, max_batch=max_batch)
        thread = GPUThread()
        try:
            engine = thread.call(partial(cls, graphs, max_batch=max_batch, thread=thread))
        except BaseException:
            thread.end()
            raise
        weakref.finalize(engine, thread.end)
        return engine

    def warm_up(self) -> None:
        """Runs every graph that predictions need once; on a GPU, the cores in batches of every size."""
        rng = np.random.default_rng(0)  # equal images would run as one

        def stimulus(mouse: MouseRecord, size: int) -> Stimulus:
            return Stimulus(
                mouse_id=mouse.mouse_id,
                image=rng.standard_normal((size, *mouse.image_shape), np.float32),
                behavior=np.zeros((size, len(mouse.behavior)), np.float32),
                pupil_center=np.zeros((size, len(mouse.pupil_center)), np.float32),
            )

        mice = list(self.manifest.mice.values())
        self.predict_many([stimulus(mouse, 1) for mouse in mice])
        if self.device == "cuda":
            for size in batch_sizes(self.max_batch):
                self.predict_many([stimulus(mice[0], size)])

    def _alone(self, function: Callable[..., T], *args: object) -> T:
        """The function's result; on a GPU, from this engine's thread, while no other engine runs."""
        return function(*args) if self._thread is None else self._thread.call_alone(function, *args)

    def close(self) -> None:
        """Removes its private copy of the bundle. Graphs that are open still run; no other can be opened."""
        if isinstance(self._graphs.files, Snapshot):
            self._graphs.files.close()

    def stop(self) -> None:
        """Ends the run in progress with an error, from another thread. The engine cannot be used after it."""
        self._graphs.stop.set()

    def predict(
        self,
        mouse_id: str,
        image: npt.ArrayLike,
        behavior: npt.ArrayLike,
        pupil_center: npt.ArrayLike,
        neurons: npt.ArrayLike | None = None,
    ) -> Array:
        """Standardised responses of one mouse.

        Args:
            image: (B, C, H, W), in the recording's own units.
            behavior: (B, K), in the order of the manifest's behaviour channels.
            pupil_center: (B, 2): x, y.
            neurons: (n,) positions 0..N-1 in any order; None: all.

        Returns:
            (B, N) or (B, n) float32.

        Raises:
            NotFound: no such mouse or neuron.
            InvalidInput: another shape, a type that is not numeric, NaN or infinity.
        """
        return self.predict_many([self.check(mouse_id, image, behavior, pupil_center, neurons)])[0].response

    def predict_many(self, stimuli: Sequence[Stimulus]) -> list[Prediction]:
        """Responses to stimuli of any mice, with one pass of each core for up to `max_batch` images.

        Args:
            stimuli: as `check` makes them; they are not checked again.
        """
        parts: list[list[Prediction]] = [[] for _ in stimuli]
        self.stages.begin()
        for chunk in _chunks([len(stimulus.image) for stimulus in stimuli], self.max_batch):
            predictions = self._alone(self._forward.run, [stimuli[i][images] for i, images in chunk])
            for (i, _), prediction in zip(chunk, predictions, strict=True):
                parts[i].append(prediction)
        return [
            some[0] if len(some) == 1 else Prediction(*map(np.concatenate, zip(*some, strict=True))) for some in parts
        ]

    def attention_rollout(
        self, mouse_id: str, image: npt.ArrayLike, behavior: npt.ArrayLike, pupil_center: npt.ArrayLike
    ) -> Array:
        """Where each member's cls token looks, (M, B, h, w) in [0, 1], at the core's image size.

        Raises:
            NotFound: the twin's core has no attention.
        """
        if not self.manifest.attention:
            raise NotFound(
                f"twin {self.manifest.name!r} has no attention", got=self.manifest.configs[0]["core"]["kind"]
            )
        if self._attention is None:
            self._attention = [self._graphs.large(file) for file in self.manifest.attention]
        stimulus = self.check(mouse_id, image, behavior, pupil_center)
        maps = [
            self._alone(self._rollout, self._attention, stimulus[start : start + self.max_batch])
            for start in range(0, len(stimulus.image), self.max_batch)
        ]
        return np.concatenate(maps, axis=1)

    def _rollout(self, sessions: list[Session], stimulus: Stimulus) -> Array:
        """(M, B, h, w)."""
        stems = self._forward.run_stems(stimulus)
        return np.stack(
            [
                session.run(stems[member % len(stems)])[tensor_names.ATTENTION_ROLLOUT]
                for member, session in enumerate(sessions)
            ]
        )

    def gradient(
        self,
        mouse_id: str,
        image: npt.ArrayLike,
        behavior: npt.ArrayLike,
        pupil_center: npt.ArrayLike,
        weights: npt.ArrayLike,
        neurons: npt.ArrayLike | None = None,
    ) -> Gradient:
        """Responses, and d(sum over n of weights times response) / d(image, behaviour, pupil centre), per sample.

        Args:
            image, behavior, pupil_center, neurons: as for `predict`.
            weights: (n,) for all samples, or (B, n).

        Raises:
            NotFound: no such mouse or neuron, or the twin was exported without gradients.
            InvalidInput: another shape, a type that is not numeric, NaN or infinity.
        """
        if not self.manifest.has_gradients:
            raise NotFound(f"twin {self.manifest.name!r} was exported without gradients", hint="Export it again.")
        stimulus = self.check(mouse_id, image, behavior, pupil_center, neurons)
        positions = self._forward.neurons(stimulus)
        batch = len(stimulus.image)
        shape = (batch, len(positions)) if np.ndim(weights) == 2 else (len(positions),)
        weights = np.broadcast_to(floats("weights", weights, shape, mouse_id), (batch, len(positions)))
        if self._backward is None:
            self._backward = BackwardPass(
                self.manifest,
                self._graphs,
                [
                    core.session if self.precision == "fp32" and isinstance(core.session, Session) else None
                    for core in self.cores
                ],
                [core.n_tokens for core in self.cores],
            )
        parts = []
        for start in range(0, batch, self._gradient_batch):
            images = slice(start, start + self._gradient_batch)
            parts.append(self._alone(self._gradient, self._backward, stimulus[images], positions, weights[images]))
        return parts[0] if len(parts) == 1 else Gradient(*map(np.concatenate, zip(*parts, strict=True)))

    def _gradient(self, backward: BackwardPass, stimulus: Stimulus, neurons: np.ndarray, weights: Array) -> Gradient:
        return backward.run(
            stimulus.mouse_id,
            self._mice[stimulus.mouse_id],
            stimulus.tensors,
            self._forward.run_stems(stimulus),
            neurons,
            np.ascontiguousarray(weights),
        )

    @property
    def _gradient_batch(self) -> int:
        """Images in one backward pass, which holds some 200 MB an image; on a CPU batches gain nothing."""
        return 1 if self.device == "cpu" else max(1, self.max_batch // 4)

    def check(
        self,
        mouse_id: str,
        image: npt.ArrayLike,
        behavior: npt.ArrayLike,
        pupil_center: npt.ArrayLike,
        neurons: npt.ArrayLike | None = None,
    ) -> Stimulus:
        """A checked stimulus; see `predict` for the arguments and errors."""
        return Stimulus.check(self._mouse(mouse_id), image, behavior, pupil_center, neurons)

    def _mouse(self, mouse_id: str) -> MouseRecord:
        try:
            return self.manifest.mice[mouse_id]
        except KeyError:
            raise NotFound(
                f"twin {self.manifest.name!r} has no mouse {mouse_id!r}", got=mouse_id, expected=sorted(self._mice)
            ) from None


def _chunks(sizes: Sequence[int], max_batch: int) -> Iterator[list[tuple[int, slice]]]:
    """Cuts batches of these sizes into chunks of at most `max_batch` images: (which batch, which of its images)."""
    chunk: list[tuple[int, slice]] = []
    space = max_batch
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            n = min(space, size - start)
            chunk.append((i, slice(start, start + n)))
            start, space = start + n, space - n
            if space == 0:
                yield chunk
                chunk, space = [], max_batch
    if chunk:
        yield chunk


def _core_files(manifest: Manifest, precision: Precision) -> tuple[list[File], list[File]]:
    """The cores of that precision, and their variants for some tokens."""
    if precision != "fp16":
        return manifest.cores, manifest.token_cores
    # Bundles from before there were half readouts have half cores with other outputs.
    if not manifest.half_cores or not all(mouse.half_readouts for mouse in manifest.mice.values()):
        raise BundleError(
            f"twin {manifest.name!r} has no cores and readouts in fp16",
            expected="half_cores and half_readouts in the manifest",
            hint="Export it again with --fp16 (transformer cores only), or set V1T_PRECISION=fp32.",
        )
    return manifest.half_cores, []
