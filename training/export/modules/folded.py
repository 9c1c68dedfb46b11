"""The transformer for serving, with keys and values folded into the other weights.

A head is as wide as the embedding, so its keys and values need no projection of their own. Let n be LayerNorm(x)
without its affine part, gamma and beta the affine part, and W_q, W_k, W_v, W_o the weights of one head:

    score_ij  = scale (W_q (gamma n_i + beta)) . (W_k (gamma n_j + beta))
              = (M n_i + c) . n_j + terms without j, which softmax cancels
    M = scale gamma W_k^T W_q gamma,   c = scale gamma W_k^T W_q beta
    output_i  = sum over heads of W_o W_v gamma (A n)_i + W_o W_v beta + bias, as attention weights sum to 1

So keys and values are n, shared by all heads, and the queries of all heads are one (B, h L, D) sequence: attention with
one head, without a transpose. The fold is computed in float64 and differs from the plain form only by rounding.

`training.export.modules.aligned` is the same for GPUs.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.attention import Attention
from training.models.transformer import MLP
from training.models.vit import ViTCore

__all__ = ["FoldedViT", "can_fold", "take_rows"]


def can_fold(core: nn.Module) -> bool:
    """Whether a core can be folded: a ViT, whose heads are as wide as the embedding, without a mask between tokens."""
    return isinstance(core, ViTCore) and not any(
        block.attention.locality for block in core.transformer.ordered_blocks()
    )


class FoldedAttention(nn.Module):
    """Attention with folded keys and values: `queries`, then `attend`, then `project`.

    Its inputs are normalised tokens of width W: D, or D padded with zeros.
    """

    query_weight: Tensor
    query_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None

    @torch.no_grad()
    def __init__(self, attention: Attention, *, fused: bool, width: int) -> None:
        super().__init__()
        gamma, beta = attention.norm.weight.double(), attention.norm.bias.double()
        dim = gamma.shape[0]
        w_q, w_k, w_v = attention.qkv.weight.double().unflatten(0, (3, attention.n_heads, dim))  # each (h, d, D)
        w_o = attention.output.weight.double().unflatten(1, (attention.n_heads, dim)).transpose(0, 1)  # (h, D, d)
        assert isinstance(attention.scale, float)
        query = attention.scale * gamma[:, None] * (w_k.transpose(1, 2) @ w_q)  # (h, D, D)
        value = w_o @ w_v  # (h, D, D)
        bias = (value @ beta).sum(0)
        if attention.output.bias is not None:
            bias = bias + attention.output.bias.double()
        self.n_heads = attention.n_heads
        self.width = width
        self.fused = fused
        more = width - dim
        for name, tensor in (
            ("query_weight", F.pad(query * gamma, (0, more, 0, more)).flatten(0, 1)),  # (h W, W)
            ("query_bias", F.pad(query @ beta, (0, more)).flatten()),  # (h W,)
            ("output_weight", F.pad(value * gamma, (0, more)).transpose(0, 1).flatten(1)),  # (D, h W)
            ("output_bias", bias),
        ):
            self.register_buffer(name, tensor.float().contiguous())

    def queries(self, normalized: Tensor) -> Tensor:
        """Normalised tokens (B, L', W) -> the heads' queries (B, L' h, W)."""
        q = F.linear(normalized, self.query_weight, self.query_bias)
        return q.reshape(normalized.shape[0], normalized.shape[1] * self.n_heads, self.width)

    def attend(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries (B, L' h, W) and all normalised tokens (B, L, W) -> the heads' outputs (B, L' h, W)."""
        if not self.fused:
            return (queries @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (queries, tokens, tokens),
            attrs={"num_heads": 1, "scale": 1.0},
            dtype=queries.dtype,
            shape=queries.shape,
            version=1,
        )

    def project(self, heads: Tensor) -> Tensor:
        """The heads' outputs (B, L' h, W) -> the residual branch (B, L', D)."""
        merged = heads.reshape(heads.shape[0], heads.shape[1] // self.n_heads, self.n_heads * self.width)
        return F.linear(merged, self.output_weight, self.output_bias)


class FoldedMLP(nn.Module):
    """The feed-forward branch for normalised tokens, with LayerNorm's affine part folded into the first layer."""

    up_weight: Tensor
    up_bias: Tensor | None

    @torch.no_grad()
    def __init__(self, mlp: MLP, *, width: int) -> None:
        super().__init__()
        weight, gamma, beta = mlp.up.weight.double(), mlp.norm.weight.double(), mlp.norm.bias.double()
        bias = weight @ beta
        if mlp.up.bias is not None:
            bias = bias + mlp.up.bias.double()
        more = width - weight.shape[1]
        self.register_buffer("up_weight", F.pad(weight * gamma, (0, more)).float().contiguous())
        self.register_buffer("up_bias", bias.float())
        self.down = copy.deepcopy(mlp.down)  # a copy: `aligned` pads it

    def forward(self, normalized: Tensor) -> Tensor:
        return self.down(F.gelu(F.linear(normalized, self.up_weight, self.up_bias)))


class FoldedViT(nn.Module):
    """A folded ViT or V1T core: image, behavior, mouse_index -> channel-last feature map (B, rows, columns, D).

    Args:
        fused: use onnxruntime's attention operator; otherwise only standard operators, for other runtimes.
    """

    def __init__(self, core: ViTCore, *, fused: bool) -> None:
        super().__init__()
        self.tokenizer = core.tokenizer
        self.transformer = core.transformer
        blocks = core.transformer.ordered_blocks()
        dim = core.output_shape[0]
        self.attentions = nn.ModuleList(FoldedAttention(block.attention, fused=fused, width=dim) for block in blocks)
        self.mlps = nn.ModuleList(FoldedMLP(block.mlp, width=dim) for block in blocks)
        self.eps = blocks[0].attention.norm.eps  # torch's default, in every LayerNorm
        self.grid = core.grid
        self.n_tokens = core.grid[0] * core.grid[1]

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor, at: Tensor | None = None) -> Tensor:
        """The feature map; with `at` (B, R), only at these positions, and zero elsewhere."""
        return self.with_tape(image, behavior, mouse_index, at)[0]

    def with_tape(
        self, image: Tensor, behavior: Tensor, mouse_index: Tensor, at: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The feature map, and for each block its input (B, 1 + L, D) and its heads' outputs (B, L' h, W)."""
        x = self.tokenizer(image)  # (B, 1 + L, D)
        last = len(self.mlps) - 1
        tape = []
        for i, attention in enumerate(self.folded_attentions()):
            latent = self.transformer.behavior_latent(i, behavior, mouse_index)
            x = x if latent is None else x + latent
            tokens = self.normalize(x)
            # The cls token is not read out: the last block attends to it, but does not compute it.
            heads = attention.attend(attention.queries(self.selected(tokens, at) if i == last else tokens), tokens)
            tape.append((x, heads))
            x = self.finish(i, self.selected(x, at) if i == last else x, heads)
        return self.feature_map(x, at), tape

    def finish(self, i: int, x: Tensor, heads: Tensor) -> Tensor:
        """The rest of block i after its attention: both residual branches, (B, L', D) -> (B, L', D)."""
        x = x + self.folded_attentions()[i].project(heads)
        return x + self.mlps[i](self.normalize(x))

    def normalize(self, x: Tensor) -> Tensor:
        """Residual stream (B, L, D) -> normalised tokens (B, L, D)."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def selected(self, x: Tensor, at: Tensor | None) -> Tensor:
        """Of all tokens (B, 1 + L, D), cls token first, those of the whole map, or those at `at` (B, R, D)."""
        if at is None:
            return x[:, 1:]
        return take_rows(x, at + 1)

    def feature_map(self, x: Tensor, at: Tensor | None) -> Tensor:
        """The inverse of `selected`: (B, rows, columns, D), zero at positions that were not selected."""
        if at is not None:
            batch, dim = x.shape[0], x.shape[2]
            everywhere = x.new_zeros(batch * self.n_tokens, dim)
            x = everywhere.index_put((_flat(at, self.n_tokens),), x.flatten(0, 1)).unflatten(0, (batch, self.n_tokens))
        return x.unflatten(1, self.grid)

    def folded_attentions(self) -> list[FoldedAttention]:
        return [attention for attention in self.attentions if isinstance(attention, FoldedAttention)]


def take_rows(x: Tensor, at: Tensor) -> Tensor:
    """The rows `at` (B, R) of each sample of x (B, L, D): (B, R, D)."""
    return x.flatten(0, 1).index_select(0, _flat(at, x.shape[1])).unflatten(0, (x.shape[0], -1))


def _flat(positions: Tensor, n_tokens: int) -> Tensor:
    """Positions in each sample (B, R) -> positions in the batch (B R,)."""
    first = torch.arange(positions.shape[0], device=positions.device)[:, None] * n_tokens
    return (first + positions).flatten()
