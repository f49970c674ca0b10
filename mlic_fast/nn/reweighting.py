# SPDX-License-Identifier: Apache-2.0
"""Context reweighting of MLICv2: attention between the channels of a context, weighed by the whole map."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.compute.precision import KeepsFloat32, conv, matmul
from mlic_fast.nn.gate import ChannelNorm, gate_layers


class ContextGate(KeepsFloat32):
    """x [B, D, h, w] times its gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = gate_layers(channels, conv)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.net(x)
        return out


class Reweighting(KeepsFloat32):
    """A context [B, D, h, w] → the same shape.

    After CompressAI's reading of the paper (arXiv 2504.19119), with its parameter names.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.queries = conv(channels, channels, 1)
        self.keys = conv(channels, channels, 1)
        self.values = conv(channels, channels, 1)
        self.proj = conv(channels, channels, 1)
        self.out_norm = ChannelNorm(channels)
        self.gate = ContextGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(x)
        queries, keys, values = (f(normalised).flatten(2) for f in (self.queries, self.keys, self.values))
        # sums over all positions that only the root of their number divides: what float32 loses in them would grow
        # with the picture, and the softmax takes the difference of large ones
        scores = matmul(queries.double(), keys.double().transpose(1, 2)) * queries.shape[2] ** -0.5
        weights = torch.softmax(scores, dim=2).to(values.dtype)  # [B, D, D]
        out = self.out_norm(self.proj(matmul(weights, values).view_as(x)))
        result: Tensor = x + out + self.gate(out)
        return result
