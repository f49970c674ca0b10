# SPDX-License-Identifier: Apache-2.0
"""Linear attention over all positions, and its checkerboard form.

For each image and head, with queries Q, keys K, values V [W, L] (W channels of the head, L positions):

    context[c, e] = Σ_l softmax_l(K)[c, l] · V[e, l]          [W, W]
    out[e, l]     = Σ_c context[c, e] · softmax_c(Q)[c, l]    [W, L]

In the checkerboard form K and V are read at the anchors (row + column odd), Q at the non-anchors, and
out is zero at the anchors.

Fused: all heads and both softmaxes in three launches; each map is touched once and neither softmax is
stored. Positions are divided into splits; each split keeps a running maximum of the keys and rescales
what it has summed when the maximum grows; the splits are combined in a fixed order. Their number
follows from L alone, so an image gives the same bits in any batch.

Called by mlic_fast.ops.linear_attention; gradients are in linear_attention_backward. Source of the
formulas: "efficient attention" (Shen et al., arXiv 1812.01243) as used by MLIC++ (arXiv 2307.15421).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.precision import matmul
from mlic_fast.compute.triton_language import tl, triton

# At most so many splits of the positions; the kernels that combine them hold all at once.
MAX_SPLITS = 64

# Fewer positions than this are not worth a program of their own.
_MIN_SPLIT = 128

# Channels that a program handles at a time: tl.dot takes no fewer than 16, and with more than 32
# the operands of a float32 product do not fit in the registers.
_MIN_DOT, _MAX_BLOCK_W = 16, 32

# "ieee" multiplies in full float32. The entropy path allows nothing shorter than float32-class.
PRECISION = tl.constexpr("ieee")


@triton.jit
def _exp(x):
    """e^x for x ≤ 0 or NaN; the hardware's 2^x with the rounding error of x·log2(e) made good."""
    # the clamp keeps −∞ from turning into ∞ − ∞ below, and lets NaN through
    x = tl.where(x < -150.0, -150.0, x)
    high = x * 1.4426950216293335
    low = tl.fma(x, 1.4426950216293335, -high) + x * 1.9259629911266175e-8
    power = tl.exp2(high)
    return tl.fma(power, low * 0.6931471805599453, power)


