# SPDX-License-Identifier: Apache-2.0
"""Gradients of linear attention and of its checkerboard form.

With the names of linear_attention and G the gradient of out, for each image and head:

    ∇context[c, e] = Σ_l softmax_c(Q)[c, l] · G[e, l]                          [W, W]
    ∇Q = softmax_c(Q) · (P − Σ_c softmax_c(Q) · P),    P = context · G         [W, L]
    ∇V[e, l] = Σ_c softmax_l(K)[c, l] · ∇context[c, e]                         [W, L]
    ∇K = softmax_l(K) · (∇context · V − r),    r[c] = Σ_e ∇context · context   [W, L]

since Σ_l softmax_l(K) · (∇context · V) is r: it needs no pass over the positions. Three launches, which
read Q, G, K, V once each. Both softmaxes are computed again from the maxima and sums of the keys
and the contexts, which are all that the forward pass has to keep.

Called by mlic_fast.ops.linear_attention.
"""

import torch
from mlic_fast.kernels.linear_attention import (
    MAX_SPLITS,
    PRECISION,
    _exp,
    _place,
    aot_configs,
    split_work,
)
from torch import Tensor

from mlic_fast.compute.triton_language import tl, triton


@triton.jit
def _query_backward_kernel(
    g_ptr,
    q_ptr,
    context_ptr,
    dq_ptr,
    part_ptr,  # [B·heads, splits, width, width]: a split's share of ∇context
    stride_gb,
    stride_gc,
    stride_gl,
    stride_qb,
    stride_qc,
    stride_ql,
    heads,
    width,
    positions,
    count,
    split_length,
    half_width,
    BLOCK_W: tl.constexpr,
    BLOCK_L: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """Backward, first pass: ∇Q and a split's share of ∇context. Grid [B·heads, splits, TILES²]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    split = tl.program_id(1)
    c_tile, e_tile = tl.program_id(2) // TILES, tl.program_id(2) % TILES
    own_c = c_tile * BLOCK_W + tl.arange(0, BLOCK_W)
    own_e = e_tile * BLOCK_W + tl.arange(0, BLOCK_W)

    dcontext = tl.zeros([BLOCK_W, BLOCK_W], tl.float32)
    start = split * split_length
    stop = tl.minimum(start + split_length, count)
    for first in range(start, stop, BLOCK_L):
        index = first + tl.arange(0, BLOCK_L)
        valid = index < stop
        place = _place(index, half_width, 0, CHECKERBOARD)
        largest = tl.full([BLOCK_L], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_L], tl.float32)
        moment = tl.zeros([BLOCK_L], tl.float32)  # Σ_c exp(Q − largest) · ∇p
        own_queries = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
        own_dshares = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
        own_grad = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
        for tile in range(TILES):
            c = tile * BLOCK_W + tl.arange(0, BLOCK_W)
            q_rows = q_ptr + item * stride_qb + (head * width + c).to(tl.int64) * stride_qc
            queries = tl.load(
                q_rows[:, None] + (place * stride_ql)[None, :], (c < width)[:, None] & valid[None, :], other=0.0
            )
            queries = tl.where((c < width)[:, None], queries, float("-inf"))
            dshares = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
            for inner in range(TILES):
                e = inner * BLOCK_W + tl.arange(0, BLOCK_W)
                g_rows = g_ptr + item * stride_gb + (head * width + e).to(tl.int64) * stride_gc
                grad = tl.load(
                    g_rows[:, None] + (place * stride_gl)[None, :], (e < width)[:, None] & valid[None, :], other=0.0
                )
                context = tl.load(
                    context_ptr + (item_head * width + c)[:, None] * width + e[None, :],
                    (c < width)[:, None] & (e < width)[None, :],
                    other=0.0,
                )
                dshares += tl.dot(context, grad, input_precision=PRECISION)
                own_grad = tl.where(inner == e_tile, grad, own_grad)
            larger = tl.maximum(largest, tl.max(queries, axis=0))
            rescale = _exp(largest - larger)
            shares = _exp(queries - larger[None, :])
            total = total * rescale + tl.sum(shares, axis=0)
            moment = moment * rescale + tl.sum(shares * dshares, axis=0)
            largest = larger
            own_queries = tl.where(tile == c_tile, queries, own_queries)
            own_dshares = tl.where(tile == c_tile, dshares, own_dshares)
        shares = _exp(own_queries - largest[None, :]) / total[None, :]
        dcontext += tl.dot(shares, tl.trans(own_grad), input_precision=PRECISION)
        if e_tile == 0:
            dq_rows = dq_ptr + (item_head * width + own_c)[:, None] * positions
            mask = (own_c < width)[:, None] & valid[None, :]
            tl.store(dq_rows + place[None, :], shares * (own_dshares - (moment / total)[None, :]), mask)
            if CHECKERBOARD:
                anchors = _place(index, half_width, 1, CHECKERBOARD)
                tl.store(dq_rows + anchors[None, :], tl.zeros([BLOCK_W, BLOCK_L], tl.float32), mask)

    rows = (item_head * tl.num_programs(1) + split) * width + own_c
    tl.store(
        part_ptr + rows[:, None] * width + own_e[None, :],
        dcontext,
        (own_c < width)[:, None] & (own_e < width)[None, :],
    )


@triton.jit
def _combine_backward_kernel(
    part_ptr,
    context_ptr,
    dcontext_ptr,  # [B, D, width]
    r_ptr,  # [B, D]
    splits,
    width,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TILES: tl.constexpr,
):
    """Backward: one row of ∇context from those of all splits, and its r. Grid [B·heads, width]."""
    item_head = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1)
    split = tl.arange(0, BLOCK_S)
    rows = (item_head * splits + split) * width + c
    channel = item_head * width + c
    products = tl.zeros([BLOCK_W], tl.float32)
    for tile in range(TILES):
        e = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        mask = (split < splits)[:, None] & (e < width)[None, :]
        dcontext = tl.sum(tl.load(part_ptr + rows[:, None] * width + e[None, :], mask, other=0.0), axis=0)
        tl.store(dcontext_ptr + channel * width + e, dcontext, e < width)
        products += dcontext * tl.load(context_ptr + channel * width + e, e < width, other=0.0)
    tl.store(r_ptr + channel, tl.sum(products, axis=0))


@triton.jit
def _key_backward_kernel(
    k_ptr,
    v_ptr,
    stats_ptr,
    dcontext_ptr,
    r_ptr,
    dk_ptr,
    dv_ptr,
    stride_kb,
    stride_kc,
    stride_kl,
    stride_vb,
    stride_vc,
    stride_vl,
    heads,
    width,
    positions,
    count,
    half_width,
    BLOCK_W: tl.constexpr,
    BLOCK_L: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """Backward, second pass: ∇K and ∇V of a block. Grid [B·heads, blocks, TILES]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    index = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    valid = index < count
    place = _place(index, half_width, 1, CHECKERBOARD)
    own_tile = tl.program_id(2)
    own = own_tile * BLOCK_W + tl.arange(0, BLOCK_W)

    own_shares = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
    dshares = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
    dvalues = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
    for tile in range(TILES):
        channel = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        inside = (channel < width)[:, None] & valid[None, :]
        both = (own < width)[:, None] & (channel < width)[None, :]
        in_map = (head * width + channel).to(tl.int64)
        k_rows = k_ptr + item * stride_kb + in_map * stride_kc
        v_rows = v_ptr + item * stride_vb + in_map * stride_vc
        stats = stats_ptr + 2 * (item_head * width + channel)
        keys = tl.load(k_rows[:, None] + (place * stride_kl)[None, :], inside, other=0.0)
        values = tl.load(v_rows[:, None] + (place * stride_vl)[None, :], inside, other=0.0)
        largest = tl.load(stats, channel < width, other=0.0)
        total = tl.load(stats + 1, channel < width, other=1.0)
        shares = _exp(keys - largest[:, None]) / total[:, None]
        dcontext = dcontext_ptr + item_head * width * width
        to_keys = tl.load(dcontext + own[:, None] * width + channel[None, :], both, other=0.0)
        to_values = tl.load(dcontext + channel[None, :] * width + own[:, None], both, other=0.0)  # transposed
        dshares += tl.dot(to_keys, values, input_precision=PRECISION)
        dvalues += tl.dot(to_values, shares, input_precision=PRECISION)
        own_shares = tl.where(tile == own_tile, shares, own_shares)
    r = tl.load(r_ptr + item_head * width + own, own < width, other=0.0)

    rows = (item_head * width + own)[:, None] * positions
    mask = (own < width)[:, None] & valid[None, :]
    tl.store(dk_ptr + rows + place[None, :], own_shares * (dshares - r[:, None]), mask)
    tl.store(dv_ptr + rows + place[None, :], dvalues, mask)
    if CHECKERBOARD:
        others = _place(index, half_width, 0, CHECKERBOARD)
        tl.store(dk_ptr + rows + others[None, :], tl.zeros([BLOCK_W, BLOCK_L], tl.float32), mask)
        tl.store(dv_ptr + rows + others[None, :], tl.zeros([BLOCK_W, BLOCK_L], tl.float32), mask)


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    statistics: Tensor,
    context: Tensor,
    heads: int,
    checkerboard: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, contiguous [B, D, h, w], for grad [B, D, h, w], that of the result.

    statistics [B, D, 2], context [B, D, D / heads]: what `linear_attention.forward` returned. Any
    strides; float32.
    """
    batch, channels = queries.shape[:2]
    work = split_work(queries, heads, checkerboard)
    g, q, k, v = (x.flatten(2) for x in (grad, queries, keys, values))
    dq, dk, dv = (torch.empty(queries.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    part = torch.empty(batch * heads, work.splits, work.width, work.width, dtype=q.dtype, device=q.device)
    dcontext = torch.empty(batch, channels, work.width, dtype=q.dtype, device=q.device)
    r = torch.empty(batch, channels, dtype=q.dtype, device=q.device)
    tiles = work.tiling["TILES"]
    with torch.cuda.device_of(q):
        _query_backward_kernel[(batch * heads, work.splits, tiles**2)](
            g,
            q,
            context,
            dq,
            part,
            *g.stride(),
            *q.stride(),
            heads,
            work.width,
            work.positions,
            work.read,
            work.length,
            work.half_width,
            BLOCK_L=work.sweep,
            CHECKERBOARD=checkerboard,
            **work.tiling,
        )
        _combine_backward_kernel[(batch * heads, work.width)](
            part, context, dcontext, r, work.splits, work.width, BLOCK_S=MAX_SPLITS, **work.tiling
        )
        _key_backward_kernel[(batch * heads, triton.cdiv(work.read, work.block), tiles)](
            k,
            v,
            statistics,
            dcontext,
            r,
            dk,
            dv,
            *k.stride(),
            *v.stride(),
            heads,
            work.width,
            work.positions,
            work.read,
            work.half_width,
            BLOCK_L=work.block,
            CHECKERBOARD=checkerboard,
            **work.tiling,
        )
    return dq, dk, dv


AOT_CONFIGS = [
    *aot_configs(_query_backward_kernel, sweeps=True),
    *aot_configs(_combine_backward_kernel),
    *aot_configs(_key_backward_kernel),
]
