"""Transformer cores: ViT and V1T (paper, section 4.1), and CCT."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from training.config import BehaviorMLPConfig, CCTConfig, TokenGrid, ViTConfig
from training.models.attention import attention_rollout
from training.models.tokenizer import ConvolutionalTokenizer, PatchTokenizer, Spacing
from training.models.transformer import Transformer

__all__ = ["CCTCore", "ViTCore", "token_grid"]


def token_grid(patches: tuple[int, int], kind: TokenGrid) -> tuple[int, int]:
    """(rows, columns) in which tokens become a feature map.

    "nearest_square" is the reference code's choice: the number of rows is the largest divisor of L up to ceil(sqrt(L)).
    For 8 x 15 patches that is 10 x 12, a map whose rows are not rows of the image.
    """
    if kind == "patches":
        return patches
    n_tokens = patches[0] * patches[1]
    rows = math.ceil(math.sqrt(n_tokens))
    while n_tokens % rows:
        rows -= 1
    return rows, n_tokens // rows


class _TransformerCore(nn.Module):
    """What ViT and CCT share: a tokenizer, transformer blocks, tokens as a feature map, and the L1 term."""

    def __init__(
        self,
        tokenizer: PatchTokenizer | ConvolutionalTokenizer,
        transformer: Transformer,
        config: ViTConfig | CCTConfig,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.grid = token_grid(tokenizer.grid, config.token_grid)
        self.output_shape = (config.dim, *self.grid)
        self.spacing: Spacing | None = tokenizer.spacing if self.grid == tokenizer.grid else None
        self.l1 = config.l1

    def feature_map(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, D, rows, columns)."""
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def regularizer(self) -> Tensor:
        """L1 over all weights of the core that are trained (paper, section 4.2)."""
        return self.l1 * torch.stack([p.abs().sum() for p in self.parameters() if p.requires_grad]).sum()


class ViTCore(_TransformerCore):
    """(B, C, h, w), behavior (B, K) -> feature map (B, D, rows, columns)."""

    def __init__(
        self,
        *,
        config: ViTConfig,
        image_shape: tuple[int, int, int],
        b_mlp: BehaviorMLPConfig | None,
        n_behavior: int,
        n_mice: int,
    ) -> None:
        tokenizer = PatchTokenizer(config=config, image_shape=image_shape)
        transformer = Transformer(
            config=config,
            inner=config.n_heads * config.dim,
            scale=config.dim**-0.5,
            bias=config.bias,
            locality=config.attention == "locality",
            stochastic_depth=[config.stochastic_depth] * config.n_blocks,
            b_mlp=b_mlp,
            n_behavior=n_behavior,
            n_mice=n_mice,
        )
        super().__init__(tokenizer, transformer, config)
        self.image_size = image_shape[1:]

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        x = self.tokenizer(image)  # (B, 1 + L, D)
        x = self.transformer(x, behavior, mouse_index)[:, 1:]  # without the cls token
        return self.feature_map(x)

    def attention_rollout(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        """Where the cls token looks, (B, h, w) at the size of the core's image, in [0, 1]."""
        _, weights = self.transformer.with_weights(self.tokenizer(image), behavior, mouse_index)
        return attention_rollout(weights, self.grid, self.image_size)


class CCTCore(_TransformerCore):
    """(B, C, h, w), behavior (B, K) -> feature map (B, D, rows, columns)."""

    def __init__(
        self,
        *,
        config: CCTConfig,
        image_shape: tuple[int, int, int],
        b_mlp: BehaviorMLPConfig | None,
        n_behavior: int,
        n_mice: int,
    ) -> None:
        tokenizer = ConvolutionalTokenizer(config=config, image_shape=image_shape)
        inner = config.dim // config.n_heads
        transformer = Transformer(
            config=config,
            inner=inner,
            scale=inner**-0.5,
            bias=True,
            locality=False,
            stochastic_depth=np.linspace(0, config.stochastic_depth, config.n_blocks).tolist(),
            b_mlp=b_mlp,
            n_behavior=n_behavior,
            n_mice=n_mice,
        )
        super().__init__(tokenizer, transformer, config)

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        return self.feature_map(self.transformer(self.tokenizer(image), behavior, mouse_index))