@triton.jit
def _place(index, half_width, FIRST: tl.constexpr, CHECKERBOARD: tl.constexpr):
    """Position in the map of the index-th position of a parity; FIRST is the parity's first column in row 0."""
    place = index
    if CHECKERBOARD:
        place = 2 * index + (((index // half_width) & 1) ^ FIRST)
    return place.to(tl.int64)


@triton.jit
def _context_kernel(
    k_ptr,
    v_ptr,
    max_ptr,  # [B·heads, splits, width]: largest key of a split
    sum_ptr,  # [B·heads, splits, width]: Σ exp(key − largest)
    part_ptr,  # [B·heads, splits, width, width]: Σ exp(key − largest) · value
    stride_kb,
    stride_kc,
    stride_kl,
    stride_vb,
    stride_vc,
    stride_vl,
    heads,
    width,
    count,  # positions that are attended to
    split_length,
    half_width,
    BLOCK_W: tl.constexpr,
    BLOCK_L: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """Forward, first pass: one split's share of the contexts. Grid [B·heads, splits, TILES²]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    split = tl.program_id(1)
    c = (tl.program_id(2) // TILES) * BLOCK_W + tl.arange(0, BLOCK_W)
    e = (tl.program_id(2) % TILES) * BLOCK_W + tl.arange(0, BLOCK_W)
    k_rows = k_ptr + item * stride_kb + (head * width + c).to(tl.int64) * stride_kc  # [BLOCK_W]
    v_rows = v_ptr + item * stride_vb + (head * width + e).to(tl.int64) * stride_vc

    largest = tl.full([BLOCK_W], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_W], tl.float32)
    context = tl.zeros([BLOCK_W, BLOCK_W], tl.float32)
    start = split * split_length
    stop = tl.minimum(start + split_length, count)
    for first in range(start, stop, BLOCK_L):
        index = first + tl.arange(0, BLOCK_L)
        valid = index < stop
        place = _place(index, half_width, 1, CHECKERBOARD)
        keys = tl.load(k_rows[:, None] + (place * stride_kl)[None, :], (c < width)[:, None] & valid[None, :], other=0.0)
        values = tl.load(
            v_rows[:, None] + (place * stride_vl)[None, :], (e < width)[:, None] & valid[None, :], other=0.0
        )
        keys = tl.where(valid[None, :], keys, float("-inf"))
        larger = tl.maximum(largest, tl.max(keys, axis=1))
        rescale = _exp(largest - larger)
        shares = _exp(keys - larger[:, None])
        total = total * rescale + tl.sum(shares, axis=1)
        context = context * rescale[:, None] + tl.dot(shares, tl.trans(values), input_precision=PRECISION)
        largest = larger

    row = (item_head * tl.num_programs(1) + split) * width + c
    if tl.program_id(2) % TILES == 0:
        tl.store(max_ptr + row, largest, c < width)
        tl.store(sum_ptr + row, total, c < width)
    tl.store(part_ptr + row[:, None] * width + e[None, :], context, (c < width)[:, None] & (e < width)[None, :])


@triton.jit
def _combine_kernel(
    max_ptr,
    sum_ptr,
    part_ptr,
    stats_ptr,  # [B, D, 2]: largest key, Σ exp(key − largest)
    context_ptr,  # [B, D, width]
    splits,
    width,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TILES: tl.constexpr,
):
    """Forward: one row of a context from those of all splits. Grid [B·heads, width]."""
    item_head = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1)
    split = tl.arange(0, BLOCK_S)
    valid = split < splits
    rows = (item_head * splits + split) * width + c  # [BLOCK_S]
    largest_of_split = tl.load(max_ptr + rows, valid, other=float("-inf"))
    largest = tl.max(largest_of_split, axis=0)
    rescale = _exp(largest_of_split - largest)
    total = tl.sum(tl.load(sum_ptr + rows, valid, other=0.0) * rescale, axis=0)
    channel = item_head * width + c
    tl.store(stats_ptr + 2 * channel, largest)
    tl.store(stats_ptr + 2 * channel + 1, total)
    for tile in range(TILES):
        e = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        part = tl.load(part_ptr + rows[:, None] * width + e[None, :], valid[:, None] & (e < width)[None, :], other=0.0)
        tl.store(context_ptr + channel * width + e, tl.sum(part * rescale[:, None], axis=0) / total, e < width)


@triton.jit
def _apply_kernel(
    q_ptr,
    context_ptr,
    out_ptr,
    stride_qb,
    stride_qc,
    stride_ql,
    heads,
    width,
    positions,  # h·w
    count,
    half_width,
    BLOCK_W: tl.constexpr,
    BLOCK_L: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """Forward, second pass: contexts applied to the queries of a block. Grid [B·heads, blocks, TILES]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    index = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    valid = index < count
    place = _place(index, half_width, 0, CHECKERBOARD)
    e = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)

    largest = tl.full([BLOCK_L], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_L], tl.float32)
    out = tl.zeros([BLOCK_W, BLOCK_L], tl.float32)
    for tile in range(TILES):
        c = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        q_rows = q_ptr + item * stride_qb + (head * width + c).to(tl.int64) * stride_qc
        queries = tl.load(
            q_rows[:, None] + (place * stride_ql)[None, :], (c < width)[:, None] & valid[None, :], other=0.0
        )
        queries = tl.where((c < width)[:, None], queries, float("-inf"))
        larger = tl.maximum(largest, tl.max(queries, axis=0))
        rescale = _exp(largest - larger)
        shares = _exp(queries - larger[None, :])
        total = total * rescale + tl.sum(shares, axis=0)
        context = tl.load(  # transposed: [e, c]
            context_ptr + (item_head * width + c)[None, :] * width + e[:, None],
            (e < width)[:, None] & (c < width)[None, :],
            other=0.0,
        )
        out = out * rescale[None, :] + tl.dot(context, shares, input_precision=PRECISION)
        largest = larger

    out_rows = out_ptr + (item_head * width + e)[:, None] * positions
    mask = (e < width)[:, None] & valid[None, :]
    tl.store(out_rows + place[None, :], out / total[None, :], mask)
    if CHECKERBOARD:
        anchors = _place(index, half_width, 1, CHECKERBOARD)
        tl.store(out_rows + anchors[None, :], tl.zeros([BLOCK_W, BLOCK_L], tl.float32), mask)


class Split(NamedTuple):
    """How the work on maps [B, D, h, w] with some heads is divided among programs."""

    width: int  # channels of a head
    positions: int  # h·w
    read: int  # positions that are read: all, or those of one parity
    half_width: int  # w // 2
    length: int  # positions of a split
    splits: int
    tiling: dict[str, Any]  # constants and launch options that all kernels share
    sweep: int  # positions that a program handles at a time where it goes over a split
    block: int  # positions of a program where each has one block


def split_work(x: Tensor, heads: int, checkerboard: bool) -> Split:
    """The division for x [B, D, h, w]; it does not depend on B."""
    width, positions = x.shape[1] // heads, x.shape[2] * x.shape[3]
    read = positions // 2 if checkerboard else positions
    block_w = min(max(triton.next_power_of_2(width), _MIN_DOT), _MAX_BLOCK_W)
    tiles = triton.cdiv(width, block_w)
    tiling, sweep, block = _tiling(block_w, tiles)
    length = max(_MIN_SPLIT, sweep * triton.cdiv(triton.cdiv(read, sweep), MAX_SPLITS))
    return Split(
        width=width,
        positions=positions,
        read=read,
        half_width=x.shape[3] // 2,
        length=length,
        splits=triton.cdiv(read, length),
        tiling=tiling,
        sweep=sweep,
        block=block,
    )


def _tiling(block_w: int, tiles: int) -> tuple[dict[str, Any], int, int]:
    """Shared constants and options, `sweep` and `block`: chosen so that no kernel spills registers."""
    narrow = block_w == _MIN_DOT
    # one stage: more would hold blocks in flight in the registers that the products need
    options = {"num_warps": 4 if narrow else 8, "num_stages": 1}
    return {"BLOCK_W": block_w, "TILES": tiles, **options}, 64 if narrow else 32, 64 if tiles == 1 else 32


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 maps [B, D, h, w] → result [B, D, h, w], and for the gradients the keys' statistics and the contexts.

    Statistics are [B, D, 2] (largest key, Σ exp(key − largest)), contexts [B, D, D / heads]. Heads are
    contiguous groups of channels. Any strides; results are contiguous.
    """
    batch, channels = queries.shape[:2]
    work = split_work(queries, heads, checkerboard)
    q, k, v = (x.flatten(2) for x in (queries, keys, values))
    out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
    statistics = torch.empty(batch, channels, 2, dtype=q.dtype, device=q.device)
    context = torch.empty(batch, channels, work.width, dtype=q.dtype, device=q.device)
    largest, total = torch.empty(2, batch * heads, work.splits, work.width, dtype=q.dtype, device=q.device)
    part = torch.empty(batch * heads, work.splits, work.width, work.width, dtype=q.dtype, device=q.device)
    tiles = work.tiling["TILES"]
    with torch.cuda.device_of(q):
        _context_kernel[(batch * heads, work.splits, tiles**2)](
            k,
            v,
            largest,
            total,
            part,
            *k.stride(),
            *v.stride(),
            heads,
            work.width,
            work.read,
            work.length,
            work.half_width,
            BLOCK_L=work.sweep,
            CHECKERBOARD=checkerboard,
            **work.tiling,
        )
        _combine_kernel[(batch * heads, work.width)](
            largest, total, part, statistics, context, work.splits, work.width, BLOCK_S=MAX_SPLITS, **work.tiling
        )
        _apply_kernel[(batch * heads, triton.cdiv(work.read, work.block), tiles)](
            q,
            context,
            out,
            *q.stride(),
            heads,
            work.width,
            work.positions,
            work.read,
            work.half_width,
            BLOCK_L=work.block,
            CHECKERBOARD=checkerboard,
            **work.tiling,
        )
    return out, statistics, context


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Three float32 maps [B, D, h, w] → [B, D, h, w], contiguous; heads are contiguous groups of channels."""
    return forward(queries, keys, values, heads, checkerboard=False)[0]


def checkerboard_linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors; zero at anchors. w is even."""
    return forward(queries, keys, values, heads, checkerboard=True)[0]


def linear_attention_ref(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Plain: three maps [B, D, h, w] → [B, D, h, w]; heads are contiguous groups of channels."""
    width = queries.shape[1] // heads
    attended = []
    for query, key, value in zip(*(x.flatten(2).split(width, dim=1) for x in (queries, keys, values)), strict=True):
        context = matmul(F.softmax(key, dim=2), value.transpose(1, 2))  # [B, width, width]
        attended.append(matmul(context.transpose(1, 2), F.softmax(query, dim=1)))
    return torch.cat(attended, dim=1).view_as(queries)


def checkerboard_linear_attention_ref(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Plain: the same with keys and values read at anchors, queries at non-anchors; zero at anchors. w is even.

    Three maps [B, D, h, w] → [B, D, h, w]. The sums run over the whole map, zeros included, because the
    official code's do and the order of a sum decides its last bit.
    """
    width = queries.shape[1] // heads
    keys, values = pack(keys, Parity.ANCHOR), pack(values, Parity.ANCHOR)
    queries = pack(queries, Parity.NONANCHOR)
    attended = []
    for query, key, value in zip(*(x.split(width, dim=1) for x in (queries, keys, values)), strict=True):
        shares = F.softmax(key.flatten(2), dim=2).view_as(key)
        key, value = unpack(shares, Parity.ANCHOR), unpack(value, Parity.ANCHOR)
        query = unpack(F.softmax(query, dim=1), Parity.NONANCHOR)
        context = matmul(key.flatten(2), value.flatten(2).transpose(1, 2))  # [B, width, width]
        attended.append(matmul(context.transpose(1, 2), query.flatten(2)).view_as(query))
    return torch.cat(attended, dim=1)


# Contexts of the published model within a slice and between slices, and those of other configurations.
_AOT_SHAPES = ((16, 1, True), (32, 1, False), (32, 2, True))


def aot_configs(kernel: Any, sweeps: bool = False) -> list[Any]:
    """Rows of AOT_CONFIGS of one kernel: float32 maps whose positions lie side by side."""
    rows = []
    for block_w, tiles, checkerboard in _AOT_SHAPES:
        tiling, sweep, block = _tiling(block_w, tiles)
        constants = {**tiling, "BLOCK_L": sweep if sweeps else block, "CHECKERBOARD": checkerboard}
        constants |= {"BLOCK_S": MAX_SPLITS, "stride_kl": 1, "stride_vl": 1, "stride_ql": 1, "stride_gl": 1}
        known = {name: constants[name] for name in kernel.arg_names if name in constants}
        names = [name for name in kernel.arg_names if name not in known]
        signature = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names}
        row = (kernel, signature, known, {name: tiling[name] for name in ("num_warps", "num_stages")})
        if row not in rows:
            rows.append(row)
    return rows


AOT_CONFIGS = [
    *aot_configs(_context_kernel, sweeps=True),
    *aot_configs(_combine_kernel),
    *aot_configs(_apply_kernel),
]
