# SPDX-License-Identifier: Apache-2.0
"""Softmax (quadratic) attention over all positions, and its checkerboard form with an exclusion window.

For each image and head, with queries Q, keys K, values V [W, L] (W channels of the head, L positions):

    score[i, j] = Σ_c Q[c, i] · K[c, j] / √W
    out[e, i]   = Σ_j softmax_j(score[i, j]) · V[e, j]    [W, L]

In the checkerboard form K and V are read at the anchors (row + column odd), Q at the non-anchors, and out is zero at
the anchors. There the score of a key whose row and column are both at most `radius` from the query's is EXCLUDED,
whatever they hold: what is that near, the local context has seen. Such keys stay in the softmax, so a query with no
others gets the plain mean of the values.

Called by mlic_fast.ops.softmax_attention; gradients are in softmax_attention_backward. Source: the global contexts of
MLIC and MLIC+ (arXiv 2211.07273), the exclusion after CompressAI's implementation of them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.precision import matmul

# Score of a key inside of the exclusion window.
EXCLUDED = -100.0

# Queries whose scores with all keys the twin holds at a time.
BLOCK_QUERIES = 128


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
        index = torch.arange(height * width // 2, device=device)
        self._radius, self._row = radius, index // (width // 2)
        first = 2 * (index % (width // 2))
        self._of_anchors = first + 1 - self._row % 2
        self._of_nonanchors = first + self._row % 2

    def __getitem__(self, queries: slice) -> Tensor:
        """Bool [queries, h·w/2]."""
        rows = (self._row[queries, None] - self._row).abs() <= self._radius
        return rows & ((self._of_nonanchors[queries, None] - self._of_anchors).abs() <= self._radius)


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
    pictures = []
    for picture in zip(queries, keys, values, strict=True):
        attended = []
        for query, key, value in zip(*(x.split(width) for x in picture), strict=True):
            rows = [
                matmul(weights_of(query[:, block], key, None if near is None else near[block]), value.t())
                for block in blocks_of_queries(query.shape[1])
            ]
            attended.append(torch.cat(rows).t())
        pictures.append(torch.cat(attended))
    return torch.stack(pictures)
