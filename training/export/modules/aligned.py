"""The folded transformer for GPUs, whose matrix products need rows of a multiple of 16 bytes.

The residual stream is padded from the D channels of the embedding to W (155 -> 160), with the mean over the
D channels as the value of each additional channel. That stays so, as every branch adds its own mean there, and changes
no result: over the W channels the mean is that of the D channels, and the variance D / W of theirs, so

    LayerNorm_W(x, eps D / W) = sqrt(W / D) LayerNorm_D(x, eps),   and 0 in the additional channels

and the factor is folded into the weights that follow. In float16, the residual stream, LayerNorm and, inside the
kernel, softmax are still float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.export.modules.folded import FoldedAttention, FoldedMLP
from training.models.vit import ViTCore

__all__ = ["AlignedViT"]

ALIGNMENT = 8  # elements of float16 in 16 bytes


class AlignedViT(nn.Module):
    """A folded ViT or V1T core: image, behavior, mouse_index -> channel-last feature map (B, rows, columns, D).

    Args:
        dtype: of the matrix products and the attention: float16 or float32.
        fused: use onnxruntime's operators for attention and for a sum with its LayerNorm; otherwise only standard ones.
    """

    gamma: Tensor

    @torch.no_grad()
    def __init__(self, core: ViTCore, *, fused: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.fused = fused
        self.tokenizer = core.tokenizer
        self.transformer = core.transformer
        self.grid = core.grid
        self.dim = core.output_shape[0]
        self.width = -(-self.dim // ALIGNMENT) * ALIGNMENT
        scale = math.sqrt(self.width / self.dim)
        blocks = core.transformer.ordered_blocks()
        self.eps = blocks[0].attention.norm.eps * self.dim / self.width
        attentions = [FoldedAttention(block.attention, fused=fused, width=self.width) for block in blocks]
        mlps = [FoldedMLP(block.mlp, width=self.width) for block in blocks]
        for attention, mlp in zip(attentions, mlps, strict=True):
            attention.query_weight /= scale**2  # for the queries, and for the keys
            attention.query_bias /= scale
            attention.output_weight = self._with_means(attention.output_weight / scale)
            attention.output_bias = self._with_means(attention.output_bias)
            mlp.up_weight /= scale
            mlp.down.weight = nn.Parameter(self._with_means(mlp.down.weight))
            if mlp.down.bias is not None:
                mlp.down.bias = nn.Parameter(self._with_means(mlp.down.bias))
        self.dtype = dtype
        self.attentions = nn.ModuleList(attentions).to(dtype)
        self.mlps = nn.ModuleList(mlps).to(dtype)
        self.register_buffer("gamma", torch.ones(self.width))

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        x = self._with_means(self.tokenizer(image), axis=-1)  # (B, 1 + L, W)
        branch: Tensor | None = None
        last = len(self.mlps) - 1
        for i in range(last + 1):
            attention, mlp = self.attentions[i], self.mlps[i]
            assert isinstance(attention, FoldedAttention)
            latent = self.transformer.behavior_latent(i, behavior, mouse_index)
            if latent is not None:
                latent = self._with_means(latent, axis=-1)
                x, branch = (x + latent, None) if branch is None else (x, branch + latent)
            tokens, x = self._add(x, branch)
            tokens = tokens.to(self.dtype)
            asked = tokens
            if i == last:  # the cls token is not read out: the last block attends to it, but does not compute it
                asked, x = tokens[:, 1:], x[:, 1:]
            heads = attention.attend(attention.queries(asked), tokens)
            tokens, x = self._add(x, attention.project(heads).float())
            branch = mlp(tokens.to(self.dtype)).float()
        assert branch is not None
        return (x + branch)[..., : self.dim].unflatten(1, self.grid)

    def _add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """LayerNorm of the sum, and the sum: two of (B, L', W) in float32."""
        if self.fused and branch is not None:
            normalized, _, _, total = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::SkipLayerNormalization",
                (x, branch, self.gamma),
                attrs={"epsilon": self.eps},
                dtypes=[torch.float32] * 4,
                shapes=[x.shape, [*x.shape[:-1], 1], [*x.shape[:-1], 1], x.shape],
                version=1,
            )
            return normalized, total
        total = x if branch is None else x + branch
        return F.layer_norm(total, total.shape[-1:], eps=self.eps), total

    def _with_means(self, x: Tensor, axis: int = 0) -> Tensor:
        """Pads the D entries of an axis to W with their mean."""
        mean = x.mean(axis, keepdim=True)
        return torch.cat([x, mean.repeat_interleave(self.width - self.dim, axis)], axis) if self.width > self.dim else x
