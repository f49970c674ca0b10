# SPDX-License-Identifier: Apache-2.0
"""Softmax (quadratic) attention over all positions, and its checkerboard form, on the backend of the day.

No backend ever holds the scores of all queries with all keys: extra memory is a few maps, in both directions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlic_fast.compute.precision import no_autocast
from mlic_fast.errors import ConfigError
from mlic_fast.kernels import softmax_attention as kernels
from mlic_fast.kernels.softmax_attention_backward import backward_ref
from mlic_fast.ops.attention_maps import check_even, check_maps
from mlic_fast.ops.operators import operator


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attend to all positions: three maps [B, D, h, w] of one shape → [B, D, h, w], contiguous.

    heads: number of contiguous groups of channels that attend on their own; divides D. Float32 or
    float64 (kernels: float32), any strides. Differentiable in all three maps.
    Raises ConfigError for shapes or types, DeviceError for maps on several devices, BackendError
    for a backend that cannot run. Formula: see mlic_fast.kernels.softmax_attention.
    """
    check_maps("softmax_attention", queries, keys, values, heads)
    out: Tensor = _softmax_attention(queries, keys, values, heads, False, 0)
    return out


def checkerboard_softmax_attention(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, radius: int = 2
) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors; the result is zero at anchors.

    radius: keys at most so many rows and columns from the query have a score of −100, not their own; 0: none has.
    Shapes, types and errors as for `softmax_attention`; h and w are even, radius is not negative. What the maps hold at
    positions that are not read has no influence, and no gradient.
    """
    check_maps("checkerboard_softmax_attention", queries, keys, values, heads)
    check_even("checkerboard_softmax_attention", queries)
    if radius < 0:
        raise ConfigError(f"checkerboard_softmax_attention: a radius of {radius}; it is 0 or more")
    out: Tensor = _softmax_attention(queries, keys, values, heads, True, radius)
    return out


@operator("softmax_attention")
def _softmax_attention(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> Tensor:
    with no_autocast(queries.device):
        if checkerboard:
            return kernels.checkerboard_softmax_attention_ref(queries, keys, values, heads, radius)
        return kernels.softmax_attention_ref(queries, keys, values, heads)


@_softmax_attention.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int) -> Tensor:
    return queries.new_empty(queries.shape)


@operator("softmax_attention_backward")
def _softmax_attention_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(queries.device):
        return backward_ref(grad, queries, keys, values, heads, checkerboard, radius)


@_softmax_attention_backward.register_fake
def _(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape), queries.new_empty(queries.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads, ctx.checkerboard, ctx.radius = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _softmax_attention_backward(grad, *ctx.saved_tensors, ctx.heads, ctx.checkerboard, ctx.radius)
    return (*gradients, None, None, None)


_softmax_attention.register_autograd(_backward, setup_context=_setup_context)
