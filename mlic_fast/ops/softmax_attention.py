# SPDX-License-Identifier: Apache-2.0
"""Softmax (quadratic) attention over all positions, and its checkerboard form, on the backend of the day.

No backend ever holds the scores of all queries with all keys: extra memory is a few maps, in both directions. On
`cpu` a C++ kernel computes the result, and the plain twin the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute.precision import no_autocast
from mlic_fast.errors import BackendError, ConfigError
from mlic_fast.kernels import softmax_attention as kernels
from mlic_fast.kernels.softmax_attention_backward import backward, backward_ref
from mlic_fast.ops.attention_maps import check_even, check_kernel_dtype, check_maps
from mlic_fast.ops.operators import operator


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attend to all positions: three maps [B, D, h, w] of one shape → [B, D, h, w], contiguous.

    heads: number of contiguous groups of channels that attend on their own; divides D. Float32 or
    float64 (kernels: float32), any strides. Differentiable in all three maps.
    Raises ConfigError for shapes or types, DeviceError for maps on several devices, BackendError
    for a backend that cannot run. Formula: see mlic_fast.kernels.softmax_attention.
    """
    check_maps("softmax_attention", queries, keys, values, heads)
    return _run("softmax_attention", queries, keys, values, heads, False, 0)


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
    reach = min(radius, max(queries.shape[2:]))
    return _run("checkerboard_softmax_attention", queries, keys, values, heads, True, reach)


def _run(
    name: str, queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> Tensor:
    chosen = backend.choose(queries)
    if chosen != "torch":
        check_kernel_dtype(name, queries, "Triton's" if chosen == "triton" else "C++")
    out: Tensor = _softmax_attention(queries, keys, values, heads, checkerboard, radius, chosen)[0]
    return out


@operator("softmax_attention")
def _softmax_attention(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int, chosen: str
) -> tuple[Tensor, Tensor]:
    """The result, and for the gradients on `triton` the queries' statistics."""
    with no_autocast(queries.device):
        if chosen == "triton":
            return kernels.forward(queries, keys, values, heads, checkerboard, radius)
        if chosen == "cpu":
            out = _on_cpu(queries, keys, values, heads, checkerboard, radius)
        elif checkerboard:
            out = kernels.checkerboard_softmax_attention_ref(queries, keys, values, heads, radius)
        else:
            out = kernels.softmax_attention_ref(queries, keys, values, heads)
    return out, queries.new_empty(0)


def _on_cpu(queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int) -> Tensor:
    for x in (queries, keys, values):
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape != queries.shape:
            raise BackendError(
                f"softmax_attention: the kernel takes float32 maps of one shape on the CPU, not {x.dtype} "
                f"{list(x.shape)} on {x.device}"
            )
    out = torch.empty(queries.shape, dtype=torch.float32)
    backend.cpu_kernels.softmax_attention(
        *((x.data_ptr(), *x.stride()) for x in (queries, keys, values)),
        out.data_ptr(),
        tuple(out.shape),
        heads,
        checkerboard,
        radius,
        torch.get_num_threads(),
    )
    return out


@_softmax_attention.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int, chosen: str
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = queries.shape
    count = height * width // 2 if checkerboard else height * width
    statistics = (batch, heads, count, 2) if chosen == "triton" else (0,)
    return queries.new_empty(queries.shape), queries.new_empty(statistics)


@operator("softmax_attention_backward")
def _softmax_attention_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    statistics: Tensor,
    heads: int,
    checkerboard: bool,
    radius: int,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(queries.device):
        if chosen == "triton":
            return backward(grad, queries, keys, values, out, statistics, heads, checkerboard, radius)
        return backward_ref(grad, queries, keys, values, out, heads, checkerboard, radius)


@_softmax_attention_backward.register_fake
def _(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    statistics: Tensor,
    heads: int,
    checkerboard: bool,
    radius: int,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape), queries.new_empty(queries.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.heads, ctx.checkerboard, ctx.radius, ctx.chosen = inputs
    out, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(*tensors, out, statistics)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    options = (ctx.heads, ctx.checkerboard, ctx.radius, ctx.chosen)
    return (*_softmax_attention_backward(grad, *ctx.saved_tensors, *options), None, None, None, None)


_softmax_attention.register_autograd(_backward, setup_context=_setup_context)
