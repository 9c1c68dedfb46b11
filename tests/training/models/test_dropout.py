"""Dropout from random bits, and attention with it: the distribution is dropout's, and the gradient is the formula's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from training.models import dropout, dropout_attention
from training.models.attention import Attention
from training.models.dropout import Dropout, RandomBits, keep_probability

RATE = 0.2544  # Table A.2
Tensors = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=["weights kept", "weights computed again"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 rows, so that several and a shorter one are needed; both ways through the backward pass."""
    monkeypatch.setattr(dropout_attention, "BLOCK_ROWS", 8)
    monkeypatch.setattr(dropout_attention, "MEMORY_SHARE", 1.0 if request.param == "weights kept" else 0.0)


def qkv(groups: int = 3, rows: int = 28, keys: int = 14, width: int = 5) -> Tensors:
    torch.manual_seed(0)
    q, k, v = (torch.randn(groups, n, width, dtype=torch.float64) for n in (rows, keys, keys))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def kept_by(seed: int, q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """Which weights a call keeps, (G, M, L): with the identity for values, its output is the weights themselves."""
    torch.manual_seed(seed)
    identity = torch.eye(k.shape[1], dtype=q.dtype).expand(k.shape[0], -1, -1)
    with torch.no_grad():
        return (dropout_attention.dropout_attention(q, k, identity, rate=RATE, **options) != 0).to(q.dtype)


def plain(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, rows_per_token: int = 0) -> Tensor:
    scores = q @ k.transpose(1, 2)
    if rows_per_token:
        itself = torch.arange(q.shape[1])[:, None] // rows_per_token == torch.arange(k.shape[1])
        scores = scores.masked_fill(itself, -math.inf)
    return (scores.softmax(-1) * kept / keep_probability(RATE)) @ v


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("rows_per_token", [0, 2])
def test_output_and_gradients_are_those_of_the_formula_with_the_same_mask(rows_per_token: int) -> None:
    q, k, v = qkv()
    kept = kept_by(4, q, k, rows_per_token=rows_per_token)
    assert 0.6 < float(kept.mean()) < 0.85
    torch.manual_seed(4)
    output = dropout_attention.dropout_attention(q, k, v, rate=RATE, rows_per_token=rows_per_token)
    expected = plain(q, k, v, kept, rows_per_token)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(output)
    found = torch.autograd.grad(output, (q, k, v), upstream)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_slopes() -> None:
    q, k, v = (x.detach()[:1, :6].requires_grad_() for x in qkv())

    def seeded(*inputs: Tensor) -> Tensor:
        torch.manual_seed(1)
        return dropout_attention.dropout_attention(*inputs, rate=RATE, rows_per_token=1)

    assert torch.autograd.gradcheck(seeded, (q, k, v))


@pytest.mark.parametrize("rate", [RATE, 0.0229, 0.5, 0.9])
def test_the_rate_of_kept_elements_is_within_binomial_bounds(rate: float) -> None:
    n = 4_000_000
    kept = RandomBits(3).keep(rate, torch.empty(n))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(keep_probability(rate) - (1 - rate)) <= 2**-17
    bound = 4.5 * math.sqrt(rate * (1 - rate) * n)
    assert abs(float(kept.double().sum()) - (1 - rate) * n) < bound + 2**-17 * n


def test_masks_are_independent_over_keys_queries_heads_samples_and_steps() -> None:
    samples, heads, tokens = 4, 3, 60
    q, k = torch.zeros(samples, tokens * heads, 4), torch.zeros(samples, tokens, 4)
    first, second = (kept_by(seed, q, k).view(samples, tokens, heads, tokens) for seed in (0, 1))
    centred = first - first.mean()
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "keys": (centred[..., 1:], centred[..., :-1]),
        "keys four apart": (centred[..., 4:], centred[..., :-4]),  # four decisions come from one word
        "heads": (centred[:, :, 1:], centred[:, :, :-1]),
        "queries": (centred[:, 1:], centred[:, :-1]),
        "samples": (centred[1:], centred[:-1]),
        "steps": (centred, second - second.mean()),
    }
    variance = float(centred.var())
    for name, (a, b) in pairs.items():
        assert abs(float((a * b).mean())) / variance < 4.5 / math.sqrt(a.numel()), name
    for axes in ((0, 1, 2), (0, 1, 3), (1, 2, 3)):  # no key, head or sample is dropped more often than others
        rates = first.mean(axes)
        n = first.numel() / rates.numel()
        assert float((rates - keep_probability(RATE)).abs().max()) < 4.5 * math.sqrt(RATE * (1 - RATE) / n)


