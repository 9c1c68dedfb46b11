"""Convolutional cores: the Sensorium CNN (Lurz et al. 2021), and the LN model, which has no nonlinearities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.config import CNNConfig, LNConfig
from training.errors import ConfigError
from training.models.depthwise import DepthwiseConv2d
from training.models.tokenizer import Spacing, check_fits

__all__ = ["CNNCore"]


class DepthSeparable(nn.Module):
    """1x1 convolution, spatial convolution per channel, 1x1 convolution: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, *, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.mix_in = nn.Conv2d(channels, channels, 1, bias=bias)
        self.spatial = DepthwiseConv2d(channels, kernel, padding=kernel // 2, bias=bias)
        self.mix_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_out(self.spatial(self.mix_in(x)))


class CNNCore(nn.Module):
    """(B, C, h, w) -> feature map of the last layer (B, channels, h - kernel + 1, w - kernel + 1)."""

    def __init__(self, *, config: CNNConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        check_fits("input_kernel", config.input_kernel, (height, width))
        if config.hidden_kernel % 2 == 0:
            raise ConfigError("core.hidden_kernel must be odd", got=config.hidden_kernel, expected="an odd number")
        self.linear = isinstance(config, LNConfig)
        self.laplace_scale = config.laplace
        first = nn.Conv2d(in_channels, config.channels, config.input_kernel, bias=False)
        hidden = [
            DepthSeparable(channels=config.channels, kernel=config.hidden_kernel, bias=config.convolution_bias)
            for _ in range(config.n_layers - 1)
        ]
        self.convolutions = nn.ModuleList([first, *hidden])
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(config.channels, momentum=config.norm_momentum) for _ in range(config.n_layers)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.output_shape = (config.channels, height - config.input_kernel + 1, width - config.input_kernel + 1)
        self.spacing = Spacing((config.input_kernel - 1) / 2, 1)

    def forward(self, image: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        x = image
        last = len(self.convolutions) - 1
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            x = x if self.linear else F.elu(x)
            x = self.dropout(x) if 0 < i < last else x
        return x

    def regularizer(self) -> Tensor:
        """Energy of the first layer's filters after a Laplace filter, divided by their energy (Lurz et al. 2021)."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        filters = first.weight.flatten(0, 1)[:, None]  # (out * in, 1, k, k)
        laplace = filters.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
        return self.laplace_scale * F.conv2d(filters, laplace, padding=1).square().sum() / filters.square().sum()
