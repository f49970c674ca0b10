# SPDX-License-Identifier: Apache-2.0
"""Softmax (quadratic) attention over all positions, and its checkerboard form with an exclusion window.

For each image and head, with queries Q, keys K, values V [W, L] (W channels of the head, L positions):

    score[i, j] = Σ_c Q[c, i] · K[c, j] / √W
    out[e, i]   = Σ_j softmax_j(score[i, j]) · V[e, j]    [W, L]

In the checkerboard form K and V are read at the anchors (row + column odd), Q at the non-anchors, and out is zero at
the anchors. There the score of a key whose row and column are both at most `radius` from the query's is EXCLUDED,
whatever they hold: what is that near, the local context has seen. Such keys stay in the softmax, so a query with no
others gets the plain mean of the values.

Fused: one launch. A program has some queries and goes over the keys in blocks of a fixed size and order, with a
running maximum and sum; what it has summed is rescaled when the maximum grows. So scores exist for a block at a time,
a position that is attended from gets the same bits in any batch, and extra memory is two numbers a query.

Called by mlic_fast.ops.softmax_attention; gradients are in softmax_attention_backward. Source: the global contexts of
MLIC and MLIC+ (arXiv 2211.07273), the exclusion after CompressAI's implementation of them.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mlic_fast.kernels.linear_attention import _exp, _place
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.precision import matmul
from mlic_fast.compute.triton_language import tl, triton

# Score of a key inside of the exclusion window.
EXCLUDED = -100.0

# Queries whose scores with all keys the twin holds at a time.
BLOCK_QUERIES = 128

# Of products on tensor cores: three TF32 products for each float32 one.
PRECISION = tl.constexpr("tf32x3")

# Channels that a product takes at a time: tl.dot takes no fewer than 16.
_MIN_DOT, _MAX_BLOCK_W = 16, 32

# Arguments of kernels that depend on the batch. Triton would compile for their values (multiples of 16, 1), and an
# image must get the same code in any batch.
BATCHED = ["stride_qb", "stride_kb", "stride_vb", "stride_gb"]


@triton.jit
def read(map_ptr, stride_c, stride_l, channel, width, place, valid):
    """Channels of one head at some positions, [channels, positions], zero beyond either."""
    at = (channel.to(tl.int64) * stride_c)[:, None] + (place * stride_l)[None, :]
    return tl.load(map_ptr + at, mask=(channel < width)[:, None] & valid[None, :], other=0.0)


@triton.jit
def products(
    a_ptr, stride_ac, stride_al, a_place, a_valid, b_ptr, stride_bc, stride_bl, b_place, b_valid, width,
    BLOCK_W: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Σ over a head's channels of a at some positions times b at others, [positions of a, positions of b]."""
    channel = tl.arange(0, BLOCK_W)
    a = read(a_ptr, stride_ac, stride_al, channel, width, a_place, a_valid)
    b = read(b_ptr, stride_bc, stride_bl, channel, width, b_place, b_valid)
    total = tl.dot(tl.trans(a), b, input_precision=PRECISION)
    for tile in range(1, TILES):
        channel = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        a = read(a_ptr, stride_ac, stride_al, channel, width, a_place, a_valid)
        b = read(b_ptr, stride_bc, stride_bl, channel, width, b_place, b_valid)
        total += tl.dot(tl.trans(a), b, input_precision=PRECISION)
    return total


