# SPDX-License-Identifier: Apache-2.0
"""Between the networks and the coders: what a walk over the slices yields for each pass, and what it is sent.

A pass is one parity of one slice of y, anchors before non-anchors. Its maps are packed [B, C, h, w/2], contiguous, in
coding order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from torch import Tensor

from mlic_fast.checkerboard import Parity, pack

# A walk yields a pass's scales; then, when it is resumed, its means. It is sent the pass's decoded values, goes on to
# the next pass's scales, and returns ŷ [B, M, h, w]. It enters no context: whether gradients are recorded and autocast
# is off is up to whoever drives it, which is `mlic_fast.entropy.coders.code` as a rule.
Walk = Generator[Tensor, Any, Tensor]


def send(walk: Walk, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Send a walk the decoded values of a pass: the next pass's scales and None, or None and ŷ after the last."""
    try:
        return walk.send(values), None
    except StopIteration as end:
        return None, end.value


def passes(y: Tensor, slice_num: int) -> Iterator[Tensor]:
    """y [B, M, h, w] → its values in the order of the passes."""
    for y_slice in y.chunk(slice_num, dim=1):
        for parity in Parity:
            yield pack(y_slice, parity)
