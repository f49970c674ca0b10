# SPDX-License-Identifier: Apache-2.0
"""Convolution of GELU(x): the two operators' results and gradients to the bit, with x alone kept for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute.backend import use_backend
from mlic_fast.ops.conv_of_gelu import conv3x3_of_gelu
from mlic_fast.train.layers import TrainedConv

Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.gelu(x), weight, bias, padding=1)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight and bias."""
    random = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=random).to(dtype) for shape in ((2, 24, 9, 7), (16, 24, 3, 3), (16,))]


def results(how: Convolution, tensors: list[Tensor], autocast: bool, last: bool, fixed: int | None) -> list[Tensor]:
    """The result and the gradients of what is not fixed."""
    leaves = [t.clone().requires_grad_(i != fixed) for i, t in enumerate(tensors)]
    leaves[0].data = leaves[0].data.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        y = how(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], grad)]


@pytest.mark.parametrize("fixed", [None, 0, 1, 2], ids=["all", "x fixed", "weight fixed", "bias fixed"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["plainly", "autocast"])
def test_is_the_two_operators_to_the_bit(autocast: bool, dtype: torch.dtype, last: bool, fixed: int | None) -> None:
    tensors = inputs(dtype)
    if autocast:  # parameters stay wide
        tensors[1:] = [t.float() for t in tensors[1:]]
    found, expected = (results(how, tensors, autocast, last, fixed) for how in (conv3x3_of_gelu, plain))
    assert found[0].dtype == (torch.bfloat16 if autocast else dtype)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def test_without_a_bias() -> None:
    found, expected = (results(how, inputs()[:2], False, False, None) for how in (conv3x3_of_gelu, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_by_differences() -> None:
    random = torch.Generator().manual_seed(5)
    shapes = (1, 2, 4, 3), (3, 2, 3, 3), (3,)
    leaves = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(conv3x3_of_gelu, leaves)


def test_keeps_x_alone() -> None:
    """Of a block's two maps, counted as autograd saves them; the plain path keeps both, as PyTorch does."""
    x = torch.randn(2, 24, 9, 7).requires_grad_()
    layer = TrainedConv(24, 16, 3, padding=1)

    def maps_kept() -> int:
        kept: list[int] = []

        def keep(t: Tensor) -> Tensor:
            if t.shape == x.shape:
                kept.append(t.data_ptr())
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            layer.of_gelu(x)
        return len(set(kept))

    assert maps_kept() == 1
    with use_backend("torch"):
        assert maps_kept() == 2
