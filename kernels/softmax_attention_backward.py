# SPDX-License-Identifier: Apache-2.0
"""Gradients of softmax attention and of its checkerboard form.

With the names of softmax_attention, P the softmax over the keys and G the gradient of out, for each image and head:

    ∇V[e, j] = Σ_i P[i, j] · G[e, i]
    ∇score[i, j] = P[i, j] · (Σ_e G[e, i] · V[e, j] − Σ_e G[e, i] · out[e, i]), 0 where the key is excluded
    ∇Q[c, i] = Σ_j ∇score[i, j] · K[c, j] / √W,    ∇K[c, j] = Σ_i ∇score[i, j] · Q[c, i] / √W

Scores are computed again for some queries and keys at a time. Called by mlic_fast.ops.softmax_attention.
"""

import torch
from mlic_fast.kernels.softmax_attention import Near, blocks_of_queries, read_checkerboard, weights_of
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.precision import matmul


def backward_ref(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain: gradients of queries, keys and values [B, D, h, w] for grad [B, D, h, w], that of the result.

    Autograd would keep the softmaxes of all queries; here those of a block are computed again.
    """
    shape = queries.shape
    if not checkerboard:
        whole = _gradients(grad.flatten(2), queries.flatten(2), keys.flatten(2), values.flatten(2), heads, None)
        dq, dk, dv = (x.view(shape) for x in whole)
        return dq, dk, dv
    near = Near(shape[2], shape[3], radius, queries.device)
    queries, keys, values = read_checkerboard(queries, keys, values)
    packed = _gradients(pack(grad, Parity.NONANCHOR).flatten(2), queries, keys, values, heads, near)
    dq, dk, dv = (x.view(*shape[:3], shape[3] // 2) for x in packed)
    return unpack(dq, Parity.NONANCHOR), unpack(dk, Parity.ANCHOR), unpack(dv, Parity.ANCHOR)


def _gradients(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, heads: int, near: Near | None
) -> tuple[Tensor, Tensor, Tensor]:
    """For grad and queries [B, D, n], keys and values [B, D, m]: of queries, keys and values, contiguous."""
    width = queries.shape[1] // heads
    results = tuple(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (queries, keys, values))
    for picture in zip(grad, queries, keys, values, *results, strict=True):
        for g, q, k, v, dq, dk, dv in zip(*(x.split(width) for x in picture), strict=True):
            for block in blocks_of_queries(q.shape[1]):
                excluded = None if near is None else near[block]
                weights = weights_of(q[:, block], k, excluded)  # [block, m]
                dv += matmul(g[:, block], weights)
                dscores = matmul(g[:, block].t(), v)
                dscores = weights * (dscores - (weights * dscores).sum(dim=1, keepdim=True))
                if excluded is not None:
                    dscores = torch.where(excluded, 0.0, dscores)
                dscores *= width**-0.5
                dq[:, block] = matmul(k, dscores.t())
                dk += matmul(q[:, block], dscores)
    return results[0], results[1], results[2]
