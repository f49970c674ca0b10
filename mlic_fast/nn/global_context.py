# SPDX-License-Identifier: Apache-2.0
"""Global contexts: attention over all positions, between slices and within the current one.

Linear attention, MLIC++'s, is "efficient attention": softmax of the keys over the positions and of the queries over a
head's channels, so that keys · valuesᵀ is a small matrix and nothing of size positions² exists. Softmax attention,
MLIC's and MLIC+'s, compares every position with every other one. Parameters are the same.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.config import HEAD_WIDTH
from mlic_fast.contexts import Form
from mlic_fast.ops.linear_attention import checkerboard_linear_attention, linear_attention
from mlic_fast.ops.softmax_attention import checkerboard_softmax_attention, softmax_attention

INTRA_HEADS = 2

_ATTEND: dict[Form, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "linear attention": linear_attention,
    "softmax attention": softmax_attention,
}
_ATTEND_ACROSS: dict[Form, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "linear attention": checkerboard_linear_attention,
    "softmax attention": checkerboard_softmax_attention,
}


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """What makes queries, keys or values of a map: 1×1, then depth-wise 3×3."""
    return nn.Sequential(conv(in_channels, out_channels, 1), conv(out_channels, out_channels, 3, groups=out_channels))


def _perceptron(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels, hidden, 1),
        nn.GELU(),
        conv(hidden, hidden, 3, groups=hidden),
        nn.GELU(),
        conv(hidden, out_channels, 1),
    )


class GlobalInterContext(KeepsFloat32):
    """Decoded slices [B, D, h, w] → what they say of the next slice, [B, 2C, h, w]."""

    def __init__(self, channels: int, slice_width: int, attention: Form) -> None:
        super().__init__()
        self.attention: Form = attention
        out_channels = 2 * slice_width
        self.heads = channels // HEAD_WIDTH
        self.keys = projection(channels, channels)
        self.queries = projection(channels, channels)
        self.values = projection(channels, channels)
        self.reprojection = conv(channels, out_channels * 3 // 2, 5)
        self.mlp = _perceptron(out_channels * 3 // 2, out_channels * 2, out_channels)
        self.skip = conv(out_channels * 3 // 2, out_channels, 1)

    def forward(self, decoded: Tensor) -> Tensor:
        queries, keys, values = self.queries(decoded), self.keys(decoded), self.values(decoded)
        attention = self.reprojection(_ATTEND[self.attention](queries, keys, values, self.heads))
        out: Tensor = self.skip(attention) + self.mlp(attention)
        return out


class GlobalIntraContext(KeepsFloat32):
    """Previous slice [B, source, h, w] and anchors of the current one [B, C, h, w] → [B, 2C, h, w].

    Where the previous slice's anchors and non-anchors are alike, the current slice's values at
    the anchors tell of those at the non-anchors. Attended values are zero at the anchors.
    """

    def __init__(self, slice_width: int, attention: Form, source: int | None = None) -> None:
        """source: channels of what stands for the previous slice; None: it is one, of as many channels."""
        super().__init__()
        self.attention: Form = attention
        source = slice_width if source is None else source
        self.keys = projection(source, slice_width)
        self.queries = projection(source, slice_width)
        self.values = projection(slice_width, slice_width)
        self.reprojection = conv(slice_width, 2 * slice_width, 5)
        self.mlp = _perceptron(2 * slice_width, 4 * slice_width, 2 * slice_width)

    def forward(self, previous: Tensor, anchors: Tensor) -> Tensor:
        queries = self.queries(keep(previous, Parity.NONANCHOR))
        keys = self.keys(keep(previous, Parity.ANCHOR))
        values = self.values(anchors)
        attention = self.reprojection(_ATTEND_ACROSS[self.attention](queries, keys, values, INTRA_HEADS))
        out: Tensor = attention + self.mlp(attention)
        return out
