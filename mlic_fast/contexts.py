# SPDX-License-Identifier: Apache-2.0
"""The members of the family as a table: the contexts of each, what the entropy parameters of a pass are told by them.

The walk as written down, the compiled walk, the widths of the entropy parameters and the table of shapes read it. No
torch: checkpoints are recognised without it.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from mlic_fast.errors import ConfigError

# What files, configurations and options call the members of the family.
Architecture = Literal["mlicpp", "mlic", "mlic+", "mlicv2"]

# How a context is computed; its module stands in mlic_fast.nn.network under this and the context's name.
Form = Literal["windows", "stack", "linear attention", "softmax attention", "convolutions"]


class Source(Enum):
    """What a context is computed from."""

    DECODED = "the slices before this one"  # known before the slice: such a context feeds both of its passes
    ANCHORS = "this slice's anchors"  # known after the first pass: feeds the non-anchors alone, like the next
    PREVIOUS_AND_ANCHORS = "the slice before this one, and this slice's anchors"


class Context(NamedTuple):
    """A context that each slice from `first` on has, as the module `name`[slice]; width in units of C."""

    name: str
    form: Form
    width: int
    first: int
    source: Source


class Member(NamedTuple):
    """A member of the family: its name for people, its published size, and its contexts.

    contexts: in the order of the entropy parameters' inputs, after which come the hyper-parameters.
    """

    title: str
    N: int
    M: int
    slice_num: int
    contexts: tuple[Context, ...]


_WINDOWS = Context("local_context", "windows", 2, 0, Source.ANCHORS)
_STACK = Context("local_context", "stack", 2, 0, Source.ANCHORS)
_LINEAR_INTRA = Context("global_intra_context", "linear attention", 2, 1, Source.PREVIOUS_AND_ANCHORS)
_LINEAR_INTER = Context("global_inter_context", "linear attention", 2, 1, Source.DECODED)
_SOFTMAX_INTRA = _LINEAR_INTRA._replace(form="softmax attention")
_SOFTMAX_INTER = _LINEAR_INTER._replace(form="softmax attention")
_CHANNEL = Context("channel_context", "convolutions", 4, 1, Source.DECODED)

# A member stands before those whose tensors have the same names and shapes: weights that do not say are its.
FAMILY: dict[Architecture, Member] = {
    "mlicpp": Member("MLIC++", 192, 320, 10, (_WINDOWS, _LINEAR_INTRA, _LINEAR_INTER, _CHANNEL)),
    "mlic+": Member("MLIC+", 192, 320, 10, (_WINDOWS, _SOFTMAX_INTRA, _SOFTMAX_INTER, _CHANNEL)),
    "mlic": Member("MLIC", 192, 192, 6, (_STACK, _SOFTMAX_INTRA, _CHANNEL)),
}


def member_of(architecture: str) -> Member:
    """The member of the family with this name. Raises ConfigError where there is none."""
    for name, member in FAMILY.items():
        if name == architecture:
            return member
    raise ConfigError(f"architecture must be one of {', '.join(FAMILY)}, not {architecture!r:.80}")


def contexts_of(architecture: str) -> tuple[Context, ...]:
    """All contexts of a member, in the order of the entropy parameters' inputs. Raises ConfigError."""
    return member_of(architecture).contexts


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


def inputs_of(architecture: str, slice_number: int) -> Inputs:
    """The contexts that this slice of a member has. Raises ConfigError."""
    own = [context for context in contexts_of(architecture) if context.first <= slice_number]
    return Inputs(
        within=tuple(context for context in own if context.source is not Source.DECODED),
        before=tuple(context for context in own if context.source is Source.DECODED),
    )


def width_of(contexts: tuple[Context, ...], slice_width: int) -> int:
    """Channels of these contexts side by side; slice_width: C."""
    return sum(context.width for context in contexts) * slice_width