def test_the_expected_output_is_that_without_dropout() -> None:
    q, k, v = (x.detach() for x in qkv())
    torch.manual_seed(7)
    outputs = torch.stack([dropout_attention.dropout_attention(q, k, v, rate=RATE) for _ in range(2000)])
    expected = (q @ k.transpose(1, 2)).softmax(-1) @ v
    z = (outputs.mean(0) - expected) / (outputs.std(0) / math.sqrt(len(outputs)))
    assert float(z.abs().max()) < 4.7  # of 420 numbers
    assert float(z.square().mean()) == pytest.approx(1, abs=0.3)


def attention(kind: str, rate: float) -> Attention:
    torch.manual_seed(2)
    inner = 3 if kind == "narrow" else 2 * 6
    module = Attention(
        dim=6,
        n_heads=3 if kind == "narrow" else 2,
        inner=inner,
        scale=0.4,
        bias=True,
        locality=kind == "locality",
        dropout=rate,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module.double()


@pytest.mark.parametrize("kind", ["wide", "locality", "narrow"])
def test_attention_with_nothing_dropped_is_attention(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values folded away, in training, change neither the output nor any weight's gradient."""

    def all_kept(self: RandomBits, rate: float, out: Tensor) -> Tensor:
        return out.fill_(1)

    monkeypatch.setattr(RandomBits, "keep", all_kept)
    for module in (dropout, dropout_attention):
        monkeypatch.setattr(module, "keep_probability", lambda rate: 1.0)
    monkeypatch.setattr(dropout_attention, "BLOCK_ROWS", 8)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    upstream = torch.randn_like(x)
    found = []
    for rate, forward in ((RATE, Attention.forward), (0.0, lambda module, x: module.with_weights(x)[0])):
        module = attention(kind, rate).train()
        inputs = x.clone().requires_grad_()
        output = forward(module, inputs)
        output.backward(upstream)
        found.append([output, inputs.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["wide", "locality", "narrow"])
def test_attention_weights_are_dropped_in_training_alone(kind: str) -> None:
    module, x = attention(kind, 0.5).train(), torch.randn(2, 9, 6, dtype=torch.float64)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(module(x), module.with_weights(x)[0])


def forwards() -> dict[str, Callable[[Tensor], Tensor]]:
    return {"attention": attention("wide", RATE).train().float(), "dropout": Dropout(RATE).train()}


@pytest.mark.parametrize("name", ["attention", "dropout"])
def test_the_seed_of_torch_rules_the_masks(name: str) -> None:
    module, x = forwards()[name], torch.randn(2, 9, 6)

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return module(x)

    assert torch.equal(seeded(5), seeded(5))
    assert not torch.equal(seeded(5), seeded(6))


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    module = Dropout(RATE).train()
    x = torch.rand(300, 700) + 1
    dropped = module(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / keep_probability(RATE))
    assert module.eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_half_precision_is_the_same_function_with_the_same_mask() -> None:
    module, x = attention("wide", RATE).train().float(), torch.randn(2, 40, 6)
    found = []
    for half in (False, True):
        module.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = module(x)
        output.float().square().sum().backward()
        found.append([output.detach().float(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    for exact, half_ in zip(*found, strict=True):
        assert half_.dtype == torch.float32
        assert float((half_ - exact).norm() / exact.norm()) < 0.03
