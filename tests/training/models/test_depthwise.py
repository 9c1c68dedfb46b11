"""The convolution per channel: torch's own output and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.models.depthwise import DepthwiseConv2d


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (7, 3), (5, 0), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_torch(kernel: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, kernel, padding=padding, bias=bias).double()
    theirs = nn.Conv2d(6, 6, kernel, padding=padding, groups=6, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6, 9, 11, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        output = module(given)
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append([output, given.grad, *(parameter.grad for parameter in module.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    module = DepthwiseConv2d(3, 3, padding=1, bias=True).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def test_under_autocast_it_computes_in_bfloat16() -> None:
    torch.manual_seed(0)
    module = DepthwiseConv2d(8, 7, padding=3, bias=True)
    x = torch.randn(4, 8, 12, 14, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    rounded = module.weight.grad.clone()
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(
        rounded, module.weight.grad, rtol=0.05, atol=0.05 * float(module.weight.grad.abs().max())
    )


def test_inputs_that_need_no_gradient_get_none() -> None:
    module = DepthwiseConv2d(3, 3, padding=1, bias=False)
    module.weight.requires_grad_(False)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    module(x).sum().backward()
    assert module.weight.grad is None
    assert x.grad is not None
