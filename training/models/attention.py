"""Self-attention of the paper, and attention rollout.

In the paper each head is as wide as the embedding (inner width = heads x dim), and queries, keys and values have no
bias. In CCT the heads are narrow: the inner width is dim // heads, split over the heads once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.dropout import Dropout
from training.models.dropout_attention import dropout_attention

__all__ = ["Attention", "attention_rollout"]


class Attention(nn.Module):
    """Pre-LayerNorm multi-head self-attention: (B, L, D) -> (B, L, D).

    Args:
        inner: width of all heads together.
        scale: of the dot products; with `locality`, the initial value of a learned scale per head.
        locality: locality self-attention (Lee et al. 2021): learned temperature, and no token attends to itself.
        dropout: rate, for the attention weights and for the output.
    """

    # "eager" materialises softmax(Q K^T) as the reference code does: the slow baseline of the benchmarks.
    kernel: Literal["fused", "eager"] = "fused"

    def __init__(
        self, *, dim: int, n_heads: int, inner: int, scale: float, bias: bool, locality: bool, dropout: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.locality = locality
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.scale: float | nn.Parameter = nn.Parameter(torch.full((n_heads,), scale)) if locality else scale

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel == "eager":
            return self.with_weights(x)[0]
        rate = self.dropout.p if self.training else 0.0
        if rate > 0 and x.device.type == "cpu":
            return self._with_dropout(x, rate)
        q, k, v = self._heads(x)  # each (B, h, L, d)
        if isinstance(self.scale, nn.Parameter):
            n_tokens = x.shape[1]
            others = ~torch.eye(n_tokens, dtype=torch.bool, device=x.device)
            heads = F.scaled_dot_product_attention(q * self._scale(), k, v, attn_mask=others, dropout_p=rate, scale=1.0)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=self.scale)
        return self._merge(heads)

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the attention weights (B, h, L, L), before dropout."""
        q, k, v = self._heads(x)
        scores = q @ k.transpose(-1, -2) * self._scale()
        if self.locality:
            itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            scores = scores.masked_fill(itself, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        return self._merge(self.dropout(weights) @ v), weights

    @torch.compiler.disable  # the dropout's bits come from numpy
    def _with_dropout(self, x: Tensor, rate: float) -> Tensor:
        """Attention with dropout of its weights on a CPU, for which torch has no fused kernel.

        If heads are as wide as the embedding, keys and values are folded away: with n the normalised tokens, the scores
        are n (W_q^T W_k) n^T and the output is (weights n) (W_v^T W_o^T), so all heads use n as keys and values.
        """
        batch, n_tokens, dim = x.shape
        if self.qkv.out_features == 3 * self.n_heads * dim:
            n = self.norm(x)
            with torch.autocast("cpu", enabled=False):  # products of weights: small, and rounded only once
                w_q, w_k, w_v = self.qkv.weight.unflatten(0, (3, self.n_heads, dim)).unbind(0)  # (h, d, D)
                w_o = self.output.weight.unflatten(1, (self.n_heads, dim))  # (D, h, d)
                w_query = torch.einsum("hdi,hdj->hij", w_q, w_k * self._scale())  # (h, D, D)
                w_output = torch.einsum("ohd,hdi->ohi", w_o, w_v).flatten(1)  # (D, h D)
            q = F.linear(n, w_query.transpose(1, 2).flatten(0, 1)).view(batch, n_tokens * self.n_heads, dim)
            heads = dropout_attention(q, n, n, rate=rate, rows_per_token=self.n_heads if self.locality else 0)
            output = F.linear(heads.reshape(batch, n_tokens, -1), w_output, self.output.bias)
            return self.dropout(output)
        q, k, v = (part.flatten(0, 1) for part in self._heads(x))  # each (B h, L, d)
        q = q.unflatten(0, (batch, self.n_heads)) * self._scale()
        heads = dropout_attention(q.flatten(0, 1), k, v, rate=rate, rows_per_token=1 if self.locality else 0)
        return self._merge(heads.unflatten(0, (batch, self.n_heads)))

    def _scale(self) -> Tensor | float:
        """The scale of the dot products, (h, 1, 1) if it is learned."""
        return self.scale[:, None, None] if isinstance(self.scale, nn.Parameter) else self.scale

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (B, L, 3 h d) -> three of (B, h, L, d)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _merge(self, heads: Tensor) -> Tensor:
        return self.dropout(self.output(heads.transpose(1, 2).flatten(2)))


def attention_rollout(weights: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020) with the maximum over heads, as in the paper's Figure 3.

    Args:
        weights: per block, (B, h, 1 + L, 1 + L), the cls token first.
        grid: (rows, columns) of the L tokens.
        size: (h, w) of the result.

    Returns:
        (B, h, w) in [0, 1]: where the cls token looks.
    """
    row: Tensor | None = None
    # Only the cls row of A_n ... A_1 is needed. From the last block back, it takes row-matrix products only.
    for block in reversed(weights):
        joint = block.amax(dim=1)  # (B, 1 + L, 1 + L)
        joint = joint + torch.eye(joint.shape[-1], dtype=joint.dtype, device=joint.device)
        joint = joint / joint.sum(dim=-1, keepdim=True)
        row = joint[:, :1] if row is None else row @ joint  # (B, 1, 1 + L)
    assert row is not None
    heat = row[:, 0, 1:]
    low, high = heat.amin(dim=1, keepdim=True), heat.amax(dim=1, keepdim=True)
    heat = ((heat - low) / (high - low)).unflatten(1, grid)[:, None]  # (B, 1, rows, columns)
    return F.interpolate(heat, size=size, mode="bilinear", align_corners=False)[:, 0]
