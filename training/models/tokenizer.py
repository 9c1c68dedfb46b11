"""Tokenizers, which turn an image into tokens: four kinds of patches (V1T), and a convolutional one (CCT)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import CCTConfig, ViTConfig
from training.errors import ConfigError
from training.models.dropout import Dropout

__all__ = ["ConvolutionalTokenizer", "PatchTokenizer", "Spacing", "check_fits", "sine_positions"]


class Spacing(NamedTuple):
    """Where a feature map's rows and columns lie in the core's image [px]; the middle of its first pixel is 0.

    Attributes:
        first: the middle of what the first row or column sees.
        step: from one to the next.
    """

    first: float
    step: int


def check_fits(option: str, value: int, size: tuple[int, int], *, padding: int = 0) -> None:
    """Checks that a patch or kernel is not larger than the core's image (height, width).

    Raises:
        ConfigError: it is.
    """
    if value > min(size) + 2 * padding:
        raise ConfigError(
            f"core.{option} {value} is larger than the core's image",
            got=f"{option} {value}",
            expected=f"at most {min(size) + 2 * padding}, for cropper size {size[0]}x{size[1]}",
        )


def shifted_copies(image: Tensor, shift: int) -> Tensor:
    """The image and four diagonally shifted copies (Lee et al. 2021): (B, C, H, W) -> (B, 5C, H, W).

    Content moves down-right, down-left, up-right and up-left by `shift` pixels, and is padded with zeros.
    """
    padded = F.pad(image, (shift, shift, shift, shift))
    early, late = slice(None, -2 * shift), slice(2 * shift, None)
    moved = [padded[..., rows, columns] for rows in (early, late) for columns in (early, late)]
    return torch.cat([image, *moved], dim=1)


class PatchTokenizer(nn.Module):
    """A cls token and projected, overlapping patches, plus positions: (B, C, H, W) -> (B, 1 + L, D)."""

    def __init__(self, *, config: ViTConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        patch, stride = config.patch_size, config.patch_stride
        check_fits("patch_size", patch, (height, width))
        self.kind = config.tokenizer
        self.patch_size = patch
        self.stride = stride
        self.grid = ((height - patch) // stride + 1, (width - patch) // stride + 1)
        self.n_tokens = 1 + self.grid[0] * self.grid[1]
        self.spacing = Spacing((patch - 1) / 2, stride)

        patch_dim = patch * patch * channels * (5 if self.kind == "shifted_patches" else 1)
        self.norm_in = nn.LayerNorm(patch_dim) if self.kind in ("shifted_patches", "normalized_patches") else None
        self.projection: nn.Linear | nn.Conv2d
        if self.kind == "convolution":
            self.projection = nn.Conv2d(channels, config.dim, kernel_size=patch, stride=stride)
            nn.init.kaiming_normal_(self.projection.weight)
        else:
            self.projection = nn.Linear(patch_dim, config.dim)
        self.norm_out = nn.LayerNorm(config.dim) if self.kind == "normalized_patches" else None
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim))
        self.position = nn.Parameter(torch.randn(self.n_tokens, config.dim))
        self.dropout = Dropout(config.patch_dropout)

    def forward(self, image: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), self.patches(image)], dim=1)
        return self.dropout(tokens + self.position)  # (B, 1 + L, D)

    def patches(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D), without cls token and positions."""
        if self.kind == "convolution":
            return self.projection(image).flatten(2).transpose(1, 2)
        if self.kind == "shifted_patches":
            image = shifted_copies(image, self.patch_size // 2)
        if self.norm_in is None:
            # The same as unfold and a linear layer, without copies of the image.
            weight = self.projection.weight.unflatten(1, (-1, self.patch_size, self.patch_size))
            return F.conv2d(image, weight, self.projection.bias, self.stride).flatten(2).transpose(1, 2)
        pixels = F.unfold(image, self.patch_size, stride=self.stride).transpose(1, 2)  # (B, L, C * p * p)
        tokens = self.projection(self.norm_in(pixels))
        return tokens if self.norm_out is None else self.norm_out(tokens)


class ConvolutionalTokenizer(nn.Module):
    """Convolution, ReLU and max pool, plus positions (Hassani et al. 2021): (B, C, H, W) -> (B, L, D). No cls token."""

    PADDING = 3

    def __init__(self, *, config: CCTConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        patch, stride = config.patch_size, config.patch_stride
        check_fits("patch_size", patch, (height, width), padding=self.PADDING)
        self.projection = nn.Conv2d(
            channels, config.dim, kernel_size=patch, stride=stride, padding=self.PADDING, bias=False
        )
        nn.init.kaiming_normal_(self.projection.weight)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        def tokens_along(size: int) -> int:
            convolved = (size + 2 * self.PADDING - patch) // stride + 1
            return (convolved - 1) // 2 + 1

        self.grid = (tokens_along(height), tokens_along(width))
        self.n_tokens = self.grid[0] * self.grid[1]
        self.spacing = Spacing((patch - 1) / 2 - self.PADDING, 2 * stride)  # each pool is around every second output
        self.position: Tensor | None
        if config.position == "learned":
            self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.n_tokens, config.dim), std=0.2))
        else:
            sine = sine_positions(self.n_tokens, config.dim)[None] if config.position == "sine" else None
            self.register_buffer("position", sine)
        self.dropout = Dropout(config.patch_dropout)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.pool(F.relu(self.projection(image))).flatten(2).transpose(1, 2)  # (B, L, D)
        return self.dropout(tokens if self.position is None else tokens + self.position)


def sine_positions(n_tokens: int, dim: int) -> Tensor:
    """(n_tokens, dim): sine on even and cosine on odd channels i, of position / 10000^(2 floor(i / 2) / dim)."""
    channel = torch.arange(dim)
    angle = torch.arange(n_tokens)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
