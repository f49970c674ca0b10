# SPDX-License-Identifier: Apache-2.0
"""Frozen model configuration, the widths derived from it, and what makes one valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlic_fast.contexts import Architecture, Member, member_of
from mlic_fast.contexts import Variant as Variant
from mlic_fast.errors import ConfigError

# The widest configuration that is accepted. It bounds what a hostile weights file can make
# us allocate; the published model has N=192, M=320.
MAX_CHANNELS = 4096

# Channels of one head of the global attention between slices: heads = channels // 32.
HEAD_WIDTH = 32

# Pictures are padded to multiples of this many pixels a side: 16 by g_a, 4 more by h_a.
PADDING_UNIT = 64

# Side of the local context's windows.
WINDOW = 5

# What a model is trained for: the distortion in its loss.
LossMetric = Literal["mse", "ms-ssim"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model of the family. The defaults are those of the published MLIC++; `published` has the others'.

    N: channels of the transforms and of z.
    M: channels of the latent y.
    slice_num: number of channel slices of y; must divide M.
    context_window: side of the local attention's window; the architecture's is 5 and no other.
    variant: "new" (weights since April 2024) or "old" (released before: another start of
        the synthesis transform and other latent residual predictions) of MLIC++; "new" (CompressAI's form) or
        "guided" (ours, see docs/mlicv2.md) of MLICv2; "new" of the others.
    architecture: which member of the family, see mlic_fast.contexts: "mlicpp" (MLIC++) and so on.

    Raises ConfigError at construction for what the architecture does not allow.
    """

    N: int = 192
    M: int = 320
    slice_num: int = 10
    context_window: int = WINDOW
    variant: Variant = "new"
    architecture: Architecture = "mlicpp"

    def __post_init__(self) -> None:
        title = self.member.title
        for name in ("N", "M", "slice_num", "context_window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if max(self.N, self.M) > MAX_CHANNELS:
            raise ConfigError(f"N={self.N}, M={self.M}: at most {MAX_CHANNELS} channels are supported")
        if self.M % self.slice_num:
            raise ConfigError(f"slice_num={self.slice_num} does not divide M={self.M}")
        if self.context_window != WINDOW:
            raise ConfigError(f"context_window={self.context_window}: the local context has {WINDOW}×{WINDOW} windows")
        if self.M % 2:
            raise ConfigError(f"M={self.M} must be even: the hyper synthesis has 3M/2 channels")
        if self.slice_width % 2:
            raise ConfigError(f"slice width M/slice_num={self.slice_width} must be even: the contexts have two heads")
        if self.slice_width % 4 and any(context.form == "rotated windows" for context in self.member.contexts):
            raise ConfigError(
                f"slice width M/slice_num={self.slice_width} must be a multiple of 4: {title}, variant {self.variant}, "
                "turns pairs of channels of two heads"
            )
        inter = [context for context in self.member.contexts if context.name == "global_inter_context"]
        for index in range(inter[0].first if inter else self.slice_num, self.slice_num):
            dim = index * self.slice_width
            heads = dim // HEAD_WIDTH
            if heads == 0 or dim % heads:
                raise ConfigError(
                    f"{title}, M={self.M}, slice_num={self.slice_num}: the global context of slice {index} has {dim} "
                    f"channels, which do not split into {heads} heads (at least {HEAD_WIDTH} channels, divisible by "
                    f"channels // {HEAD_WIDTH}); slice widths that are multiples of {HEAD_WIDTH} always work"
                )

    @property
    def slice_width(self) -> int:
        """Channels of one slice of y, C = M / slice_num."""
        return self.M // self.slice_num

    @property
    def member(self) -> Member:
        """The member of the family. Raises ConfigError for an architecture or a variant that there is not."""
        return member_of(self.architecture, self.variant)

    @classmethod
    def published(cls, architecture: Architecture) -> ModelConfig:
        """The member's published size. Raises ConfigError for an architecture that there is not."""
        member = member_of(architecture)
        return cls(N=member.N, M=member.M, slice_num=member.slice_num, architecture=architecture)

    @classmethod
    def from_object(cls, config: Any, architecture: Architecture | None = None) -> ModelConfig:
        """Read the official configuration object (anything with N, M, slice_num, context_window).

        A mapping with these keys works too. `variant` is optional and defaults to "new"; so is `architecture`, which
        the official object lacks.
        architecture: which one is wanted; None: any, "mlicpp" where the object does not say.
        Raises ConfigError if the configuration is another member's, or if an attribute is missing or not allowed.
        """
        found = config if isinstance(config, cls) else cls._from_attributes(config, architecture or "mlicpp")
        if architecture is not None and found.architecture != architecture:
            raise ConfigError(
                f"a configuration of {member_of(architecture).title} is wanted, this is one of {found.member.title}: "
                f"set its architecture to {architecture!r}"
            )
        return found

    @classmethod
    def _from_attributes(cls, config: Any, architecture: Architecture) -> ModelConfig:
        get = config.get if hasattr(config, "get") else lambda name, default=None: getattr(config, name, default)
        values = {name: get(name, None) for name in ("N", "M", "slice_num", "context_window")}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise ConfigError(f"the configuration has no {', '.join(missing)}")
        return cls(
            **values,
            variant=get("variant", None) or "new",
            architecture=get("architecture", None) or architecture,
        )
