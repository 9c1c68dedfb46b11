"""Transformer blocks with behaviour: B-MLP, attention and MLP (paper, sections 4.1 and 4.1.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import BehaviorMLPConfig, CCTConfig, ViTConfig
from training.models.attention import Attention
from training.models.dropout import Dropout

__all__ = ["MLP", "BehaviorMLP", "Block", "Transformer"]


class BehaviorMLP(nn.Module):
    """B-MLP: two linear layers, each followed by tanh, (B, K) -> (B, D).

    The first axis of the weights is that of mice; its length is 1 if all mice share one set of weights.
    """

    def __init__(self, *, n_inputs: int, hidden: int, dim: int, n_mice: int, bias: bool) -> None:
        super().__init__()
        self.hidden_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(n_mice, hidden, n_inputs), std=0.02))
        self.output_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(n_mice, dim, hidden), std=0.02))
        self.hidden_bias = nn.Parameter(torch.zeros(n_mice, hidden)) if bias else None
        self.output_bias = nn.Parameter(torch.zeros(n_mice, dim)) if bias else None

    def forward(self, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        hidden = torch.tanh(_linear_per_mouse(behavior, self.hidden_weight, self.hidden_bias, mouse_index))
        return torch.tanh(_linear_per_mouse(hidden, self.output_weight, self.output_bias, mouse_index))


def _linear_per_mouse(x: Tensor, weight: Tensor, bias: Tensor | None, mouse_index: Tensor) -> Tensor:
    if weight.shape[0] == 1:
        return F.linear(x, weight[0], None if bias is None else bias[0])
    y = (weight[mouse_index] @ x[:, :, None])[:, :, 0]  # (B, out, in) @ (B, in, 1) -> (B, out)
    return y if bias is None else y + bias[mouse_index]


class MLP(nn.Module):
    """The pre-LayerNorm feed-forward branch of a block, (B, L, D) -> (B, L, D)."""

    def __init__(self, *, dim: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm(x))))))


class StochasticDepth(nn.Module):
    """Drops the residual branch of whole samples at random (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.keep = 1.0 - rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.keep == 1.0:
            return branch
        kept = torch.empty(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(self.keep)
        return branch * (kept / self.keep)


class Block(nn.Module):
    """Attention and MLP with residual connections: (B, L, D) -> (B, L, D)."""

    def __init__(self, *, attention: Attention, mlp: MLP, stochastic_depth: float) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.stochastic_depth = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.attention(x))
        return x + self.stochastic_depth(self.mlp(x))

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, weights = self.attention.with_weights(x)
        x = x + self.stochastic_depth(attended)
        return x + self.stochastic_depth(self.mlp(x)), weights


class Transformer(nn.Module):
    """A stack of blocks, with behaviour added to every token before them: (B, L, D) -> (B, L, D).

    Args:
        inner, scale, locality: of the attention, see `Attention`.
        bias: of the linear layers.
        stochastic_depth: one rate per block.
        b_mlp: how behaviour enters, or None.
        n_behavior: K, the number of inputs of the B-MLP.
        n_mice: the number of mice, used if `b_mlp.mice` is "per_mouse".
    """

    def __init__(
        self,
        *,
        config: ViTConfig | CCTConfig,
        inner: int,
        scale: float,
        bias: bool,
        locality: bool,
        stochastic_depth: list[float],
        b_mlp: BehaviorMLPConfig | None,
        n_behavior: int,
        n_mice: int,
    ) -> None:
        super().__init__()
        dim, n_heads, dropout = config.dim, config.n_heads, config.block_dropout
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(
                    dim=dim, n_heads=n_heads, inner=inner, scale=scale, bias=bias, locality=locality, dropout=dropout
                ),
                mlp=MLP(dim=dim, hidden=config.mlp_dim, bias=bias, dropout=dropout),
                stochastic_depth=rate,
            )
            for rate in stochastic_depth
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.behavior_mlps: nn.ModuleList | None = None
        if b_mlp is not None:
            self.behavior_mlps = nn.ModuleList(
                BehaviorMLP(
                    n_inputs=n_behavior,
                    hidden=dim // 2 if b_mlp.hidden == "half" else dim,
                    dim=dim,
                    n_mice=n_mice if b_mlp.mice == "per_mouse" else 1,
                    bias=bias,
                )
                for _ in range(len(self.blocks) if b_mlp.blocks == "each" else 1)
            )
            self.tied = b_mlp.blocks == "tied"

    def ordered_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def behavior_latent(self, block: int, behavior: Tensor, mouse_index: Tensor) -> Tensor | None:
        """What behaviour adds to every token before a block, (B, 1, D); None if the block has no B-MLP."""
        if self.behavior_mlps is None:
            return None
        which = 0 if self.tied else block
        if which >= len(self.behavior_mlps):
            return None
        b_mlp = self.behavior_mlps[which]
        assert isinstance(b_mlp, BehaviorMLP)
        return b_mlp.forward(behavior, mouse_index)[:, None]

    def forward(self, x: Tensor, behavior: Tensor, mouse_index: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            latent = self.behavior_latent(i, behavior, mouse_index)
            x = block(x if latent is None else x + latent)
        return x

    def with_weights(self, x: Tensor, behavior: Tensor, mouse_index: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and every block's attention weights (B, h, L, L)."""
        weights = []
        for i, block in enumerate(self.ordered_blocks()):
            latent = self.behavior_latent(i, behavior, mouse_index)
            x, w = block.with_weights(x if latent is None else x + latent)
            weights.append(w)
        return x, weights
