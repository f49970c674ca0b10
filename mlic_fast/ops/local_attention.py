# SPDX-License-Identifier: Apache-2.0
"""Local window attention: one function for every backend, with its own backward pass."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, unpack
from mlic_fast.compute import backend
from mlic_fast.compute.precision import matmul, no_autocast
from mlic_fast.config import WINDOW
from mlic_fast.errors import BackendError, ConfigError
from mlic_fast.kernels import local_attention as kernels
from mlic_fast.kernels.local_attention import AREA, HEADS, local_attention_ref
from mlic_fast.kernels.local_attention_backward import local_attention_rows_backward
from mlic_fast.ops.operators import operator

# Floats that the backward pass keeps of the windows of a block of rows or pictures, in each of two tensors (8 MiB).
BLOCK_FLOATS = 2**21


def local_attention(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Attention in 5×5 windows, fusion convolution and projection at the non-anchors (row + column even).

    qkv: [B, 3C, h, w] with any strides, C and w even: queries, keys, values; channel c is element c // 2 of head c % 2.
    position_table: [81, 2], added to the scores by (query row − key row + 4)·9 + query column − key column + 4.
    fusion_weight, fusion_bias: [2C, C, 5, 5], [2C]; input channel head·C/2 + element.
    proj_weight, proj_bias: [2C, 2C], [2C].
    All float32; float64 on the torch backend.

    Returns [B, h, w/2, 2C] in coding order: column j of even rows is column 2j, of odd rows 2j + 1.
    Raises ConfigError for shapes that do not fit, BackendError for a dtype or device that the backend cannot take.
    Source: Local_i of the MLIC++ entropy model (arXiv 2307.15421).
    """
    parameters = (position_table, fusion_weight, fusion_bias, proj_weight, proj_bias)
    _check(qkv, *parameters)
    chosen = backend.choose(qkv)
    if chosen == "torch":
        return local_attention_ref(qkv, *parameters)
    if qkv.dtype != torch.float32:
        raise BackendError(f"local_attention: backend {chosen} computes in float32, not {qkv.dtype}; use backend torch")
    out: Tensor = _local_attention(qkv, *parameters, chosen)
    return out


