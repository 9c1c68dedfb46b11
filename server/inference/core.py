"""One member's core, whose last block runs only for the tokens that readouts read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.inference.core_inputs import CoreInputs
from server.inference.gpu.batch_sizes import padded, padded_size
from server.inference.one_node import GATHER
from server.inference.sessions import Graph, Session, Tensor

__all__ = ["Core", "distinct_tokens"]

# Above this fraction of all tokens, gathering them costs as much as restricting the last block saves.
WORTH_RESTRICTING = 0.9


class Core:
    """A core graph and, where the bundle has one, its variant for some tokens only.

    Args:
        open_restricted: opens that variant on its first use; None: there is none.
        max_batch: images in the largest batch; on a GPU, others are padded to one of a few sizes.
    """

    def __init__(self, session: Graph, open_restricted: Callable[[], Graph] | None, *, max_batch: int) -> None:
        self.session = session
        self._max_batch = max_batch
        self._open_restricted = open_restricted
        self._restricted: Graph | None = None

    @property
    def can_restrict(self) -> bool:
        return self._open_restricted is not None

    def feature_maps(self, inputs: CoreInputs, touched: Sequence[npt.NDArray[np.int64]] | None = None) -> list[Tensor]:
        """The feature maps (b, rows, columns, D) of each piece. They stay on the device that computed them.

        Args:
            touched: for each piece, the tokens that its readout reads, (b or 1, any), -1 for none.
        """
        graph, tokens = self.session, dict[str, Tensor]()
        n = len(next(iter(inputs.distinct.values())))
        size = padded_size(n, self._max_batch) if graph.reads_from == "cuda" else n
        if touched is not None:
            read = inputs.tokens_read(touched, self.n_tokens)
            if read.sum(axis=1).max() <= WORTH_RESTRICTING * self.n_tokens:
                graph = self._for_some_tokens()
                tokens[tensor_names.TOKENS] = padded(distinct_tokens(read), size)
        tensors = inputs.tensors_for(graph, size) | tokens
        feature_map = graph.run(tensors, stay=(tensor_names.FEATURE_MAP,))[tensor_names.FEATURE_MAP]
        return [self._take(feature_map, part) for part in inputs.of_pieces()]

    def _take(self, feature_map: Tensor, samples: npt.NDArray[np.int64]) -> Tensor:
        """The feature maps of these samples, on the device that they are on; without a copy if they are all of them."""
        if isinstance(feature_map, np.ndarray):
            return _rows(feature_map, samples)
        if np.array_equal(samples, np.arange(feature_map.shape()[0])):
            return feature_map
        if self.session.device == "cpu":
            return _rows(feature_map.numpy(), samples)
        gather = _gather(feature_map.data_type())
        return gather.run({"feature_map": feature_map, "rows": samples}, stay=("selected",))["selected"]

    def _for_some_tokens(self) -> Graph:
        assert self._open_restricted is not None
        if self._restricted is None:
            self._restricted = self._open_restricted()
        return self._restricted

    @property
    def n_tokens(self) -> int:
        """L, of the feature map."""
        _, rows, columns, _ = self.session.shapes[tensor_names.FEATURE_MAP]
        assert isinstance(rows, int)
        assert isinstance(columns, int)
        return rows * columns


@functools.cache
def _gather(element: str) -> Session:
    """Takes rows of a feature map of these elements, on a GPU."""
    return Session(GATHER[element], wanted="cuda", threads=1)


def distinct_tokens(touched: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A mask (B, L) as positions (B, R). Samples with fewer tokens than others get additional ones, none twice."""
    most = max(1, int(touched.sum(axis=1).max()))
    return np.argsort(~touched, axis=1, kind="stable")[:, :most].astype(np.int64)


def _rows(feature_map: np.ndarray, samples: npt.NDArray[np.int64]) -> np.ndarray:
    """The feature maps of these samples, without a copy where they are consecutive."""
    if (np.diff(samples) == 1).all():
        return feature_map[samples[0] : samples[-1] + 1]
    return feature_map[samples]
