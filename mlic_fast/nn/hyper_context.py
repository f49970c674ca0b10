# SPDX-License-Identifier: Apache-2.0
"""Global context of MLICv2's first slice, before which nothing is decoded but the hyper-parameters.

The abstract says that they guide it ("hyperprior-guided global correlation prediction", arXiv 2504.19119), not how.
This is CompressAI's reading, with its parameter names: a context of the anchors. Ours is the context within a slice
as the other slices have it, with the hyper-parameters in the place of the slice before: see
mlic_fast.nn.global_context.
"""

from __future__ import annotations

from torch import Tensor

from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.config import HEAD_WIDTH
from mlic_fast.nn.global_context import projection
from mlic_fast.nn.reweighting import ContextGate
from mlic_fast.ops.linear_attention import linear_attention


def heads_of(slice_width: int) -> int:
    """Heads of the attention for slices of C channels: C // 32 or fewer, at least one, a divisor of C."""
    return next(heads for heads in range(max(1, slice_width // HEAD_WIDTH), 0, -1) if slice_width % heads == 0)


class HyperContext(KeepsFloat32):
    """Hyper-parameters [B, 2M, h, w], of which the first half is looked at → [B, 2C, h, w].

    Anchors attend to non-anchors, and the reverse. Queries, keys and values of the other kind are what the layers make
    of zeros, values zero themselves; they take part all the same, and the two results are added up at every position.
    """

    def __init__(self, latent: int, slice_width: int) -> None:
        """latent: M; slice_width: C."""
        super().__init__()
        self.heads = heads_of(slice_width)
        self.queries = projection(latent, latent)
        self.keys = projection(latent, latent)
        self.hyper_values = projection(latent, latent)
        # of a form that takes values from the slice, which nothing uses; kept since files have its weights
        self.slice_values = conv(slice_width, latent, 1).requires_grad_(False)
        self.proj = conv(latent, 2 * slice_width, 3)
        self.gate = ContextGate(2 * slice_width)

    def forward(self, hyper: Tensor) -> Tensor:
        hyper = hyper.chunk(2, dim=1)[0]
        values = self.hyper_values(hyper)
        anchors, nonanchors = (
            linear_attention(
                self.queries(keep(hyper, asking)), self.keys(keep(hyper, asked)), keep(values, asked), self.heads
            )
            for asking, asked in ((Parity.ANCHOR, Parity.NONANCHOR), (Parity.NONANCHOR, Parity.ANCHOR))
        )
        context = self.proj(anchors + nonanchors)
        out: Tensor = context + self.gate(context)
        return out
