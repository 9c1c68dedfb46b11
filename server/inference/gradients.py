"""d(sum of weights times responses) with respect to image, behaviour and pupil centre, without torch.

A forward pass through the stems, cores and readouts of all members, then their backward passes: the derivative of the
ensemble is known only once every member has responded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.bundle.manifest import Manifest
from server.bundle.tensor_names import gradient_of
from server.inference.core import distinct_tokens
from server.inference.core_inputs import mask_of
from server.inference.graph_loader import GraphLoader, MouseGraphs
from server.inference.sessions import Session

__all__ = ["BackwardPass", "Gradient"]

Array = npt.NDArray[np.float32]
Tensors = dict[str, np.ndarray]
INPUTS = (tensor_names.IMAGE, tensor_names.BEHAVIOR, tensor_names.PUPIL_CENTER)
CORE_INPUTS = (tensor_names.CORE_IMAGE, tensor_names.CORE_BEHAVIOR, tensor_names.CORE_PUPIL_CENTER)


class Gradient(NamedTuple):
    """Responses, and the derivatives of sum over n of weights times response, per sample.

    Attributes:
        response: (B, n) float32, standardised.
        image: (B, C, H, W) float32, as `behavior` and `pupil_center` per unit of the recording.
        behavior: (B, K) float32.
        pupil_center: (B, 2) float32.
    """

    response: Array
    image: Array
    behavior: Array
    pupil_center: Array


@dataclass(frozen=True, eq=False)
class _MouseBackward:
    forward_readouts: list[Session]  # in float32
    stems: list[Session]
    readouts: list[Session]
    ensemble: Session


class BackwardPass:
    """The gradient graphs of a bundle; those of a mouse are opened on its first use.

    Args:
        cores: the members' core graphs in float32 that are open; one without a tape serves as the forward pass.
        n_tokens: L of each core.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: GraphLoader,
        cores: Sequence[Session | None],
        n_tokens: list[int],
    ) -> None:
        self._manifest = manifest
        self._graphs = graphs
        self._n_tokens = n_tokens
        self._tapes = [
            core if core is not None and tape == file else graphs.large(tape)
            for core, file, tape in zip(cores, manifest.cores, manifest.core_tapes, strict=True)
        ]
        self._cores = [graphs.large(file) for file in manifest.core_gradients]
        self._mice: dict[str, _MouseBackward] = {}

    def run(
        self,
        mouse_id: str,
        forward: MouseGraphs,
        raw: Tensors,
        stems: list[Tensors],
        neurons: np.ndarray,
        weights: Array,
    ) -> Gradient:
        """The gradient of one chunk.

        Args:
            raw: image, behavior and pupil_center.
            stems: the cores' inputs: one set for all members, or one per member.
            neurons: (n,) positions.
            weights: (B, n).
        """
        mouse = self._mouse(mouse_id, forward)
        members = range(self._manifest.members)
        inputs = [{**stems[m % len(stems)], tensor_names.NEURONS: neurons} for m in members]
        pre_activations = []
        for m in members:
            if tensor_names.TOKENS in self._tapes[m].inputs:
                touched = forward.touched_tokens[m].run(inputs[m])[tensor_names.TOKENS]
                inputs[m][tensor_names.TOKENS] = distinct_tokens(mask_of(touched, len(weights), self._n_tokens[m]))
            inputs[m] |= self._tapes[m].run(inputs[m])
            pre_activations.append(mouse.forward_readouts[m].run(inputs[m])[tensor_names.PRE_ACTIVATION])
        ensemble = mouse.ensemble.run(
            {tensor_names.PRE_ACTIVATION: np.stack(pre_activations), tensor_names.WEIGHTS: weights}
        )
        totals: list[Tensors] = [{} for _ in stems]  # of each stem: d of its outputs, summed over its members
        for m in members:
            d_pre_activation = ensemble[gradient_of(tensor_names.PRE_ACTIVATION)][m]
            back = mouse.readouts[m].run(inputs[m] | {gradient_of(tensor_names.PRE_ACTIVATION): d_pre_activation})
            back |= self._cores[m].run(inputs[m] | back)
            inputs[m].clear()  # the tape is large
            _add(totals[m % len(stems)], {gradient_of(name): back[gradient_of(name)] for name in CORE_INPUTS})
        result: Tensors = {}
        for stem, total in zip(mouse.stems, totals, strict=True):
            _add(result, stem.run(raw | total))
        return Gradient(ensemble[tensor_names.RESPONSE], *(result[gradient_of(name)] for name in INPUTS))

    def _mouse(self, mouse_id: str, forward: MouseGraphs) -> _MouseBackward:
        if mouse_id not in self._mice:
            record = self._manifest.mice[mouse_id]
            assert record.ensemble_gradient is not None
            is_float = self._graphs.readouts(record) == record.readouts
            self._mice[mouse_id] = _MouseBackward(
                forward_readouts=(
                    forward.readouts if is_float else [self._graphs.small(file) for file in record.readouts]
                ),
                stems=[self._graphs.small(file) for file in record.stem_gradients],
                readouts=[self._graphs.small(file) for file in record.readout_gradients],
                ensemble=self._graphs.small(record.ensemble_gradient),
            )
        return self._mice[mouse_id]


def _add(total: Tensors, more: Tensors) -> None:
    for name, tensor in more.items():
        total[name] = total[name] + tensor if name in total else tensor
