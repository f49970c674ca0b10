# SPDX-License-Identifier: Apache-2.0
"""Gradients of softmax attention and of its checkerboard form.

With the names of softmax_attention, P the softmax over the keys and G the gradient of out, for each image and head:

    ∇V[e, j] = Σ_i P[i, j] · G[e, i]
    ∇score[i, j] = P[i, j] · (Σ_e G[e, i] · V[e, j] − Σ_e G[e, i] · out[e, i]), 0 where the key is excluded
    ∇Q[c, i] = Σ_j ∇score[i, j] · K[c, j] / √W,    ∇K[c, j] = Σ_i ∇score[i, j] · Q[c, i] / √W

Scores are computed again, for some queries and keys at a time. Two launches, one for ∇Q and one for ∇K and ∇V, so that
every sum has one owner and a fixed order: no atomics, and two runs give the same bits. Called by
mlic_fast.ops.softmax_attention.
"""

import torch
from mlic_fast.kernels.linear_attention import _exp, _place
from mlic_fast.kernels.softmax_attention import (
    BATCHED,
    PRECISION,
    Near,
    aot_configs,
    blocks_of_queries,
    divide_work,
    exclude,
    products,
    read,
    read_checkerboard,
    weights_of,
)
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.precision import matmul
from mlic_fast.compute.triton_language import tl, triton


