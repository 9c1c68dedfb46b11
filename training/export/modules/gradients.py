"""The backward pass of each graph of a bundle, as torch modules.

d(sum of weights times responses) goes back from the ensemble to the readouts, the cores and the stems. The output of
each graph is the input of the next; d_x is the derivative with respect to x.

A folded transformer keeps only the small tensors of its forward pass, a "tape" of the blocks' inputs and the heads'
outputs. It recomputes the attention weights block by block: at the published size they are 44 MB per block and image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.checkpoints.ensemble import Combination
from training.export.modules.folded import FoldedViT, take_rows
from training.export.modules.readout import GatherReadout
from training.models import Twin
from training.models.attention import Attention
from training.models.cropper import Standardizer
from training.models.shifter import Shifter
from training.models.tokenizer import ConvolutionalTokenizer

__all__ = [
    "EnsembleGradient",
    "FoldedViTGradient",
    "PlainCoreGradient",
    "ReadoutGradient",
    "StemGradient",
    "vector_jacobian",
]


def vector_jacobian(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """d(sum of outputs times cotangents) / d(inputs); zeros for inputs that the outputs do not depend on."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    ys, cs = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ys, list(inputs), cs, allow_unused=True, materialize_grads=True))


class EnsembleGradient(nn.Module):
    """Pre-activations of members (M, B, n), weights (B, n) -> responses (B, n), d_pre_activation (M, B, n)."""

    member_weights: Tensor
    bias: Tensor

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        self.register_buffer("member_weights", torch.tensor(combination.weights).reshape(-1, 1, 1))
        self.register_buffer("bias", torch.tensor(combination.bias))

    def forward(self, pre_activation: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        combined = (pre_activation * self.member_weights).sum(0) + self.bias
        slope = combined.clamp(max=0).exp()  # of ELU
        return F.elu(combined) + 1, self.member_weights * (weights * slope)


class ReadoutGradient(nn.Module):
    """Feature map, pupil centre, neurons, d_pre_activation (B, n) -> d_feature_map, d_core_pupil_center."""

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        self.readout = GatherReadout(twin, mouse_id)

    def forward(
        self, feature_map: Tensor, pupil_center: Tensor, neurons: Tensor, d_pre_activation: Tensor
    ) -> tuple[Tensor, Tensor]:
        readout = self.readout
        batch, rows, columns, _ = feature_map.shape
        features = readout.features.index_select(0, neurons)  # (n, D)
        corners = readout.corners(pupil_center, neurons)
        d_tokens = torch.zeros_like(feature_map).flatten(0, 2)  # (B rows columns, D)
        index = corners.flat_tokens(batch, rows * columns)  # (4, B n)
        d_seen = d_pre_activation * corners.weight  # (4, B, n)
        for i in range(4):
            d_sample = (d_seen[i][:, :, None] * features).flatten(0, 1)  # (B n, D)
            d_tokens = d_tokens.index_put((index[i],), d_sample, accumulate=True)
        d_pupil_center = torch.zeros_like(pupil_center)
        if readout.shifter is not None:
            seen = readout.seen(feature_map, corners, features) * d_pre_activation
            # In float64: onnxruntime sums tens of thousands of terms, which nearly cancel, one after another.
            seen = torch.where(corners.inside, seen, 0.0).double()
            # Per column or row, a weight increases by one on the far side and decreases on the near side.
            d_x = ((2 * readout.side_x - 1) * corners.weight_y * seen).sum((0, 2)) * (0.5 * (columns - 1))
            d_y = ((2 * readout.side_y - 1) * corners.weight_x * seen).sum((0, 2)) * (0.5 * (rows - 1))
            d_shift = torch.stack([d_x, d_y], dim=1).to(pupil_center.dtype)
            d_pupil_center = _shifter_backward(readout.shifter, pupil_center, d_shift)
        return d_tokens.unflatten(0, (batch, rows, columns)), d_pupil_center


def _shifter_backward(shifter: Shifter, x: Tensor, d_shift: Tensor) -> Tensor:
    """d_x (B, n_inputs) from d_shift (B, 2)."""
    layers = [layer for layer in shifter.layers if isinstance(layer, nn.Linear)]
    values = []
    for layer in layers:
        x = torch.tanh(layer(x))
        values.append(x)
    d_x = d_shift * shifter.scale
    for layer, value in zip(reversed(layers), reversed(values), strict=True):
        d_x = (d_x * (1 - value.square())) @ layer.weight
    return d_x


class PlainCoreGradient(nn.Module):
    """The inputs of any core and d_feature_map (B, rows, columns, D) -> d_core_image, d_core_behavior."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = copy.deepcopy(core)
        for module in self.core.modules():
            if isinstance(module, Attention):
                module.kernel = "eager"  # ONNX has no backward pass of the fused kernel
            if isinstance(module, ConvolutionalTokenizer):
                module.pool = _MaxOfSlices(module.pool)  # type: ignore[assignment]

    def forward(
        self, image: Tensor, behavior: Tensor, mouse_index: Tensor, d_feature_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = image, behavior = _leaf(image), _leaf(behavior)
        with torch.enable_grad():
            feature_map = self.core(image, behavior, mouse_index).permute(0, 2, 3, 1)
        d_image, d_behavior = vector_jacobian([feature_map], inputs, [d_feature_map])
        return d_image, d_behavior


class _MaxOfSlices(nn.Module):
    """A max pool of non-negative values as a maximum of shifted slices, whose backward pass ONNX can express.

    Among equal zeros the gradient is split differently than in torch, but the ReLU before the pool blocks it.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = int(pool.kernel_size), int(pool.stride), int(pool.padding)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = ((size + 2 * self.padding - self.kernel) // self.stride + 1 for size in x.shape[2:])
        x = F.pad(x, [self.padding] * 4)
        result: Tensor | None = None
        for i in range(self.kernel):
            for j in range(self.kernel):
                part = x[:, :, i : i + (rows - 1) * self.stride + 1 : self.stride]
                part = part[..., j : j + (columns - 1) * self.stride + 1 : self.stride]
                result = part if result is None else torch.maximum(result, part)
        assert result is not None
        return result


class _KnownHeads(torch.autograd.Function):
    """Folded attention with a known result: only its backward pass computes anything.

    With A = softmax(Q T^T) and H = A T, for one head's queries Q and the tokens T:
        dS = A * (dH T^T - rowsum(dH * H)),   dQ = dS T,   dT = A^T dH + dS^T Q

    Heads are computed one after another, so that A and dS, 11 MB each at the published size, stay in the processor's
    cache. The row sums are one more column of a matrix product, and dT is computed transposed, which avoids transposing
    the large factor.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, tokens: Tensor, heads: Tensor, n_heads: int) -> Tensor:
        ctx.save_for_backward(queries, tokens, heads)
        ctx.n_heads = n_heads
        return heads.view_as(heads)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, tokens, heads = ctx.saved_tensors  # (B, L' h, D), (B, L, D), (B, L' h, D)
        columns = tokens.transpose(1, 2)  # (B, D, L)
        columns_and_ones = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
        row_sums = (d_outputs[0] * heads).sum(-1, keepdim=True)
        d_heads = torch.cat([d_outputs[0], -row_sums], dim=-1)  # (B, L' h, D + 1)
        d_queries: list[Tensor] = []
        d_columns = torch.zeros_like(columns)
        for i in range(ctx.n_heads):
            q, d_head = (x.unflatten(1, (-1, ctx.n_heads))[:, :, i] for x in (queries, d_heads))
            weights = (q @ columns).softmax(dim=-1)  # (B, L', L)
            d_scores = weights * (d_head @ columns_and_ones)
            d_queries.append(d_scores @ tokens)
            d_columns = d_columns + d_head[..., :-1].transpose(1, 2) @ weights + q.transpose(1, 2) @ d_scores
        return torch.stack(d_queries, dim=2).flatten(1, 2), d_columns.transpose(1, 2), None, None


class FoldedViTGradient(nn.Module):
    """A folded core's inputs, d_feature_map and tape -> d_core_image, d_core_behavior."""

    def __init__(self, folded: FoldedViT) -> None:
        super().__init__()
        self.folded = folded

    def forward(
        self, image: Tensor, behavior: Tensor, mouse_index: Tensor, at: Tensor, d_feature_map: Tensor, *tape: Tensor
    ) -> tuple[Tensor, Tensor]:
        folded = self.folded
        n_blocks = len(folded.mlps)
        d_x = take_rows(d_feature_map.flatten(1, 2), at)  # (B, R, D)
        d_latents: list[Tensor] = []
        for i in reversed(range(n_blocks)):
            x, heads = _leaf(tape[2 * i]), tape[2 * i + 1]
            with torch.enable_grad():
                y = self._block(i, x, heads, at)
            (d_x,) = vector_jacobian([y], [x], [d_x])  # (B, 1 + L, D)
            d_latents.insert(0, d_x.sum(1))
        image, behavior = _leaf(image), _leaf(behavior)
        with torch.enable_grad():
            tokens = folded.tokenizer(image)
            latents = [folded.transformer.behavior_latent(i, behavior, mouse_index) for i in range(n_blocks)]
        pairs = [(latent[:, 0], d) for latent, d in zip(latents, d_latents, strict=True) if latent is not None]
        (d_image,) = vector_jacobian([tokens], [image], [d_x])
        (d_behavior,) = vector_jacobian([one for one, _ in pairs], [behavior], [d for _, d in pairs])
        return d_image, d_behavior

    def _block(self, i: int, x: Tensor, heads: Tensor, at: Tensor) -> Tensor:
        folded = self.folded
        attention = folded.folded_attentions()[i]
        tokens = folded.normalize(x)
        selected = (lambda x: folded.selected(x, at)) if i == len(folded.mlps) - 1 else (lambda x: x)
        heads = _KnownHeads.apply(attention.queries(selected(tokens)), tokens, heads, attention.n_heads)
        return folded.finish(i, selected(x), heads)


class StemGradient(nn.Module):
    """Raw inputs and the derivatives with respect to the core's inputs -> d_image, d_behavior, d_pupil_center.

    The crop and the bilinear resize treat rows and columns separately: the core's image is R @ image @ C^T, and d_image
    is R^T @ d_core_image @ C. The crop takes the nearest pixel, so no gradient reaches the inputs of an image shifter.
    """

    rows: Tensor
    columns: Tensor
    resize_rows: Tensor
    resize_columns: Tensor

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        standardizer = twin.standardizers[mouse_id]
        assert isinstance(standardizer, Standardizer)
        self.standardizer = standardizer
        self.joins_pupil = twin.config.b_mlp.inputs == "behavior_and_pupil_center"
        self.image_shape, self.n_behavior = twin.mice[mouse_id].image_shape, twin.n_behavior
        cropper = twin.cropper
        self.grayscale, self.append_behavior = cropper.grayscale, cropper.append_behavior
        self.samples, self.uses_behavior = cropper.samples, cropper.uses_behavior
        self.shifter = None if cropper.shifters is None else cropper.shifters[mouse_id]
        self.register_buffer("columns", cropper.grid[0, 0, :, 0].clone())  # x in [-1, 1]
        self.register_buffer("rows", cropper.grid[0, :, 0, 1].clone())
        size = cropper.size or (len(self.rows), len(self.columns))
        self.register_buffer("resize_rows", _resize_matrix(len(self.rows), size[0]))
        self.register_buffer("resize_columns", _resize_matrix(len(self.columns), size[1]))

    def forward(
        self,
        image: Tensor,
        behavior: Tensor,
        pupil_center: Tensor,
        d_core_image: Tensor,
        d_core_behavior: Tensor,
        d_core_pupil_center: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        K = self.n_behavior
        d_behavior, d_pupil_center = d_core_behavior[:, :K], d_core_pupil_center
        if self.joins_pupil:
            d_pupil_center = d_pupil_center + d_core_behavior[:, K:]
        if self.append_behavior:
            d_behavior = d_behavior + d_core_image[:, -K:].sum((2, 3))
            d_core_image = d_core_image[:, :-K]
        d_image = self.resize_rows.T @ d_core_image @ self.resize_columns
        if self.samples:
            _, behavior, pupil_center = self.standardizer(image, behavior, pupil_center)
            rows, columns = self._pixels(behavior, pupil_center)
            d_image = rows.transpose(-1, -2) @ d_image @ columns
        if self.grayscale:
            channels = self.image_shape[0]
            d_image = d_image.expand(-1, channels, -1, -1) / channels
        return (
            d_image / self.standardizer.image_std,
            d_behavior / self.standardizer.behavior_std,
            d_pupil_center / self.standardizer.pupil_std,
        )

    def _pixels(self, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and columns of the image that the crop takes: (B or 1, 1, h, H) and (B or 1, 1, w, W)."""
        rows, columns = self.rows[None], self.columns[None]  # (1, h) and (1, w)
        if self.shifter is not None:
            shift = self.shifter(torch.cat([behavior, pupil_center], dim=1) if self.uses_behavior else pupil_center)
            rows, columns = rows + shift[:, 1:], columns + shift[:, :1]
        return _picks(rows, self.image_shape[1]), _picks(columns, self.image_shape[2])


def _picks(positions: Tensor, size: int) -> Tensor:
    """Positions in [-1, 1] (B, n) -> rows that select the nearest pixel, or zero outside: (B, 1, n, size)."""
    nearest = ((positions + 1) * ((size - 1) / 2)).round()
    pixels = torch.arange(size, device=positions.device)
    return (nearest[:, None, :, None] == pixels).to(positions.dtype)


def _resize_matrix(before: int, after: int) -> Tensor:
    """(after, before): bilinear interpolation along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, size=(after, before), mode="bilinear", align_corners=False, antialias=False)[0, 0]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
