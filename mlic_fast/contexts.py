# SPDX-License-Identifier: Apache-2.0
"""The contexts of the entropy model as a table: what the entropy parameters of a pass are told, and from where.

The walk as written down, the compiled walk, the widths of the entropy parameters and the table of shapes read it. No
torch: checkpoints are recognised without it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Source(Enum):
    """What a context is computed from."""

    DECODED = "the slices before this one"  # known before the slice: such a context feeds both of its passes
    ANCHORS = "this slice's anchors"  # known after the first pass: feeds the non-anchors alone, like the next
    PREVIOUS_AND_ANCHORS = "the slice before this one, and this slice's anchors"


class Context(NamedTuple):
    """A context that each slice from `first` on has, as the module `name`[slice]; width in units of C."""

    name: str
    width: int
    first: int
    source: Source


# In the order of the entropy parameters' inputs, after which come the hyper-parameters.
CONTEXTS = (
    Context("local_context", 2, 0, Source.ANCHORS),
    Context("global_intra_context", 2, 1, Source.PREVIOUS_AND_ANCHORS),
    Context("global_inter_context", 2, 1, Source.DECODED),
    Context("channel_context", 4, 1, Source.DECODED),
)


class Inputs(NamedTuple):
    """The contexts of one slice, in the order of the entropy parameters' inputs."""

    within: tuple[Context, ...]  # of the slice itself: inputs of the non-anchors' entropy parameters alone
    before: tuple[Context, ...]  # of the slices before it: inputs of both passes'

    @property
    def anchors(self) -> tuple[Context, ...]:
        """What feeds the anchors."""
        return self.before

    @property
    def nonanchors(self) -> tuple[Context, ...]:
        """What feeds the non-anchors."""
        return self.within + self.before


def inputs_of(slice_number: int) -> Inputs:
    """The contexts that this slice has."""
    own = [context for context in CONTEXTS if context.first <= slice_number]
    return Inputs(
        within=tuple(context for context in own if context.source is not Source.DECODED),
        before=tuple(context for context in own if context.source is Source.DECODED),
    )


def width_of(contexts: tuple[Context, ...], slice_width: int) -> int:
    """Channels of these contexts side by side; slice_width: C."""
    return sum(context.width for context in contexts) * slice_width
