# SPDX-License-Identifier: Apache-2.0
"""Linear attention over all positions, and its checkerboard form, on the backend of the day.

On `torch` and `cpu` the twins run, with autograd's own gradients. There is no C++ kernel: on a
CPU the attention is a few hundredths of the time of the context around it (bench/bench_linear_attention.py),
the twin keeps for its gradients as many maps as any kernel would, and its extra memory is a few times its
result, which is small. On `triton` both directions are kernels, registered as the operators
mlic_fast::linear_attention and mlic_fast::linear_attention_backward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlic_fast.compute.backend import choose
from mlic_fast.kernels import linear_attention as kernels
from mlic_fast.kernels.linear_attention_backward import backward
from mlic_fast.ops.attention_maps import check_even, check_kernel_dtype, check_maps
from mlic_fast.ops.operators import operator


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attend to all positions: three maps [B, D, h, w] of one shape → [B, D, h, w], contiguous.

    heads: number of contiguous groups of channels that attend on their own; divides D. Float32 or
    float64 (kernels: float32), any strides. Differentiable in all three maps.
    Raises ConfigError for shapes or types, DeviceError for maps on several devices, BackendError
    for a backend that cannot run. Formula: see mlic_fast.kernels.linear_attention.
    """
    check_maps("linear_attention", queries, keys, values, heads)
    if choose(queries) == "triton":
        check_kernel_dtype("linear_attention", queries, "Triton's")
        out: Tensor = _linear_attention(queries, keys, values, heads, False)[0]
    else:
        out = kernels.linear_attention_ref(queries, keys, values, heads)
    return out


def checkerboard_linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors; the result is zero at anchors.

    Shapes, types and errors as for `linear_attention`; h and w are even. What the maps hold at positions
    that are not read has no influence, and no gradient.
    """
    check_maps("checkerboard_linear_attention", queries, keys, values, heads)
    check_even("checkerboard_linear_attention", queries)
    if choose(queries) == "triton":
        check_kernel_dtype("checkerboard_linear_attention", queries, "Triton's")
        out: Tensor = _linear_attention(queries, keys, values, heads, True)[0]
    else:
        out = kernels.checkerboard_linear_attention_ref(queries, keys, values, heads)
    return out


@operator("linear_attention")
def _linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = kernels.forward(queries, keys, values, heads, checkerboard)
    return result


@_linear_attention.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = queries.shape[:2]
    return (
        queries.new_empty(queries.shape),
        queries.new_empty(batch, channels, 2),
        queries.new_empty(batch, channels, channels // heads),
    )


@operator("linear_attention_backward")
def _linear_attention_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    statistics: Tensor,
    context: Tensor,
    heads: int,
    checkerboard: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    maps = (grad, queries, keys, values)
    result: tuple[Tensor, Tensor, Tensor] = backward(*maps, statistics, context, heads, checkerboard)
    return result


@_linear_attention_backward.register_fake
def _(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    statistics: Tensor,
    context: Tensor,
    heads: int,
    checkerboard: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape), queries.new_empty(queries.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, values, ctx.heads, ctx.checkerboard = inputs
    _, statistics, context = output
    ctx.mark_non_differentiable(statistics, context)
    ctx.save_for_backward(queries, keys, values, statistics, context)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
    gradients = _linear_attention_backward(grad, *ctx.saved_tensors, ctx.heads, ctx.checkerboard)
    return (*gradients, None, None)


_linear_attention.register_autograd(_backward, setup_context=_setup_context)
