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

# In which form: "new" of every member; "old" of MLIC++'s first release; "guided" of MLICv2 as we read the paper.
Variant = Literal["new", "old", "guided"]

# How a context is computed; its module stands in mlic_fast.nn.network under this and the context's name.
Form = Literal[
    "windows",
    "rotated windows",
    "stack",
    "linear attention",
    "softmax attention",
    "rotated and reweighted",
    "reweighted",
    "convolutions",
]


class Source(Enum):
    """What a context is computed from."""

    HYPER = "the hyper-parameters"  # known before everything: feeds the anchors alone
    DECODED = "the slices before this one"  # known before the slice: such a context feeds both of its passes
    ANCHORS = "this slice's anchors"  # known after the first pass: feeds the non-anchors alone, like the next
    PREVIOUS_AND_ANCHORS = "the slice before this one, and this slice's anchors"


class Context(NamedTuple):
    """A context that each slice from `first` to `last` has, as the module `name`[slice]; width in units of C.

    last: None: the last slice. Where the first slice has a context of the slice before it, the hyper-parameters stand
    for that one.
    """

    name: str
    form: Form
    width: int
    first: int
    source: Source
    last: int | None = None

    def has(self, slice_number: int) -> bool:
        """Whether this slice has the context."""
        return self.first <= slice_number and (self.last is None or slice_number <= self.last)


class Member(NamedTuple):
    """A member of the family: its name for people, its published size, and its contexts.

    contexts: in the order of the entropy parameters' inputs, after which come the hyper-parameters.
    variants: the forms that it has. token_mixing: whether g_a and g_s have pairs of mlic_fast.nn.token_mixing in the
    place of residual blocks. predictor: whether there are weights of mlic_fast.nn.selective.
    """

    title: str
    N: int
    M: int
    slice_num: int
    contexts: tuple[Context, ...]
    variants: tuple[Variant, ...] = ("new",)
    token_mixing: bool = False
    predictor: bool = False


_WINDOWS = Context("local_context", "windows", 2, 0, Source.ANCHORS)
_STACK = Context("local_context", "stack", 2, 0, Source.ANCHORS)
_LINEAR_INTRA = Context("global_intra_context", "linear attention", 2, 1, Source.PREVIOUS_AND_ANCHORS)
_LINEAR_INTER = Context("global_inter_context", "linear attention", 2, 1, Source.DECODED)
_SOFTMAX_INTRA = _LINEAR_INTRA._replace(form="softmax attention")
_SOFTMAX_INTER = _LINEAR_INTER._replace(form="softmax attention")
_CHANNEL = Context("channel_context", "convolutions", 4, 1, Source.DECODED)
_HYPER = Context("global_hyper_context", "linear attention", 2, 0, Source.HYPER, last=0)
_REFINED_INTRA = _LINEAR_INTRA._replace(form="rotated and reweighted")
_REFINED_INTER = _LINEAR_INTER._replace(form="rotated and reweighted")
_ROTATED_WINDOWS = _WINDOWS._replace(form="rotated windows")
_GUIDED_INTRA = _LINEAR_INTRA._replace(form="reweighted", first=0)
_REWEIGHTED_INTER = _LINEAR_INTER._replace(form="reweighted")

_MLICV2 = Member(
    title="MLICv2",
    N=192,
    M=320,
    slice_num=10,
    contexts=(_HYPER, _WINDOWS, _REFINED_INTRA, _REFINED_INTER, _CHANNEL),
    variants=("new", "guided"),
    token_mixing=True,
    predictor=True,
)

# A member stands before those whose tensors have the same names and shapes: weights that do not say are its.
FAMILY: dict[Architecture, Member] = {
    "mlicpp": Member(
        "MLIC++", 192, 320, 10, (_WINDOWS, _LINEAR_INTRA, _LINEAR_INTER, _CHANNEL), variants=("new", "old")
    ),
    "mlic+": Member("MLIC+", 192, 320, 10, (_WINDOWS, _SOFTMAX_INTRA, _SOFTMAX_INTER, _CHANNEL)),
    "mlic": Member("MLIC", 192, 192, 6, (_STACK, _SOFTMAX_INTRA, _CHANNEL)),
    "mlicv2": _MLICV2,
}

# A variant that has other contexts than the member's.
_READINGS: dict[tuple[str, str], Member] = {
    ("mlicv2", "guided"): _MLICV2._replace(
        contexts=(_ROTATED_WINDOWS, _GUIDED_INTRA, _REWEIGHTED_INTER, _CHANNEL), predictor=False
    )
}


def member_of(architecture: str, variant: Variant = "new") -> Member:
    """The member of the family with this name, in this variant. Raises ConfigError where there is none."""
    for name, member in FAMILY.items():
        if name == architecture:
            if variant not in member.variants:
                known = " and ".join(map(repr, member.variants))
                raise ConfigError(f"{member.title} has no variant {variant!r:.80}, only {known}")
            return _READINGS.get((name, variant), member)
    raise ConfigError(f"architecture must be one of {', '.join(FAMILY)}, not {architecture!r:.80}")


def contexts_of(architecture: str, variant: Variant = "new") -> tuple[Context, ...]:
    """All contexts of a member, in the order of the entropy parameters' inputs. Raises ConfigError."""
    return member_of(architecture, variant).contexts


class Inputs(NamedTuple):
    """The contexts of one slice, in the order of the entropy parameters' inputs."""

    hyper: tuple[Context, ...]  # of the hyper-parameters: inputs of the anchors' entropy parameters alone
    within: tuple[Context, ...]  # of the slice itself: inputs of the non-anchors' alone
    before: tuple[Context, ...]  # of the slices before it: inputs of both passes'

    @property
    def anchors(self) -> tuple[Context, ...]:
        """What feeds the anchors."""
        return self.hyper + self.before

    @property
    def nonanchors(self) -> tuple[Context, ...]:
        """What feeds the non-anchors."""
        return self.within + self.before


def inputs_of(architecture: str, slice_number: int, variant: Variant = "new") -> Inputs:
    """The contexts that this slice of a member has. Raises ConfigError."""
    own = [context for context in contexts_of(architecture, variant) if context.has(slice_number)]
    return Inputs(
        hyper=tuple(context for context in own if context.source is Source.HYPER),
        within=tuple(context for context in own if context.source not in (Source.HYPER, Source.DECODED)),
        before=tuple(context for context in own if context.source is Source.DECODED),
    )


def width_of(contexts: tuple[Context, ...], slice_width: int) -> int:
    """Channels of these contexts side by side; slice_width: C."""
    return sum(context.width for context in contexts) * slice_width
