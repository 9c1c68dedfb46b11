"""The folded transformer for GPUs, whose matrix products need rows of a multiple of 16 bytes.

The residual stream is padded from the D channels of the embedding to W (155 -> 160), with the mean over the
D channels as the value of each additional channel. That stays so, as every branch adds its own mean there, and changes
no result: over the W channels the mean is that of the D channels, and the variance D / W of theirs, so

    LayerNorm_W(x, eps D / W) = sqrt(W / D) LayerNorm_D(x, eps),   and 0 in the additional channels

and the factor is folded into the weights that follow. What the stream begins with is padded in the weights, too.

Biases cost a pass over memory each. So LayerNorm's own bias makes the first additional channel 1, and the weights that
read it are the bias of what follows: of the queries, and of the heads' sum, as the attention weights of each sum to 1.
One more hidden unit, which is constant, is the bias of the MLP's second layer. That of its first is free, with GELU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.export.modules.folded import FoldedAttention, FoldedMLP
from training.models.attention import Attention
from training.models.tokenizer import PatchTokenizer
from training.models.transformer import MLP
from training.models.vit import ViTCore

__all__ = ["AlignedViT", "aligned_width"]

ALIGNMENT = 8  # elements of float16 in 16 bytes
# The input of a hidden unit that gives a constant: GELU is the identity there, also in float16.
CONSTANT = 8.0


def aligned_width(dim: int) -> int:
    """W, for an embedding of D channels."""
    return -(-dim // ALIGNMENT) * ALIGNMENT


class AlignedViT(nn.Module):
    """A folded ViT or V1T core: image, behavior, mouse_index -> channel-last feature map (B, rows, columns, W).

    The first D channels are the core's.

    Args:
        dtype: of everything but the tokenizer and the B-MLPs, which are float32: float16 or float32.
        fused: use onnxruntime's operators for attention and for a sum with its LayerNorm; otherwise only standard ones.
    """

    gamma: Tensor
    beta: Tensor
    position: Tensor
    pixels: Tensor
    projection: Tensor
    spread: Tensor

    @torch.no_grad()
    def __init__(self, core: ViTCore, *, fused: bool, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(core.tokenizer, PatchTokenizer)
        self.fused = fused
        self.dtype = dtype
        self.grid = core.grid
        self.dim = core.output_shape[0]
        self.width = aligned_width(self.dim)
        blocks = core.transformer.ordered_blocks()
        self.eps = blocks[0].attention.norm.eps * self.dim / self.width
        self.attentions = nn.ModuleList(self._attention(block.attention) for block in blocks)
        self.mlps = nn.ModuleList(self._mlp(block.mlp) for block in blocks)
        one = torch.zeros(self.width)
        one[self.dim : self.dim + 1] = 1
        within = torch.ones(self.width)
        within[self.dim :] = 0
        for name, tensor in (
            ("gamma", within),
            ("beta", one),
            ("position", self._positions(core.tokenizer)),
        ):
            self.register_buffer(name, tensor)
        self.to(dtype)
        self.tokenizer = core.tokenizer
        if core.tokenizer.norm_in is None:
            self.register_buffer("pixels", _pixels_of_patches(core))
            self.register_buffer("projection", self._with_means(core.tokenizer.projection.weight.flatten(1)))
        self.transformer = core.transformer
        self.register_buffer("spread", self._with_means(torch.eye(self.dim)))  # (W, D)

    @property
    def _has_one(self) -> bool:
        """Whether there is an additional channel, for a 1."""
        return self.width > self.dim

    def _positions(self, tokenizer: PatchTokenizer) -> Tensor:
        """What is added to the projected patches (1, 1 + L, W): their positions and their bias; and the cls token."""
        position = tokenizer.position.clone()
        position[0] += tokenizer.cls_token[0, 0]
        if tokenizer.norm_in is None and tokenizer.projection.bias is not None:
            position[1:] += tokenizer.projection.bias
        return self._with_means(position, axis=-1)[None]

    def _attention(self, attention: Attention) -> FoldedAttention:
        folded = FoldedAttention(attention, fused=self.fused, width=self.width)
        scale = math.sqrt(self.width / self.dim)
        assert folded.query_bias is not None
        assert folded.output_bias is not None
        folded.query_weight /= scale**2  # for the queries, and for the keys
        query_bias, output_bias = folded.query_bias / scale, self._with_means(folded.output_bias)
        folded.output_weight = self._with_means(folded.output_weight / scale)
        if self._has_one:
            folded.query_weight[:, self.dim] = query_bias
            folded.output_weight[:, self.dim] = output_bias
        folded.query_bias = None if self._has_one else query_bias
        folded.output_bias = None if self._has_one else output_bias
        return folded

    def _mlp(self, mlp: MLP) -> FoldedMLP:
        folded = FoldedMLP(mlp, width=self.width)
        folded.up_weight /= math.sqrt(self.width / self.dim)
        assert folded.up_bias is not None
        down = self._with_means(folded.down.weight)
        has_bias = mlp.down.bias is not None
        bias = self._with_means(folded.down.bias) if has_bias else torch.zeros(self.width)
        if self._has_one:
            hidden = folded.up_weight.shape[0]
            more = aligned_width(hidden + 1) - hidden
            folded.up_weight = F.pad(folded.up_weight, (0, 0, 0, more))
            folded.up_bias = F.pad(folded.up_bias, (0, more))
            folded.up_bias[hidden] = CONSTANT
            down = F.pad(down, (0, more))
            down[:, hidden] = bias / CONSTANT
        folded.down.weight = nn.Parameter(down)
        folded.down.register_parameter("bias", nn.Parameter(bias) if has_bias and not self._has_one else None)
        return folded

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        x, branch = self._patches(image), self.position
        latents = self._latents(behavior, mouse_index)
        last = len(self.mlps) - 1
        for i in range(last + 1):
            attention, mlp = self.attentions[i], self.mlps[i]
            assert isinstance(attention, FoldedAttention)
            if i in latents:
                x, branch = (x + latents[i], branch) if i == 0 else (x, branch + latents[i])
            tokens, x = self._add(x, branch)
            asked = tokens
            if i == last:  # the cls token is not read out: the last block attends to it, but does not compute it
                asked, x = tokens[:, 1:], x[:, 1:]
            heads = attention.attend(attention.queries(asked), tokens)
            tokens, x = self._add(x, attention.project(heads))
            branch = mlp(tokens)
        return (x + branch).unflatten(1, self.grid)

    def _patches(self, image: Tensor) -> Tensor:
        """The projected patches (B, 1 + L, W), after zeros in place of the cls token."""
        if self.tokenizer.norm_in is not None:
            return F.pad(self._with_means(self.tokenizer.patches(image), axis=-1), (0, 0, 1, 0)).to(self.dtype)
        # A matrix product, as cuDNN plans a convolution anew whenever the size of the batch changes.
        patches = F.pad(image.flatten(1), (0, 1)).index_select(1, self.pixels)
        return F.linear(patches.unflatten(1, (-1, self.projection.shape[1])), self.projection).to(self.dtype)

    def _latents(self, behavior: Tensor, mouse_index: Tensor) -> dict[int, Tensor]:
        """Block -> what behaviour adds to every token before it, (B, 1, W)."""
        found = {i: self.transformer.behavior_latent(i, behavior, mouse_index) for i in range(len(self.mlps))}
        latents = {i: latent for i, latent in found.items() if latent is not None}
        if not latents:
            return {}
        padded = F.linear(torch.cat(list(latents.values()), 1), self.spread).to(self.dtype)
        return dict(zip(latents, padded.split(1, 1), strict=True))

    def _add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """LayerNorm of the sum, and the sum: two of (B, L', W)."""
        if self.fused:
            normalized, _, _, total = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::SkipLayerNormalization",
                (x, branch, self.gamma, self.beta),
                attrs={"epsilon": self.eps},
                dtypes=[self.dtype, torch.float32, torch.float32, self.dtype],
                shapes=[x.shape, [*x.shape[:-1], 1], [*x.shape[:-1], 1], x.shape],
                version=1,
            )
            return normalized, total
        total = x + branch
        return F.layer_norm(total, total.shape[-1:], self.gamma, self.beta, eps=self.eps), total

    def _with_means(self, x: Tensor, axis: int = 0) -> Tensor:
        """Pads the D entries of an axis to W with their mean."""
        mean = x.mean(axis, keepdim=True)
        return torch.cat([x, mean.repeat_interleave(self.width - self.dim, axis)], axis) if self.width > self.dim else x


def _pixels_of_patches(core: ViTCore) -> Tensor:
    """Positions in an image with a zero after its pixels: that zero as the cls token, then the pixels of each patch."""
    tokenizer = core.tokenizer
    assert isinstance(tokenizer, PatchTokenizer)
    height, width = core.image_size
    n_pixels = tokenizer.projection.weight[0].numel() // tokenizer.patch_size**2 * height * width
    image = torch.arange(n_pixels, dtype=torch.float64).reshape(1, -1, height, width)
    patches = F.unfold(image, tokenizer.patch_size, stride=tokenizer.stride)[0].T  # (L, C p p)
    cls = torch.full_like(patches[:1], n_pixels)
    return torch.cat([cls, patches]).flatten().to(torch.int64)
