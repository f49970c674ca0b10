# SPDX-License-Identifier: Apache-2.0
"""Types of the compiled CPU kernels; mlic_fast.ops is their face and documents them.

Tensors come as addresses of contiguous memory, unless strides are given.
"""

from collections.abc import Sequence

def isa() -> str: ...
def local_attention(
    qkv: int,
    shape: Sequence[int],
    strides: Sequence[int],
    table: int,
    fusion_weight: int,
    fusion_bias: int,
    proj_weight: int,
    proj_bias: int,
    out: int,
    threads: int,
) -> None: ...
def local_attention_rows(
    qkv: int,
    shape: Sequence[int],
    strides: Sequence[int],
    table: int,
    first: int,
    last: int,
    attended: int,
    threads: int,
) -> None: ...
def local_attention_rows_backward(
    qkv: int,
    shape: Sequence[int],
    strides: Sequence[int],
    table: int,
    first: int,
    last: int,
    attended_grad: int,
    qkv_grad: int,
    table_grad: int,
    threads: int,
) -> None: ...

# A map [B, C, h, w]: address and strides in elements.
_Map = tuple[int, int, int, int, int]
_Shape = tuple[int, int, int, int]

def add_residual(values: _Map, logits: _Map, shape: _Shape, first: int, threads: int) -> None: ...
def softmax_attention(
    queries: _Map,
    keys: _Map,
    values: _Map,
    out: int,
    shape: _Shape,
    heads: int,
    checkerboard: bool,
    radius: int,
    threads: int,
) -> None: ...
def gdn(
    x: int,
    residual: int,
    y: int,
    batch: int,
    channels: int,
    positions: int,
    channels_last: bool,
    beta: int,
    gamma: int,
    inverse: bool,
    threads: int,
) -> None: ...
def gdn_backward(
    grad: int,
    x: int,
    dx: int,
    batch: int,
    channels: int,
    positions: int,
    channels_last: bool,
    bfloat16: bool,
    beta: int,
    gamma: int,
    dbeta: int,
    dgamma: int,
    inverse: bool,
    threads: int,
) -> None: ...

# A map [B, H, W, C]: batch, height, width, channels.
_TiledShape = tuple[int, int, int, int]

def winograd_convolve(
    pieces: list[tuple[int, int]],  # where each lies, and its rows
    shape: _TiledShape,
    coefficients: int,
    outputs: int,
    panel: int,
    bias: int,
    y: int,
    pad_rows: bool,
    gelu: bool,
    factor: int,
    threads: int,
) -> None: ...
def winograd_weights(x: int, shape: _TiledShape, grad: int, outputs: int, total: int, threads: int) -> None: ...
