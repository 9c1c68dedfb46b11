"""Attention with dropout of its weights on a CPU, block by block, for which torch has no fused kernel.

    output = (softmax(q k^T) * kept / keep_probability) v

Torch materialises every intermediate of this, (h L, L) each, and keeps three of them for the backward pass. Here one is
kept: half of each weight, negative if the weight was dropped. So the mask takes no memory and is not drawn twice. If
memory is short, nothing is kept, and the backward pass recomputes it from the same random bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.models.dropout import RandomBits, draw_seed, keep_probability

__all__ = ["dropout_attention"]

BLOCK_ROWS = 1024  # large enough for fast matrix products, small enough for the last-level cache
MEMORY_SHARE = 1 / 16  # of the free memory that the weights of one call may take until the backward pass


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, *, rate: float, rows_per_token: int = 0) -> Tensor:
    """Scaled queries (G, M, d), keys (G, L, d) and values (G, L, e) -> (G, M, e).

    Args:
        rate: probability with which each attention weight is dropped.
        rows_per_token: for locality self-attention: row i of q does not attend to key i // rows_per_token.
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
        halves = []
        with torch.autocast("cpu", enabled=False):
            scaled = v / keep_probability(rate)
            for group, rows, half, kept in _drawn(q, k, *ctx.arguments, reuse=not keep):
                torch.mm(kept, scaled[group], out=output[group, rows])
                if keep:
                    halves.append(half)
        ctx.save_for_backward(q, k, v, output, *halves)
        return output[..., : ctx.widths[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, *halves = ctx.saved_tensors
        gradient = _padded(gradient.to(q.dtype)).contiguous()
        # Sums over blocks are at least float32.
        wide = torch.promote_types(q.dtype, torch.float32)
        twice = 2 / keep_probability(ctx.arguments[0])  # because halves are kept
        grad_q, grad_k, grad_v = torch.empty_like(q), k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
        known = ((*place, half) for place, half in zip(_places(q), halves, strict=True))
        blocks = known if halves else (drawn[:3] for drawn in _drawn(q, k, *ctx.arguments))
        scratch = q.new_empty(3, min(BLOCK_ROWS, q.shape[1]), k.shape[1])
        with torch.autocast("cpu", enabled=False):
            scaled = v * twice
            # The backward pass of softmax subtracts the mean of the weights' gradients: the output's own product.
            mean = (gradient.to(wide) * output.to(wide)).sum(-1, keepdim=True).mul_(-2).to(q.dtype)  # (G, M, 1)
            for group, rows, half in blocks:
                g, n = gradient[group, rows], half.shape[0]
                kept = torch.clamp_min(half, 0, out=scratch[0, :n])  # (R, L)
                grad_scores = torch.mm(g, scaled[group].T, out=scratch[1, :n])
                grad_scores.mul_(kept).addcmul_(torch.abs(half, out=scratch[2, :n]), mean[group, rows])
                torch.mm(grad_scores, k[group], out=grad_q[group, rows])
                _add_product(grad_k[group], grad_scores.T, q[group, rows])
                _add_product(grad_v[group], kept.T, g)
        width, value_width = ctx.widths
        grad_v = (grad_v * twice).to(v.dtype)
        return grad_q[..., :width], grad_k.to(k.dtype)[..., :width], grad_v[..., :value_width], None, None, None


def _padded(x: Tensor) -> Tensor:
    """Padded with zeros to a multiple of 16, which makes matrix products a fifth faster at width 155."""
    return F.pad(x, (0, -x.shape[-1] % 16))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _places(q: Tensor) -> Iterator[tuple[int, slice]]:
    """The blocks, each a group and a range of its rows."""
    for group in range(q.shape[0]):
        for start in range(0, q.shape[1], BLOCK_ROWS):
            yield group, slice(start, min(start + BLOCK_ROWS, q.shape[1]))


def _drawn(
    q: Tensor, k: Tensor, rate: float, seed: int, rows_per_token: int, *, reuse: bool = True
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Per block: group, rows, halves (R, L) of the weights, negative if dropped, and the weights, 0 if dropped.

    The next block overwrites the weights and, with `reuse`, the halves.
    """
    bits = RandomBits(seed)
    scratch = q.new_empty(1 + reuse, min(BLOCK_ROWS, q.shape[1]), k.shape[1])
    for group, rows in _places(q):
        n = rows.stop - rows.start
        weights = scratch[1, :n] if reuse else q.new_empty(n, k.shape[1])
        torch.mm(q[group, rows], k[group].T, out=weights)
        if rows_per_token:
            itself = torch.arange(rows.start, rows.stop) // rows_per_token
            weights[torch.arange(n), itself] = torch.finfo(weights.dtype).min
        torch.softmax(weights, dim=-1, out=weights)
        kept = bits.keep(rate, scratch[0, :n]).mul_(weights)
        yield group, rows, torch.sub(kept, weights, alpha=0.5, out=weights), kept
