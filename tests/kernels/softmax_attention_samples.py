# SPDX-License-Identifier: Apache-2.0
"""What the tests of softmax attention share: its two forms, inputs, and results with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mlic_fast.kernels import softmax_attention as kernels
from torch import Tensor

from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.ops import softmax_attention as ops

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton has packages for Linux only")
on_triton = pytest.param("triton", marks=needs_triton)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Attention = Callable[..., Tensor]
# the operation and its twin
FORMS: dict[str, tuple[Attention, Attention]] = {
    "global": (ops.softmax_attention, kernels.softmax_attention_ref),
    "checkerboard": (ops.checkerboard_softmax_attention, kernels.checkerboard_softmax_attention_ref),
}


def place_of(name: str) -> str:
    """Where the tensors of a runner lie."""
    return DEVICE if name == "triton" else "cpu"


def maps(batch: int, channels: int, height: int, width: int, name: str = "cpu") -> list[Tensor]:
    """Queries and keys of a spread that makes softmaxes uneven, values and a gradient; [B, D, h, w] each."""
    queries, keys, values, grad = torch.randn(4, batch, channels, height, width).to(place_of(name)).unbind()
    return [2 * queries, 2 * keys, values, grad]


def results(attention: Attention, inputs: list[Tensor], heads: int, dtype: torch.dtype) -> list[Tensor]:
    """The result and the three gradients."""
    *three, grad = (x.to(dtype) for x in inputs)
    three = [x.detach().requires_grad_() for x in three]
    out = attention(*three, heads)
    return [out.detach(), *torch.autograd.grad(out, three, grad)]
