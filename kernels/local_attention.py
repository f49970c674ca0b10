# SPDX-License-Identifier: Apache-2.0
"""Attention in overlapping 5×5 windows, the convolution over each window and the projection, at the non-anchors.

For every position l the 25 positions i of its window attend to the 25 positions j of the same window:
    score(i, j) = q_i·k_j / √(C/2) + table[offset(i, j), head] + (0 if i and j are anchors inside the map, else −100)
    out(l) = proj(fusion over i of Σ_j softmax_j(score(i, j))·v_j)
with zero vectors for q, k and v outside the map. Channel c of q, k and v is element c // 2 of head c % 2;
the fusion's input channel is head·C/2 + element.

One launch does it all: a program holds the keys and values of a few windows in registers, and the product with the
fusion's weights is taken query by query, so that neither windows nor scores are ever written. (A copy of the
fusion's weights in another order is the only other launch.) Slices of more than 64 channels have too many outputs for
one program: there each program computes the attention anew for a block of the fusion's outputs, with products outside
of the tensor cores, which so few windows would leave idle; the projection is a third launch. A query that is no
anchor has the same mask for all keys, which the softmax cancels: only anchors' scores are masked. Called by
mlic_fast.ops.local_attention, whose backward pass takes what the fusion reads (local_attention_rows) for a few rows
at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack
from mlic_fast.compute.precision import conv2d, linear, matmul
from mlic_fast.compute.triton_language import tl, triton
from mlic_fast.config import WINDOW

HEADS = 2
AREA = WINDOW**2
REACH = WINDOW // 2

# Added to the score of a pair of positions of which one is not an anchor inside the picture.
MASKED = -100.0


# Of products on tensor cores: three TF32 products for each float32 one.
PRECISION = "tf32x3"

# Elements of a head times windows of a program: what its warps can hold in registers, with the keys of each window.
_HELD = 128
_WARPS = 8

# Outputs of the fusion that a program has, where their product with the projection's weights fits as well.
_MOST_OUTPUTS = 128
_SOME_OUTPUTS = 64
_PROJECTION_TILES = {"BLOCK_N": 32, "BLOCK_O": 64, "BLOCK_K": 32, "num_warps": 4}

# Arguments of kernels that depend on the batch. Triton would compile for their values (multiples of 16, 1), and an
# image must get the same code in any batch.
BATCHED = ["count", "stride_qb"]

# The keys of a window, as the power of 2 that Triton's tiles need.
_KEYS = 32


@triton.jit
def windows_of(first, last, count, height, half, BLOCK_P: tl.constexpr):
    """Windows of this program → number in [B, last − first, half], whether there is one, b, row, column."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = (n // half) % (last - first) + first
    return n, n < count, n // half // (last - first), row, 2 * (n % half) + row % 2