@triton.jit
def _add(total, product, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Their sum, which the compiler does not make a product's accumulator: see softmax_attention."""
    return tl.fma(total, tl.full([ROWS, COLUMNS], 1.0, tl.float32), product)


@triton.jit(do_not_specialize=BATCHED)
def _query_gradient_kernel(
    g_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,  # [B, D, h·w]: the result
    stats_ptr,  # [B·heads, count, 2]: largest score of a query, Σ exp(score − largest)
    means_ptr,  # [B·heads, count]: Σ_e G · out, for the other kernel
    dq_ptr,
    stride_gb,
    stride_gc,
    stride_gl,
    stride_qb,
    stride_qc,
    stride_ql,
    stride_kb,
    stride_kc,
    stride_kl,
    stride_vb,
    stride_vc,
    stride_vl,
    scale,
    heads,
    width,
    positions,
    count,
    row_length,
    radius,
    BLOCK_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """∇Q of a block of queries. Grid [B·heads, blocks of queries, TILES of its channels]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    g_ptr += item * stride_gb + head * width * stride_gc
    q_ptr += item * stride_qb + head * width * stride_qc
    k_ptr += item * stride_kb + head * width * stride_kc
    v_ptr += item * stride_vb + head * width * stride_vc
    out_ptr += item_head * width * positions
    q_index = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_valid = q_index < count
    q_place = _place(q_index, row_length // 2, 0, CHECKERBOARD)
    own = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)

    mean = tl.zeros([BLOCK_Q], tl.float32)
    for tile in range(TILES):
        channel = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        grad = read(g_ptr, stride_gc, stride_gl, channel, width, q_place, q_valid)
        mean += tl.sum(grad * read(out_ptr, positions, 1, channel, width, q_place, q_valid), axis=0)
    if tl.program_id(2) == 0:
        tl.store(means_ptr + item_head * count + q_index, mean, q_valid)
    stats = stats_ptr + 2 * (item_head * count + q_index)
    largest = tl.load(stats, q_valid, other=0.0)
    total = tl.load(stats + 1, q_valid, other=1.0)

    dq = tl.zeros([BLOCK_Q, BLOCK_W], tl.float32)
    for first in range(0, count, BLOCK_K):
        k_index = first + tl.arange(0, BLOCK_K)
        k_valid = k_index < count
        k_place = _place(k_index, row_length // 2, 1, CHECKERBOARD)
        scores = scale * products(
            q_ptr, stride_qc, stride_ql, q_place, q_valid, k_ptr, stride_kc, stride_kl, k_place, k_valid, width,
            BLOCK_W, TILES,
        )  # fmt: skip
        scores, fixed = exclude(scores, q_place, k_place, k_valid, row_length, radius, CHECKERBOARD)
        shares = _exp(scores - largest[:, None]) / total[:, None]
        dscores = products(
            g_ptr, stride_gc, stride_gl, q_place, q_valid, v_ptr, stride_vc, stride_vl, k_place, k_valid, width,
            BLOCK_W, TILES,
        )  # fmt: skip
        dscores = tl.where(fixed, 0.0, shares * (dscores - mean[:, None]))
        keys = read(k_ptr, stride_kc, stride_kl, own, width, k_place, k_valid)
        dq = _add(dq, tl.dot(dscores, tl.trans(keys), input_precision=PRECISION), BLOCK_Q, BLOCK_W)

    dq_rows = dq_ptr + ((item_head * width + own) * positions)[None, :]
    mask = q_valid[:, None] & (own < width)[None, :]
    tl.store(dq_rows + q_place[:, None], dq * scale, mask)
    if CHECKERBOARD:
        anchors = _place(q_index, row_length // 2, 1, CHECKERBOARD)
        tl.store(dq_rows + anchors[:, None], tl.zeros([BLOCK_Q, BLOCK_W], tl.float32), mask)


@triton.jit(do_not_specialize=BATCHED)
def _key_gradient_kernel(
    g_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    stats_ptr,
    means_ptr,
    dk_ptr,
    dv_ptr,
    stride_gb,
    stride_gc,
    stride_gl,
    stride_qb,
    stride_qc,
    stride_ql,
    stride_kb,
    stride_kc,
    stride_kl,
    stride_vb,
    stride_vc,
    stride_vl,
    scale,
    heads,
    width,
    positions,
    count,
    row_length,
    radius,
    BLOCK_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """∇K and ∇V of a block of keys. Grid [B·heads, blocks of keys, TILES of their channels]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    g_ptr += item * stride_gb + head * width * stride_gc
    q_ptr += item * stride_qb + head * width * stride_qc
    k_ptr += item * stride_kb + head * width * stride_kc
    v_ptr += item * stride_vb + head * width * stride_vc
    # the block of keys is the wide one here: it stays while the queries pass
    k_index = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    k_valid = k_index < count
    k_place = _place(k_index, row_length // 2, 1, CHECKERBOARD)
    own = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)

    dk = tl.zeros([BLOCK_Q, BLOCK_W], tl.float32)
    dv = tl.zeros([BLOCK_Q, BLOCK_W], tl.float32)
    for first in range(0, count, BLOCK_K):
        q_index = first + tl.arange(0, BLOCK_K)
        q_valid = q_index < count
        q_place = _place(q_index, row_length // 2, 0, CHECKERBOARD)
        scores = scale * products(
            q_ptr, stride_qc, stride_ql, q_place, q_valid, k_ptr, stride_kc, stride_kl, k_place, k_valid, width,
            BLOCK_W, TILES,
        )  # fmt: skip
        scores, fixed = exclude(scores, q_place, k_place, k_valid, row_length, radius, CHECKERBOARD)
        stats = stats_ptr + 2 * (item_head * count + q_index)
        largest = tl.load(stats, q_valid, other=0.0)
        total = tl.load(stats + 1, q_valid, other=1.0)
        mean = tl.load(means_ptr + item_head * count + q_index, q_valid, other=0.0)
        shares = _exp(scores - largest[:, None]) / total[:, None]
        shares = tl.where(q_valid[:, None], shares, 0.0)
        dscores = products(
            g_ptr, stride_gc, stride_gl, q_place, q_valid, v_ptr, stride_vc, stride_vl, k_place, k_valid, width,
            BLOCK_W, TILES,
        )  # fmt: skip
        dscores = tl.where(fixed, 0.0, shares * (dscores - mean[:, None]))
        grad = read(g_ptr, stride_gc, stride_gl, own, width, q_place, q_valid)
        queries = read(q_ptr, stride_qc, stride_ql, own, width, q_place, q_valid)
        dv = _add(dv, tl.dot(tl.trans(shares), tl.trans(grad), input_precision=PRECISION), BLOCK_Q, BLOCK_W)
        dk = _add(dk, tl.dot(tl.trans(dscores), tl.trans(queries), input_precision=PRECISION), BLOCK_Q, BLOCK_W)

    rows = ((item_head * width + own) * positions)[None, :]
    mask = k_valid[:, None] & (own < width)[None, :]
    tl.store(dk_ptr + rows + k_place[:, None], dk * scale, mask)
    tl.store(dv_ptr + rows + k_place[:, None], dv, mask)
    if CHECKERBOARD:
        others = _place(k_index, row_length // 2, 0, CHECKERBOARD)
        tl.store(dk_ptr + rows + others[:, None], tl.zeros([BLOCK_Q, BLOCK_W], tl.float32), mask)
        tl.store(dv_ptr + rows + others[:, None], tl.zeros([BLOCK_Q, BLOCK_W], tl.float32), mask)


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    statistics: Tensor,
    heads: int,
    checkerboard: bool,
    radius: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, contiguous [B, D, h, w], for grad [B, D, h, w], that of the result.

    out [B, D, h, w], statistics [B, heads, positions attended from, 2]: what `softmax_attention.forward` returned.
    Any strides of the four maps; float32.
    """
    batch = queries.shape[0]
    work = divide_work(queries, heads, checkerboard, gradients=True)
    maps = [x.flatten(2) for x in (grad, queries, keys, values)]
    strides = [stride for x in maps for stride in x.stride()]
    dq, dk, dv = (torch.empty(queries.shape, dtype=out.dtype, device=out.device) for _ in range(3))
    means = torch.empty(batch, heads, work.read, dtype=out.dtype, device=out.device)
    sizes = (work.scale, heads, work.width, work.positions, work.read, work.row_length, radius)
    grid = work.grid(batch * heads)
    with torch.cuda.device_of(out):
        _query_gradient_kernel[grid](*maps, out, statistics, means, dq, *strides, *sizes, **work.options)
        _key_gradient_kernel[grid](*maps, statistics, means, dk, dv, *strides, *sizes, **work.options)
    return dq, dk, dv


def backward_ref(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    heads: int,
    checkerboard: bool,
    radius: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain: gradients of queries, keys and values [B, D, h, w] for grad, that of the result out, all of one shape.

    Autograd would keep the softmaxes of all queries; here those of a block are computed again.
    """
    shape = queries.shape
    if not checkerboard:
        maps = [x.flatten(2) for x in (grad, out, queries, keys, values)]
        dq, dk, dv = (x.view(shape) for x in _gradients(maps, heads, None))
        return dq, dk, dv
    near = Near(shape[2], shape[3], radius, queries.device)
    packed = [pack(x, Parity.NONANCHOR).flatten(2) for x in (grad, out)]
    packed += read_checkerboard(queries, keys, values)
    dq, dk, dv = (x.view(*shape[:3], shape[3] // 2) for x in _gradients(packed, heads, near))
    return unpack(dq, Parity.NONANCHOR), unpack(dk, Parity.ANCHOR), unpack(dv, Parity.ANCHOR)


def _gradients(maps: list[Tensor], heads: int, near: Near | None) -> list[Tensor]:
    """Of queries, keys and values, contiguous, for grad, out and queries [B, D, n], keys and values [B, D, m]."""
    width = maps[0].shape[1] // heads
    results = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in maps[2:]]
    for picture in zip(*maps, *results, strict=True):
        for g, o, q, k, v, dq, dk, dv in zip(*(x.split(width) for x in picture), strict=True):
            for block in blocks_of_queries(q.shape[1]):
                excluded = None if near is None else near[block]
                weights = weights_of(q[:, block], k, excluded)  # [block, m]
                dv += matmul(g[:, block], weights)
                mean = (g[:, block] * o[:, block]).sum(dim=0)
                dscores = weights * (matmul(g[:, block].t(), v) - mean[:, None])
                if excluded is not None:
                    dscores = torch.where(excluded, 0.0, dscores)
                dscores *= width**-0.5
                dq[:, block] = matmul(k, dscores.t())
                dk += matmul(q[:, block], dscores)
    return results


AOT_CONFIGS = [*aot_configs(_query_gradient_kernel, True), *aot_configs(_key_gradient_kernel, True)]