def local_attention_map(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The same over the whole map, [B, h·w, 2C] in raster order, of use at the non-anchors only.

    mask: `shared_mask` of maps of this height and width, or None. Backend torch computes every position, as the
    official code does; the others leave zeros at the anchors.
    """
    parameters = (position_table, fusion_weight, fusion_bias, proj_weight, proj_bias)
    if backend.choose(qkv) == "torch":
        return kernels.local_attention_full(qkv, *parameters, mask)
    packed = local_attention(qkv, *parameters)  # [B, h, w/2, 2C]
    full = unpack(packed.permute(0, 3, 1, 2), Parity.NONANCHOR)
    return full.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def shared_mask(x: Tensor) -> Tensor | None:
    """What `local_attention_map` shares between maps of the height, width and device of x, if its backend needs any."""
    if backend.choose(x) == "torch":
        return kernels.window_mask(x.shape[2], x.shape[3], x)
    return None


def _check(qkv: Tensor, table: Tensor, fusion: Tensor, fusion_bias: Tensor, proj: Tensor, proj_bias: Tensor) -> None:
    if qkv.dim() != 4 or qkv.shape[1] % (3 * HEADS) or qkv.shape[3] % 2 or 0 in qkv.shape:
        raise ConfigError(f"local_attention: qkv must be [B, 3C, h, w] with C and w even, not {list(qkv.shape)}")
    C = qkv.shape[1] // 3
    wanted = (
        ("position_table", table, [(2 * WINDOW - 1) ** 2, HEADS]),
        ("fusion_weight", fusion, [2 * C, C, WINDOW, WINDOW]),
        ("fusion_bias", fusion_bias, [2 * C]),
        ("proj_weight", proj, [2 * C, 2 * C]),
        ("proj_bias", proj_bias, [2 * C]),
    )
    for name, tensor, shape in wanted:
        if list(tensor.shape) != shape:
            raise ConfigError(f"local_attention: for C={C}, {name} must be {shape}, not {list(tensor.shape)}")
        if tensor.dtype != qkv.dtype or tensor.device != qkv.device:
            raise BackendError(
                f"local_attention: {name} is {tensor.dtype} on {tensor.device}, qkv {qkv.dtype} on {qkv.device}; "
                "give both the same"
            )


@operator("local_attention")
def _local_attention(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    chosen: str,
) -> Tensor:
    parameters = [p.contiguous() for p in (position_table, fusion_weight, fusion_bias, proj_weight, proj_bias)]
    if chosen == "triton":
        with no_autocast(qkv.device):
            return kernels.local_attention(qkv, *parameters)
    out = _empty_output(qkv)
    table, *weights = parameters
    backend.cpu_kernels.local_attention(
        *_cpu_maps(qkv, table), *(_address(w) for w in weights), _address(out), torch.get_num_threads()
    )
    return out


def _empty_output(qkv: Tensor) -> Tensor:
    batch, channels, height, width = qkv.shape
    return torch.empty(batch, height, width // 2, 2 * channels // 3, dtype=qkv.dtype, device=qkv.device)


def _cpu_maps(qkv: Tensor, table: Tensor) -> tuple[int, list[int], list[int], int]:
    return _address(qkv, strided=True), list(qkv.shape), list(qkv.stride()), _address(table)


def _address(x: Tensor, dtype: torch.dtype = torch.float32, strided: bool = False) -> int:
    """Where x's numbers start, for C++, which takes them as they lie there. Raises BackendError if it may not."""
    if x.device.type != "cpu" or x.dtype != dtype or not (strided or x.is_contiguous()):
        raise BackendError(
            f"local_attention: backend cpu was given {x.dtype} on {x.device} with strides {list(x.stride())} "
            f"for shape {list(x.shape)}, and needs {dtype} on the CPU, contiguous; use backend torch"
        )
    return x.data_ptr()


@_local_attention.register_fake
def _(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    chosen: str,
) -> Tensor:
    return _empty_output(qkv)


@operator("local_attention_backward")
def _local_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six inputs. Windows are computed again for a few rows, or a few small pictures, at a time."""
    with no_autocast(qkv.device):
        return _gradients(grad, qkv, position_table, fusion_weight, fusion_bias, proj_weight, chosen)


def _gradients(
    grad: Tensor,
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, height, width = qkv.shape
    outputs, C = fusion_weight.shape[:2]
    fusion = fusion_weight.reshape(outputs, C * AREA)
    table = position_table.contiguous()
    qkv_grad = torch.zeros(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    table_grad = torch.zeros(batch, HEADS, table.shape[0], dtype=torch.float64, device=qkv.device)
    fusion_grad, fusion_bias_grad, proj_grad, proj_bias_grad = (
        torch.zeros(shape, dtype=qkv.dtype, device=qkv.device)
        for shape in (fusion.shape, fusion_bias.shape, proj_weight.shape, fusion_bias.shape)
    )
    # rows are chosen without regard to the batch: they decide the order in which qkv's gradients are summed
    row_floats = C * AREA * (width // 2)
    rows = max(1, min(height, BLOCK_FLOATS // row_floats))
    pictures = max(1, BLOCK_FLOATS // (rows * row_floats))
    for start, first in itertools.product(range(0, batch, pictures), range(0, height, rows)):
        some, last = slice(start, start + pictures), min(first + rows, height)
        attended = _attended_rows(qkv[some], table, first, last, chosen).flatten(2).flatten(0, 1)  # [25C, positions]
        out_grads = [g[first:last].permute(2, 0, 1).flatten(1).contiguous() for g in grad[some]]  # [2C, its positions]
        # picture by picture: the rounding of a matrix product depends on its size
        fused_grads = [matmul(proj_weight.t(), g) for g in out_grads]
        out_grad, fused_grad = torch.cat(out_grads, 1), torch.cat(fused_grads, 1)  # [2C, positions]
        fused = matmul(fusion, attended) + fusion_bias[:, None]
        proj_grad += matmul(out_grad, fused.t())
        proj_bias_grad += out_grad.sum(1)
        fusion_grad += matmul(fused_grad, attended.t())
        fusion_bias_grad += fused_grad.sum(1)
        del attended, fused  # before the next tensor of their size
        attended_grads = [matmul(fusion.t(), g) for g in fused_grads]  # [25C, its positions]
        attended_grad = attended_grads[0] if len(attended_grads) == 1 else torch.cat(attended_grads, 1)
        del attended_grads
        _attended_rows_backward(qkv[some], table, first, last, attended_grad, qkv_grad[some], table_grad[some], chosen)
    table_sum = table_grad.sum(0).t().to(table.dtype).contiguous()
    return qkv_grad, table_sum, fusion_grad.view(fusion_weight.shape), fusion_bias_grad, proj_grad, proj_bias_grad


def _attended_rows(qkv: Tensor, table: Tensor, first: int, last: int, chosen: str) -> Tensor:
    """[C, 25, B, last − first, w/2]: what the fusion reads for the windows of these rows."""
    batch, channels, _, width = qkv.shape
    attended = torch.empty(channels // 3, AREA, batch, last - first, width // 2, dtype=qkv.dtype, device=qkv.device)
    if chosen == "triton":
        kernels.local_attention_rows(qkv, table, first, last, attended)
    else:
        backend.cpu_kernels.local_attention_rows(
            *_cpu_maps(qkv, table), first, last, _address(attended), torch.get_num_threads()
        )
    return attended


def _attended_rows_backward(
    qkv: Tensor,
    table: Tensor,
    first: int,
    last: int,
    attended_grad: Tensor,
    qkv_grad: Tensor,
    table_grad: Tensor,
    chosen: str,
) -> None:
    """Add to qkv_grad [B, 3C, h, w] and table_grad [B, 2, 81] what follows from attended_grad [25C, positions]."""
    if chosen == "triton":
        local_attention_rows_backward(qkv, table, first, last, attended_grad, qkv_grad, table_grad)
        return
    backend.cpu_kernels.local_attention_rows_backward(
        *_cpu_maps(qkv, table),
        first,
        last,
        _address(attended_grad.contiguous()),
        _address(qkv_grad),
        _address(table_grad, torch.float64),
        torch.get_num_threads(),
    )


@_local_attention_backward.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    inputs = (qkv, position_table, fusion_weight, fusion_bias, proj_weight)
    grads = [like(x) for x in inputs]
    return grads[0], grads[1], grads[2], grads[3], grads[4], like(fusion_bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.chosen = inputs
    ctx.save_for_backward(*tensors[:-1])  # all but proj_bias, which no gradient depends on


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_local_attention_backward(grad, *ctx.saved_tensors, ctx.chosen), None)


_local_attention.register_autograd(_backward, setup_context=_setup_context)