@triton.jit
def read_keys(
    part_ptr, live, row, column, height, width, stride_c, stride_h, stride_w,
    HEAD: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One head's k or v at the windows' positions, [BLOCK_E, windows, KEYS], zero outside of the map."""
    key = tl.arange(0, KEYS)
    element = tl.arange(0, BLOCK_E)
    key_row = row[:, None] + (key // 5 - 2)[None, :]
    key_column = column[:, None] + (key % 5 - 2)[None, :]
    inside = live[:, None] & (key < 25)[None, :] & (key_row >= 0) & (key_row < height)
    inside = inside & (key_column >= 0) & (key_column < width)
    at = (key_row * stride_h + key_column * stride_w)[None, :, :] + ((2 * element + HEAD) * stride_c)[:, None, None]
    return tl.load(part_ptr + at, mask=inside[None, :, :] & (element < E)[:, None, None], other=0.0), inside


@triton.jit
def read_query(
    q_ptr, i, live, row, column, height, width, stride_c, stride_h, stride_w, scale,
    HEAD: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One head's scaled q at position i of the windows, [BLOCK_E, windows], and whether it lies inside of the map."""
    element = tl.arange(0, BLOCK_E)
    query_row = row + (i // 5 - 2)
    query_column = column + (i % 5 - 2)
    inside = live & (query_row >= 0) & (query_row < height) & (query_column >= 0) & (query_column < width)
    at = (query_row * stride_h + query_column * stride_w)[None, :] + ((2 * element + HEAD) * stride_c)[:, None]
    return tl.load(q_ptr + at, mask=inside[None, :] & (element < E)[:, None], other=0.0) * scale, inside


@triton.jit
def weigh(query, query_inside, keys, keys_inside, i, table_ptr, HEAD: tl.constexpr, KEYS: tl.constexpr):
    """Softmax over the keys of query i, [windows, KEYS]."""
    key = tl.arange(0, KEYS)
    # in a non-anchor's window the anchors are at odd distances
    key_anchor = keys_inside & ((key // 5 + key % 5) % 2 == 1)[None, :]
    query_anchor = query_inside & ((i // 5 + i % 5) % 2 == 1)
    offset = (i // 5 - key // 5 + 4) * 9 + (i % 5 - key % 5 + 4)
    bias = tl.load(table_ptr + offset * 2 + HEAD, mask=key < 25, other=0.0)
    scores = tl.sum(query[:, :, None] * keys, axis=0) + bias[None, :]
    scores = tl.where(query_anchor[:, None] & (key_anchor == 0), scores - 100.0, scores)
    scores = tl.where((key < 25)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit(do_not_specialize=BATCHED)
def _local_attention_kernel(
    qkv_ptr,
    table_ptr,
    fusion_ptr,  # [25, 2C, C]
    fusion_bias_ptr,
    proj_ptr,  # [2C out, 2C in]
    proj_bias_ptr,
    out_ptr,  # where a program has a block of outputs, the fusion's result
    count,
    height,
    half,
    scale,
    stride_qb,
    stride_qc,
    stride_qh,
    stride_qw,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_O: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    E: tl.constexpr = C // 2
    OUT: tl.constexpr = 2 * C
    n, live, b, row, column = windows_of(0, height, count, height, half, BLOCK_P)
    picture_ptr = qkv_ptr + (b * stride_qb)[None, :]
    element = tl.arange(0, BLOCK_E)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    output_ok = output < OUT
    # products take 16 columns at least: each window has several alike
    ALIKE: tl.constexpr = 16 // BLOCK_P
    if BLOCK_O >= OUT:
        fused = tl.zeros((BLOCK_O, 16), tl.float32)
    else:
        shares = tl.zeros((BLOCK_P, BLOCK_O, BLOCK_E), tl.float32)
    for head in tl.static_range(2):
        keys, keys_inside = read_keys(
            picture_ptr[:, :, None] + C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        values, _ = read_keys(
            picture_ptr[:, :, None] + 2 * C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        for i in range(25):
            query, query_inside = read_query(
                picture_ptr, i, live, row, column, height, 2 * half,
                stride_qc, stride_qh, stride_qw, scale, head, E, BLOCK_E,
            )  # fmt: skip
            weights = weigh(query, query_inside, keys, keys_inside, i, table_ptr, head, KEYS)
            attended = tl.sum(weights[None, :, :] * values, axis=2)
            fusion = tl.load(
                fusion_ptr + i * OUT * C + output[:, None] * C + (head * E + element)[None, :],
                mask=output_ok[:, None] & (element < E)[None, :],
                other=0.0,
            )
            if BLOCK_O >= OUT:
                alike = tl.broadcast_to(attended[:, :, None], (BLOCK_E, BLOCK_P, ALIKE))
                fused += tl.dot(fusion, tl.reshape(alike, (BLOCK_E, 16)), input_precision=PRECISION)
            else:
                shares += fusion[None, :, :] * tl.trans(attended)[:, None, :]
    fusion_bias = tl.load(fusion_bias_ptr + output, mask=output_ok, other=0.0)
    if BLOCK_O >= OUT:
        proj = tl.load(
            proj_ptr + output[:, None] * OUT + output[None, :], mask=output_ok[:, None] & output_ok[None, :], other=0.0
        )
        out = tl.dot(proj, fused + fusion_bias[:, None], input_precision=PRECISION)
        out += tl.load(proj_bias_ptr + output, mask=output_ok, other=0.0)[:, None]
        copy = tl.arange(0, 16)
        n = tl.program_id(0).to(tl.int64) * BLOCK_P + copy // ALIKE
        once = (n < count) & (copy % ALIKE == 0)
        tl.store(out_ptr + n[None, :] * OUT + output[:, None], out, mask=once[None, :] & output_ok[:, None])
    else:
        out = tl.sum(shares, axis=2) + fusion_bias[None, :]
        tl.store(out_ptr + n[:, None] * OUT + output[None, :], out, mask=live[:, None] & output_ok[None, :])


@triton.jit(do_not_specialize=BATCHED)
def _projection_kernel(
    fused_ptr,  # [count, OUT]
    proj_ptr,
    proj_bias_ptr,
    out_ptr,
    count,
    OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    n_ok, output_ok = n < count, output < OUT
    out = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for start in range(0, OUT, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_ok = k < OUT
        fused = tl.load(fused_ptr + n[:, None] * OUT + k[None, :], mask=n_ok[:, None] & k_ok[None, :], other=0.0)
        proj = tl.load(
            proj_ptr + output[None, :] * OUT + k[:, None], mask=output_ok[None, :] & k_ok[:, None], other=0.0
        )
        out += tl.dot(fused, proj, input_precision=PRECISION)
    out += tl.load(proj_bias_ptr + output, mask=output_ok, other=0.0)[None, :]
    tl.store(out_ptr + n[:, None] * OUT + output[None, :], out, mask=n_ok[:, None] & output_ok[None, :])


@triton.jit(do_not_specialize=BATCHED)
def _local_attention_rows_kernel(
    qkv_ptr,
    table_ptr,
    attended_ptr,  # [C, 25, count]
    first,
    last,
    count,
    height,
    half,
    scale,
    stride_qb,
    stride_qc,
    stride_qh,
    stride_qw,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    KEYS: tl.constexpr,
):
    E: tl.constexpr = C // 2
    n, live, b, row, column = windows_of(first, last, count, height, half, BLOCK_P)
    picture_ptr = qkv_ptr + (b * stride_qb)[None, :]
    element = tl.arange(0, BLOCK_E)
    for head in tl.static_range(2):
        keys, keys_inside = read_keys(
            picture_ptr[:, :, None] + C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        values, _ = read_keys(
            picture_ptr[:, :, None] + 2 * C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        for i in range(25):
            query, query_inside = read_query(
                picture_ptr, i, live, row, column, height, 2 * half,
                stride_qc, stride_qh, stride_qw, scale, head, E, BLOCK_E,
            )  # fmt: skip
            weights = weigh(query, query_inside, keys, keys_inside, i, table_ptr, head, KEYS)
            attended = tl.sum(weights[None, :, :] * values, axis=2)
            plane = ((head * E + element) * 25 + i).to(tl.int64)
            at = attended_ptr + n[None, :] + (plane * count)[:, None]
            tl.store(at, attended, mask=live[None, :] & (element < E)[:, None])


def tiles(channels: int) -> dict[str, int]:
    """Constants of the kernels' tiles for slices of C channels."""
    block_e = max(16, triton.next_power_of_2(channels // HEADS))
    return {
        "C": channels,
        "BLOCK_P": max(1, _HELD // block_e),
        "BLOCK_E": block_e,
        "KEYS": _KEYS,
        "num_warps": _WARPS if block_e < _HELD else 2 * _WARPS,
    }


def output_block(channels: int) -> int:
    """How many of the fusion's 2C outputs a program has, as a power of 2: all, or where they are too many, some."""
    outputs = max(16, triton.next_power_of_2(2 * channels))
    if outputs <= _MOST_OUTPUTS:
        return outputs
    return _SOME_OUTPUTS


def local_attention(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """qkv [B, 3C, h, w] with any strides, parameters contiguous, all float32 → [B, h, w/2, 2C]."""
    batch, channels, height, width = qkv.shape
    constants = tiles(channels // 3)
    outputs, block = fusion_weight.shape[0], output_block(channels // 3)
    out = torch.empty(batch, height, width // 2, outputs, dtype=qkv.dtype, device=qkv.device)
    count = batch * height * width // 2
    with torch.cuda.device_of(qkv):
        _local_attention_kernel[(triton.cdiv(count, constants["BLOCK_P"]), triton.cdiv(outputs, block))](
            qkv,
            position_table,
            fusion_weight.permute(2, 3, 0, 1).contiguous(),
            fusion_bias,
            proj_weight,
            proj_bias,
            out,
            count,
            height,
            width // 2,
            (channels // 3 // HEADS) ** -0.5,
            *qkv.stride(),
            **constants,
            BLOCK_O=block,
            PRECISION=PRECISION,
        )
        if block >= outputs:
            return out
        projected = torch.empty_like(out)
        sizes = _PROJECTION_TILES
        # not PyTorch's product, whose rounding depends on the size of the batch
        _projection_kernel[(triton.cdiv(count, sizes["BLOCK_N"]), triton.cdiv(outputs, sizes["BLOCK_O"]))](
            out, proj_weight, proj_bias, projected, count, OUT=outputs, PRECISION=PRECISION, **sizes
        )
    return projected


def local_attention_rows(qkv: Tensor, position_table: Tensor, first: int, last: int, attended: Tensor) -> None:
    """Write what the fusion reads for the windows of rows first ≤ row < last: [C, 25, B, last − first, w/2]."""
    batch, channels, height, width = qkv.shape
    constants = tiles(channels // 3)
    count = batch * (last - first) * width // 2
    with torch.cuda.device_of(qkv):
        _local_attention_rows_kernel[(triton.cdiv(count, constants["BLOCK_P"]),)](
            qkv,
            position_table,
            attended,
            first,
            last,
            count,
            height,
            width // 2,
            (channels // 3 // HEADS) ** -0.5,
            *qkv.stride(),
            **constants,
        )


def relative_position_index() -> Tensor:
    """int64 [AREA, AREA]: row of the position table for query i and key j of a window."""
    row, column = (grid.flatten() for grid in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
    rows = row[:, None] - row[None, :] + WINDOW - 1
    columns = column[:, None] - column[None, :] + WINDOW - 1
    return rows * (2 * WINDOW - 1) + columns


def window_mask(height: int, width: int, like: Tensor) -> Tensor:
    """[height·width, AREA, AREA], dtype and device as `like`: 0 where query and key are both anchors, else MASKED."""
    row = torch.arange(height, device=like.device)[:, None]
    column = torch.arange(width, device=like.device)[None, :]
    anchors = ((row + column) % 2).to(like.dtype)[None, None]
    anchor_in_window = F.unfold(anchors, WINDOW, padding=REACH)[0].transpose(0, 1)  # [positions, AREA]
    pairs = anchor_in_window[:, :, None] * anchor_in_window[:, None, :]
    return torch.where(pairs == 0, MASKED, 0.0).to(like.dtype)


def local_attention_full(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """All positions by the official operators: [B, h·w, 2C], of use at non-anchors only.

    Arguments as of `local_attention`; `mask` is `window_mask` of the same size, computed here if it is not given.
    """
    batch, channels, height, width = qkv.shape
    channels //= 3
    positions, head_width = height * width, channels // HEADS
    if mask is None:
        mask = window_mask(height, width, qkv)
    windows = F.unfold(qkv, WINDOW, padding=REACH).transpose(1, 2)  # [B, positions, 3C·AREA]
    # channel = element · HEADS + head
    windows = windows.reshape(batch, positions, 3, head_width, HEADS, AREA)
    query, key, value = windows.permute(2, 0, 1, 4, 5, 3)  # each [B, positions, HEADS, AREA, head width]
    bias = position_table[relative_position_index().to(qkv.device).flatten()]
    bias = bias.view(AREA, AREA, HEADS).permute(2, 0, 1).contiguous()
    scores = matmul(query * head_width**-0.5, key.transpose(-2, -1))
    scores = scores + bias
    scores = scores + mask[:, None]
    attended = matmul(F.softmax(scores, dim=-1), value)  # [B, positions, HEADS, AREA, head width]
    attended = attended.transpose(2, 3).reshape(batch * positions, WINDOW, WINDOW, channels).permute(0, 3, 1, 2)
    fused = conv2d(attended, fusion_weight, fusion_bias, [1, 1], [0, 0])
    return linear(fused.reshape(batch, positions, 2 * channels), proj_weight, proj_bias)


def local_attention_ref(
    qkv: Tensor,
    position_table: Tensor,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Twin of `local_attention`: the official operators at all positions, then the non-anchors of the result."""
    batch, _, height, width = qkv.shape
    full = local_attention_full(qkv, position_table, fusion_weight, fusion_bias, proj_weight, proj_bias)
    maps = full.transpose(1, 2).reshape(batch, -1, height, width)
    return pack(maps, Parity.NONANCHOR).permute(0, 2, 3, 1).contiguous()


def aot_configs(kernel: Any, *widths: int, **constants: Any) -> list[Any]:
    """Rows of AOT_CONFIGS of one kernel for slices of these widths: float32 maps whose columns lie side by side."""
    rows = []
    for width in widths:
        options = {"num_warps": tiles(width)["num_warps"]}
        known = {**tiles(width), **constants, "BLOCK_O": output_block(width), "stride_qw": 1}
        known = {name: value for name, value in known.items() if name in kernel.arg_names}
        names = [name for name in kernel.arg_names if name not in known]
        signature = {name: "*fp32" if name.endswith("_ptr") else "fp32" if name == "scale" else "i32" for name in names}
        rows.append((kernel, signature, known, options))
    return rows


def _projection_config(width: int) -> Any:
    names = ("fused_ptr", "proj_ptr", "proj_bias_ptr", "out_ptr", "count")
    constants = {"OUT": 2 * width, "PRECISION": PRECISION, **_PROJECTION_TILES}
    options = {"num_warps": constants.pop("num_warps")}
    return _projection_kernel, {name: "*fp32" if name != "count" else "i32" for name in names}, constants, options


AOT_CONFIGS = [
    *aot_configs(_local_attention_kernel, 32, 64, 96, 160, PRECISION=PRECISION),
    _projection_config(96),
    _projection_config(160),
    *aot_configs(_local_attention_rows_kernel, 32, 96, 160),
]