@triton.jit
def exclude(scores, q_place, k_place, k_valid, row_length, radius, CHECKERBOARD: tl.constexpr):
    """Scores [queries, keys] as the softmax takes them, and which of them do not depend on what the maps hold."""
    fixed = (k_valid == 0)[None, :]
    if CHECKERBOARD:
        rows = tl.abs((q_place // row_length)[:, None] - (k_place // row_length)[None, :])
        columns = tl.abs((q_place % row_length)[:, None] - (k_place % row_length)[None, :])
        near = (rows <= radius) & (columns <= radius)
        scores = tl.where(near, -100.0, scores)
        fixed = fixed | near
    return tl.where(k_valid[None, :], scores, float("-inf")), fixed


@triton.jit(do_not_specialize=BATCHED)
def _softmax_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    stats_ptr,  # [B·heads, count, 2]: largest score of a query, Σ exp(score − largest)
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
    positions,  # h·w
    count,  # positions that are attended from, and as many to
    row_length,  # w
    radius,
    BLOCK_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
    CHECKERBOARD: tl.constexpr,
):
    """Forward. Grid [B·heads, blocks of queries, TILES of the values' channels]."""
    item_head = tl.program_id(0).to(tl.int64)
    item, head = item_head // heads, item_head % heads
    q_ptr += item * stride_qb + head * width * stride_qc
    k_ptr += item * stride_kb + head * width * stride_kc
    v_ptr += item * stride_vb + head * width * stride_vc
    q_index = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_valid = q_index < count
    q_place = _place(q_index, row_length // 2, 0, CHECKERBOARD)
    own = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)

    # not −∞: the difference of two would be NaN
    largest = tl.full([BLOCK_Q], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_W], tl.float32)
    for first in range(0, count, BLOCK_K):
        k_index = first + tl.arange(0, BLOCK_K)
        k_valid = k_index < count
        k_place = _place(k_index, row_length // 2, 1, CHECKERBOARD)
        scores = scale * products(
            q_ptr, stride_qc, stride_ql, q_place, q_valid, k_ptr, stride_kc, stride_kl, k_place, k_valid, width,
            BLOCK_W, TILES,
        )  # fmt: skip
        scores, _ = exclude(scores, q_place, k_place, k_valid, row_length, radius, CHECKERBOARD)
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        rescale = _exp(largest - larger)
        shares = _exp(scores - larger[:, None])
        values = read(v_ptr, stride_vc, stride_vl, own, width, k_place, k_valid)
        total = tl.fma(total, rescale, tl.sum(shares, axis=1))
        # by a fused multiply-add, lest the compiler lets the tensor cores sum over all blocks: they round toward zero
        attended = tl.dot(shares, tl.trans(values), input_precision=PRECISION)
        out = tl.fma(out, tl.broadcast_to(rescale[:, None], [BLOCK_Q, BLOCK_W]), attended)
        largest = larger

    if tl.program_id(2) == 0:
        stats = stats_ptr + 2 * (item_head * count + q_index)
        tl.store(stats, largest, q_valid)
        tl.store(stats + 1, total, q_valid)
    out_rows = out_ptr + ((item_head * width + own) * positions)[None, :]
    mask = q_valid[:, None] & (own < width)[None, :]
    tl.store(out_rows + q_place[:, None], out / total[:, None], mask)
    if CHECKERBOARD:
        anchors = _place(q_index, row_length // 2, 1, CHECKERBOARD)
        tl.store(out_rows + anchors[:, None], tl.zeros([BLOCK_Q, BLOCK_W], tl.float32), mask)


class Work(NamedTuple):
    """How the work on maps [B, D, h, w] with some heads is divided among programs; it does not depend on B."""

    width: int  # channels of a head
    positions: int  # h·w
    read: int  # positions that are attended from, and to: all, or those of one parity
    row_length: int  # w
    scale: float  # 1 / √width
    options: dict[str, Any]  # constants and launch options that the kernels share

    def grid(self, heads: int) -> tuple[int, int, int]:
        """Programs for so many heads of all images: heads, blocks of positions, tiles of channels."""
        return heads, triton.cdiv(self.read, self.options["BLOCK_Q"]), self.options["TILES"]


def divide_work(x: Tensor, heads: int, checkerboard: bool, gradients: bool = False) -> Work:
    """The division for x [B, D, h, w]."""
    width, positions = x.shape[1] // heads, x.shape[2] * x.shape[3]
    read = positions // 2 if checkerboard else positions
    options = {**_options(width, gradients), "CHECKERBOARD": checkerboard}
    return Work(width, positions, read, x.shape[3], width**-0.5, options)


def _options(width: int, gradients: bool) -> dict[str, Any]:
    """Constants and options for heads of this width: chosen so that no kernel spills registers."""
    block_w = max(triton.next_power_of_2(width), _MIN_DOT)
    if block_w > _MAX_BLOCK_W:
        block_w = _MIN_DOT if gradients else _MAX_BLOCK_W
    tiles = triton.cdiv(width, block_w)
    if gradients:
        blocks, warps, stages = {"BLOCK_Q": 64, "BLOCK_K": 16}, 8, 1
    else:  # a second stage loads the next keys meanwhile, where there are registers for it
        blocks, warps, stages = {"BLOCK_Q": 64, "BLOCK_K": 32}, 4, 2 if tiles == 1 else 1
    return {"BLOCK_W": block_w, "TILES": tiles, **blocks, "num_warps": warps, "num_stages": stages}


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> tuple[Tensor, Tensor]:
    """Float32 maps [B, D, h, w] → result [B, D, h, w], and for the gradients the queries' statistics.

    Statistics are [B, heads, positions attended from, 2] (largest score, Σ exp(score − largest)). Heads are contiguous
    groups of channels. Any strides; results are contiguous.
    """
    batch = queries.shape[0]
    work = divide_work(queries, heads, checkerboard)
    q, k, v = (x.flatten(2) for x in (queries, keys, values))
    out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
    statistics = torch.empty(batch, heads, work.read, 2, dtype=q.dtype, device=q.device)
    with torch.cuda.device_of(q):
        _softmax_attention_kernel[work.grid(batch * heads)](
            q,
            k,
            v,
            out,
            statistics,
            *q.stride(),
            *k.stride(),
            *v.stride(),
            work.scale,
            heads,
            work.width,
            work.positions,
            work.read,
            work.row_length,
            radius,
            **work.options,
        )
    return out, statistics


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Three float32 maps [B, D, h, w] → [B, D, h, w], contiguous; heads are contiguous groups of channels."""
    return forward(queries, keys, values, heads, checkerboard=False, radius=0)[0]


def checkerboard_softmax_attention(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, radius: int = 2
) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors; zero at anchors. h and w are even."""
    return forward(queries, keys, values, heads, checkerboard=True, radius=radius)[0]


def softmax_attention_ref(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Plain: three maps [B, D, h, w] → [B, D, h, w]; heads are contiguous groups of channels."""
    return _attend(queries.flatten(2), keys.flatten(2), values.flatten(2), heads, None).view(queries.shape)


def checkerboard_softmax_attention_ref(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, radius: int = 2
) -> Tensor:
    """Plain: the same with keys and values read at anchors, queries at non-anchors; zero at anchors. w is even."""
    batch, _, height, width = queries.shape
    read = read_checkerboard(queries, keys, values)
    near = Near(height, width, radius, queries.device)
    return unpack(_attend(*read, heads, near).view(batch, -1, height, width // 2), Parity.NONANCHOR)


def read_checkerboard(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, D, h, w] → what the checkerboard form reads of them, [B, D, h·w/2] each, in coding order."""
    queries = pack(queries, Parity.NONANCHOR).flatten(2)
    return queries, pack(keys, Parity.ANCHOR).flatten(2), pack(values, Parity.ANCHOR).flatten(2)


class Near:
    """Which anchors lie within the exclusion window of which non-anchors; both in coding order."""

    def __init__(self, height: int, width: int, radius: int, device: torch.device) -> None:
        self._radius = radius
        self._rows, self._columns = torch.arange(height, device=device), torch.arange(width, device=device)
        grid = torch.stack(torch.meshgrid(self._rows, self._columns, indexing="ij"))
        self._of_queries = pack(grid[None], Parity.NONANCHOR)[0].flatten(1)  # [row and column, h·w/2]

    def __getitem__(self, queries: slice) -> Tensor:
        """Bool [queries, h·w/2]."""
        row, column = self._of_queries[:, queries, None]
        rows, columns = (row - self._rows).abs() <= self._radius, (column - self._columns).abs() <= self._radius
        return pack((rows[:, :, None] & columns[:, None, :])[:, None], Parity.ANCHOR).flatten(1)


def blocks_of_queries(count: int) -> Iterator[slice]:
    """The twin's blocks. They are the same in any batch: a matrix product's rounding depends on its size."""
    return (slice(first, first + BLOCK_QUERIES) for first in range(0, count, BLOCK_QUERIES))


def weights_of(queries: Tensor, keys: Tensor, near: Tensor | None) -> Tensor:
    """Softmax over the keys of one head: queries [W, n], keys [W, m], near bool [n, m] or None → [n, m]."""
    scores = matmul(queries.t() * queries.shape[0] ** -0.5, keys)
    if near is not None:
        scores = torch.where(near, EXCLUDED, scores)
    return F.softmax(scores, dim=1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, near: Near | None) -> Tensor:
    """Queries [B, D, n], keys and values [B, D, m] → [B, D, n]."""
    width = queries.shape[1] // heads
    # nothing else is kept between blocks: what is small and kept would split the memory that the next one needs whole
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    for item, head in itertools.product(range(queries.shape[0]), range(heads)):
        channels = slice(head * width, (head + 1) * width)
        query, key, value = queries[item, channels], keys[item, channels], values[item, channels]
        for block in blocks_of_queries(query.shape[1]):
            weights = weights_of(query[:, block], key, None if near is None else near[block])
            out[item, channels, block] = matmul(weights, value.t()).t()
    return out


# Contexts of the published models within a slice and between slices, and heads of more than one tile.
_AOT_SHAPES = ((16, True), (32, False), (64, False), (80, True))


def aot_configs(kernel: Any, gradients: bool = False) -> list[Any]:
    """Rows of AOT_CONFIGS of one kernel: float32 maps whose positions lie side by side."""
    rows = []
    for width, checkerboard in _AOT_SHAPES:
        constants = {**_options(width, gradients), "CHECKERBOARD": checkerboard}
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        constants |= {"stride_ql": 1, "stride_kl": 1, "stride_vl": 1, "stride_gl": 1}
        known = {name: constants[name] for name in kernel.arg_names if name in constants}
        names = [name for name in kernel.arg_names if name not in known]
        signature = {name: "*fp32" if name.endswith("_ptr") else "fp32" if name == "scale" else "i32" for name in names}
        rows.append((kernel, signature, known, options))
    return rows


AOT_CONFIGS = aot_configs(_softmax_attention_kernel)
