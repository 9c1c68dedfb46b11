"""Attention with dropout of its weights on a CPU, block by block: what torch's fused kernels leave out there.

    output = (softmax(q k^T) * kept / keep_probability) v

Torch materialises every intermediate of this, (h L, L) each, and keeps three of them for the backward pass. Here a
block of queries stays in the processor's cache. The backward pass draws the random bits again, and where memory is
short computes the weights again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.models.dropout import RandomBits, draw_seed, keep_probability

__all__ = ["dropout_attention"]

BLOCK_ROWS = 256  # times 1,654 tokens times 4 bytes: a part for each core's second-level cache
MEMORY_SHARE = 1 / 16  # of the free memory that one call's weights may take until the backward pass


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, *, rate: float, rows_per_token: int = 0) -> Tensor:
    """Scaled queries (G, M, d), keys (G, L, d) and values (G, L, e) -> (G, M, e).

    Args:
        rate: of the attention weights that are dropped, independently.
        rows_per_token: for locality self-attention: row i of q does not see key i // rows_per_token.
    """
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    output: Tensor = _DropoutAttention.apply(q, k, v, rate, draw_seed(), rows_per_token)
    return output


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rate: float, seed: int, rows_per_token: int) -> Tensor:
        ctx.arguments = (rate, seed, rows_per_token)
        ctx.widths = (q.shape[2], v.shape[2])
        size = q.shape[0] * q.shape[1] * k.shape[1] * q.element_size()
        keep = any(ctx.needs_input_grad) and size <= MEMORY_SHARE * psutil.virtual_memory().available
        q, k, v = _padded(q), _padded(k), _padded(v)
        output = q.new_empty(*q.shape[:2], v.shape[2])
        weights = []
        with torch.autocast("cpu", enabled=False):
            scaled = v / keep_probability(rate)
            for group, rows, block, kept in _blocks(q, k, *ctx.arguments, reuse=not keep):
                torch.mm(kept.mul_(block), scaled[group], out=output[group, rows])
                if keep:
                    weights.append(block)
        ctx.save_for_backward(q, k, v, *weights)
        return output[..., : ctx.widths[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        keep = keep_probability(ctx.arguments[0])
        gradient = _padded(gradient.to(q.dtype)).contiguous()
        # Sums over blocks: in float32 at least.
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = torch.empty_like(q), k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
        with torch.autocast("cpu", enabled=False):
            scaled = v / keep
            for group, rows, block, kept in _blocks(q, k, *ctx.arguments, known=weights):
                g = gradient[group, rows]
                grad_block = (g @ scaled[group].T).mul_(kept)  # (R, L)
                _add_product(grad_v[group], kept.mul_(block).T, g)
                grad_scores = torch._softmax_backward_data(grad_block, block, -1, block.dtype)
                torch.mm(grad_scores, k[group], out=grad_q[group, rows])
                _add_product(grad_k[group], grad_scores.T, q[group, rows])
        width, value_width = ctx.widths
        grad_v = (grad_v / keep).to(v.dtype)
        return grad_q[..., :width], grad_k.to(k.dtype)[..., :width], grad_v[..., :value_width], None, None, None


def _padded(x: Tensor) -> Tensor:
    """With zeros, to a width that matrix products are fast at: a fifth is gained at 155, and nothing changes."""
    return F.pad(x, (0, -x.shape[-1] % 16))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _blocks(
    q: Tensor,
    k: Tensor,
    rate: float,
    seed: int,
    rows_per_token: int,
    *,
    known: Sequence[Tensor] = (),
    reuse: bool = True,
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Group, rows, attention weights (R, L), and 1 where a weight is kept, else 0.

    The weights are those that are known, or computed. The next block overwrites the 1 and 0, and with `reuse` the
    weights.
    """
    bits = RandomBits(seed)
    remaining = iter(known)
    n_groups, n_rows, _ = q.shape
    scratch = q.new_empty(2, min(BLOCK_ROWS, n_rows), k.shape[1])
    for group in range(n_groups):
        for start in range(0, n_rows, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, n_rows))
            n = rows.stop - rows.start
            block = next(remaining, None)
            if block is None:
                block = scratch[0, :n] if reuse else q.new_empty(n, k.shape[1])
                torch.mm(q[group, rows], k[group].T, out=block)
                if rows_per_token:
                    itself = torch.arange(rows.start, rows.stop) // rows_per_token
                    block[torch.arange(n), itself] = torch.finfo(block.dtype).min
                torch.softmax(block, dim=-1, out=block)
            yield group, rows, block, bits.keep(rate, scratch[1, :n])
