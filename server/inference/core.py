"""One member's core: equal inputs run once, and the last block runs only for the tokens that readouts read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.inference.one_node import GATHER
from server.inference.sessions import Graph, Session, Tensor

__all__ = ["Core", "distinct_tokens"]

# Above this fraction of all tokens, gathering them costs as much as restricting the last block saves.
WORTH_RESTRICTING = 0.9


class Core:
    """A core graph and, where the bundle has one, its variant for some tokens only.

    Args:
        open_restricted: opens that variant on its first use; None: there is none.
    """

    def __init__(self, session: Graph, open_restricted: Callable[[], Graph] | None) -> None:
        self.session = session
        self._open_restricted = open_restricted
        self._restricted: Graph | None = None

    @property
    def can_restrict(self) -> bool:
        return self._open_restricted is not None

    def feature_maps(
        self, rows: Sequence[dict[str, Tensor]], touched: Sequence[npt.NDArray[np.int64]] | None = None
    ) -> list[Tensor]:
        """The feature maps (b, rows, columns, D) of each row. Equal inputs, as of one image for many mice, run once.
        They stay on the device that computed them.

        Args:
            rows: inputs of the core, each of one or more images.
            touched: for each row, the tokens that its readout reads, (b or 1, any), -1 for none.
        """
        tensors = {name: np.concatenate([row[name] for row in rows]) for name in self.session.inputs}
        where, first = _groups(tensors)
        distinct = len(first) == len(where)
        if not distinct:
            tensors = {name: tensor[first] for name, tensor in tensors.items()}
        graph = self.session
        if touched is not None:
            read = self._tokens_read(rows, touched, where)
            if read.sum(axis=1).max() <= WORTH_RESTRICTING * self.n_tokens:
                graph = self._for_some_tokens()
                tensors[tensor_names.TOKENS] = distinct_tokens(read)
        feature_map = graph.run(tensors, stay=(tensor_names.FEATURE_MAP,))[tensor_names.FEATURE_MAP]
        ends = np.cumsum([len(row[tensor_names.CORE_IMAGE]) for row in rows])
        return [self._take(feature_map, part) for part in np.split(where, ends[:-1])]

    def _take(self, feature_map: Tensor, samples: npt.NDArray[np.int64]) -> Tensor:
        """The feature maps of these samples, on the device that they are on; without a copy if they are all of them."""
        if isinstance(feature_map, np.ndarray):
            return _rows(feature_map, samples)
        if np.array_equal(samples, np.arange(feature_map.shape()[0])):
            return feature_map
        if self.session.device == "cpu":
            return _rows(feature_map.numpy(), samples)
        return self._gather.run({"feature_map": feature_map, "rows": samples}, stay=("selected",))["selected"]

    @functools.cached_property
    def _gather(self) -> Session:
        return Session(GATHER, wanted="cuda", threads=1)

    def _for_some_tokens(self) -> Graph:
        assert self._open_restricted is not None
        if self._restricted is None:
            self._restricted = self._open_restricted()
        return self._restricted

    def _tokens_read(
        self, rows: Sequence[dict[str, Tensor]], touched: Sequence[npt.NDArray[np.int64]], where: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which tokens are read of each distinct input, (groups, L)."""
        masks = [
            mask_of(tokens, len(row[tensor_names.CORE_IMAGE]), self.n_tokens)
            for row, tokens in zip(rows, touched, strict=True)
        ]
        union = np.zeros((where.max() + 1, self.n_tokens), bool)
        for group, mask in zip(where, np.concatenate(masks), strict=True):
            union[group] |= mask
        return union

    @property
    def n_tokens(self) -> int:
        """L, of the feature map."""
        _, rows, columns, _ = self.session.shapes[tensor_names.FEATURE_MAP]
        assert isinstance(rows, int)
        assert isinstance(columns, int)
        return rows * columns


def mask_of(tokens: npt.NDArray[np.int64], batch: int, n_tokens: int) -> npt.NDArray[np.bool_]:
    """Touched tokens (batch or 1, any), -1 for none, as a mask (batch, n_tokens)."""
    mask = np.zeros((len(tokens), n_tokens + 1), bool)
    np.put_along_axis(mask, tokens, True, axis=1)  # -1 is the last column, which is cut off
    return np.broadcast_to(mask[:, :-1], (batch, n_tokens))


def distinct_tokens(touched: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A mask (B, L) as positions (B, R). Samples with fewer tokens than others get additional ones, none twice."""
    most = max(1, int(touched.sum(axis=1).max()))
    return np.argsort(~touched, axis=1, kind="stable")[:, :most].astype(np.int64)


def _groups(tensors: dict[str, np.ndarray]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The group of equal samples of each sample, and the first sample of each group."""
    positions: dict[bytes, int] = {}
    first: list[int] = []
    where: list[int] = []
    for i in range(len(next(iter(tensors.values())))):
        key = b"".join(tensor[i].tobytes() for tensor in tensors.values())
        if key not in positions:
            positions[key] = len(first)
            first.append(i)
        where.append(positions[key])
    return np.array(where), first


def _rows(feature_map: np.ndarray, samples: npt.NDArray[np.int64]) -> np.ndarray:
    """The feature maps of these samples, without a copy where they are consecutive."""
    if (np.diff(samples) == 1).all():
        return feature_map[samples[0] : samples[-1] + 1]
    return feature_map[samples]
