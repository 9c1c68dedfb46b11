"""The inputs of one pass of a core, or of several members' cores, which are often the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.inference.gpu.batch_sizes import padded
from server.inference.sessions import Graph, Tensor, on_device

__all__ = ["CoreInputs"]


class CoreInputs:
    """Images of one or more pieces, each distinct one once: one image for many mice runs once.

    Args:
        pieces: inputs of the core by name, each of one or more images.
        names: of the inputs that the core has.

    Attributes:
        distinct: by name, with the distinct images as the first axis.
        where: of each image of the pieces, in order, its position in the first axis of `distinct`.
    """

    def __init__(self, pieces: Sequence[dict[str, Tensor]], names: Sequence[str]) -> None:
        self._sizes = [len(piece[tensor_names.CORE_IMAGE]) for piece in pieces]
        tensors = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        self.where, first = _groups(tensors)
        every = len(first) == len(self.where)
        self._tensors: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.distinct = tensors if every else {name: tensor[first] for name, tensor in tensors.items()}

    def of_pieces(self) -> Iterator[npt.NDArray[np.int64]]:
        """The part of `where` that belongs to each piece."""
        yield from np.split(self.where, np.cumsum(self._sizes)[:-1])

    def tensors_for(self, graph: Graph, size: int) -> dict[str, Tensor]:
        """`distinct`, where the graph reads it; copied to a GPU once, however many members ask.

        Args:
            size: of the batch, with copies of the last image if there are fewer.
        """
        key = (graph.reads_from, size)
        if key not in self._tensors:
            self._tensors[key] = {
                name: on_device(padded(tensor, size), graph.reads_from) for name, tensor in self.distinct.items()
            }
        return dict(self._tensors[key])

    def tokens_read(self, touched: Sequence[npt.NDArray[np.int64]], n_tokens: int) -> npt.NDArray[np.bool_]:
        """Which tokens are read of each distinct image, (distinct, L).

        Args:
            touched: for each piece, the tokens that its readout reads, (b or 1, any), -1 for none.
        """
        masks = [mask_of(tokens, size, n_tokens) for tokens, size in zip(touched, self._sizes, strict=True)]
        union = np.zeros((self.where.max() + 1, n_tokens), bool)
        for group, mask in zip(self.where, np.concatenate(masks), strict=True):
            union[group] |= mask
        return union


def mask_of(tokens: npt.NDArray[np.int64], batch: int, n_tokens: int) -> npt.NDArray[np.bool_]:
    """Touched tokens (batch or 1, any), -1 for none, as a mask (batch, n_tokens)."""
    mask = np.zeros((len(tokens), n_tokens + 1), bool)
    np.put_along_axis(mask, tokens, True, axis=1)  # -1 is the last column, which is cut off
    return np.broadcast_to(mask[:, :-1], (batch, n_tokens))


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
