"""The forward pass: responses of the ensemble to stimuli of any mice.

stem (per mouse) -> core (per member, one pass for all mice) -> readout (per mouse and member) -> ensemble

`server.inference.core` avoids repeated work in a core.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server.bundle import tensor_names
from server.bundle.manifest import Manifest
from server.inference.core import Core
from server.inference.core_inputs import CoreInputs
from server.inference.graph_loader import MouseGraphs
from server.inference.processors import usable_cores
from server.inference.sessions import Slot, Tensor, on_device
from server.inference.stage_timer import StageTimer
from server.inference.stimulus import Stimulus, merged

__all__ = ["ForwardPass", "Prediction"]

Array = npt.NDArray[np.float32]
T = TypeVar("T")


class Prediction(NamedTuple):
    """Responses to a stimulus, in standardised units.

    Attributes:
        response: (B, n) float32.
        spread: (B, n) float32, standard deviation over the members' own responses; 0 with one member.
    """

    response: Array
    spread: Array


class ForwardPass:
    """Runs the graphs of a bundle on checked stimuli.

    Args:
        threads: of one graph on the CPU; None: one per core.

    Attributes:
        stages: where the time of the last pass went.
    """

    def __init__(
        self, manifest: Manifest, cores: Sequence[Core], mice: Mapping[str, MouseGraphs], *, threads: int | None
    ) -> None:
        self.stages = StageTimer()
        self._manifest = manifest
        self._cores = cores
        self._mice = mice
        self._device = cores[0].session.device
        self._pool = ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="forward")

    def run(self, pieces: list[Stimulus]) -> list[Prediction]:
        """One chunk of at most `max_batch` images; pieces of one mouse and the same neurons are merged."""
        groups = merged(pieces)
        predictions: dict[int, Prediction] = {}
        for (_, places), of_all in zip(groups, self._run_merged([one for one, _ in groups]), strict=True):
            ends = np.cumsum([len(pieces[i].image) for i in places])[:-1]
            parts = zip(np.split(of_all.response, ends), np.split(of_all.spread, ends), strict=True)
            predictions |= {i: Prediction(*part) for i, part in zip(places, parts, strict=True)}
        return [predictions[i] for i in range(len(pieces))]

    def _run_merged(self, pieces: list[Stimulus]) -> list[Prediction]:
        stems = self._each(self.run_stems, pieces)  # piece -> member -> tensors
        self.stages.end("stem")
        pre_activations = [self._pre_activations(piece) for piece in pieces]
        neurons = [on_device(self.neurons(piece), self._device) for piece in pieces]
        of_cores: dict[Hashable, CoreInputs] = {}
        for member, core in enumerate(self._cores):  # one after another: on a GPU, side by side was slower
            inputs = [tensors[member % len(tensors)] for tensors in stems]
            touched = None
            if core.can_restrict:
                touched = self._each(partial(self._touched, member), pieces, inputs, neurons)
            key = (member % len(stems[0]), core.session.inputs)  # members mostly have the same inputs
            if key not in of_cores:
                of_cores[key] = CoreInputs(inputs, core.session.inputs)
            feature_maps = core.feature_maps(of_cores[key], touched)
            self.stages.end("core")
            self._each(partial(self._read_out, member), pieces, inputs, feature_maps, neurons, pre_activations)
            self.stages.end("readout")
        predictions = self._each(self._combine, pieces, pre_activations)
        self.stages.end("ensemble")
        return predictions

    def _pre_activations(self, stimulus: Stimulus) -> Tensor:
        """Memory for the pre-activations of all members (M, B, n), where the graph that combines them runs."""
        shape = len(self._cores), len(stimulus.image), len(self.neurons(stimulus))
        if self._device == "cpu":
            return np.empty(shape, np.float32)
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)

    def _each(self, function: Callable[..., T], pieces: Sequence[Any], *more: Sequence[Any]) -> list[T]:
        """The function's result for each piece; on a CPU in parallel for several mice, as their graphs are small."""
        run = map if len(pieces) == 1 or self._device != "cpu" else self._pool.map
        return list(run(function, pieces, *more))

    def run_stems(self, stimulus: Stimulus) -> list[dict[str, Tensor]]:
        """The core's inputs: one set for all members, or one per member where their shifters differ."""
        mouse_index = self._manifest.mice[stimulus.mouse_id].mouse_index
        results = []
        for stem in self._mice[stimulus.mouse_id].stems:
            tensors = stem.run(stimulus.tensors)
            tensors[tensor_names.MOUSE_INDEX] = np.full(len(stimulus.image), mouse_index, np.int64)
            results.append(tensors)
        return results

    def _touched(self, member: int, stimulus: Stimulus, inputs: dict[str, Tensor], neurons: Tensor) -> np.ndarray:
        """The tokens that the readout of one member reads."""
        graph = self._mice[stimulus.mouse_id].touched_tokens[member]
        return graph.run(inputs | {tensor_names.NEURONS: neurons})[tensor_names.TOKENS]

    def _read_out(
        self,
        member: int,
        stimulus: Stimulus,
        inputs: dict[str, Tensor],
        feature_map: Tensor,
        neurons: Tensor,
        pre_activations: Tensor,
    ) -> None:
        """Writes one member's pre-activations (B, n)."""
        readout = self._mice[stimulus.mouse_id].readouts[member]
        tensors = inputs | {tensor_names.FEATURE_MAP: feature_map, tensor_names.NEURONS: neurons}
        if isinstance(pre_activations, np.ndarray):
            pre_activations[member] = readout.run(tensors)[tensor_names.PRE_ACTIVATION]
        else:
            readout.run(tensors, into={tensor_names.PRE_ACTIVATION: Slot(pre_activations, member)})

    def _combine(self, stimulus: Stimulus, pre_activations: Tensor) -> Prediction:
        """The ensemble's prediction from the pre-activations of its members (M, B, n)."""
        result = self._mice[stimulus.mouse_id].ensemble.run({tensor_names.PRE_ACTIVATION: pre_activations})
        return Prediction(result[tensor_names.RESPONSE], result[tensor_names.SPREAD])

    def neurons(self, stimulus: Stimulus) -> npt.NDArray[np.int64]:
        if stimulus.neurons is not None:
            return stimulus.neurons
        return np.arange(self._manifest.mice[stimulus.mouse_id].n_neurons, dtype=np.int64)
