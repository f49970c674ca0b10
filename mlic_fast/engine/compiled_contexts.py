# SPDX-License-Identifier: Apache-2.0
"""Which compiled class stands for which context's module."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlic_fast.engine.contexts import (
    CompiledChannelContext,
    CompiledInterContext,
    CompiledIntraContext,
    CompiledLocalContext,
    CompiledStackedLocalContext,
)
from mlic_fast.engine.refined_contexts import (
    CompiledHyperContext,
    CompiledRefinedInterContext,
    CompiledRefinedIntraContext,
)
from mlic_fast.nn.channel_context import ChannelContext
from mlic_fast.nn.global_context import GlobalInterContext, GlobalIntraContext
from mlic_fast.nn.hyper_context import HyperContext
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.nn.refined_context import RefinedContext
from mlic_fast.nn.stacked_context import StackedLocalContext

_COMPILED: dict[type[nn.Module], type[Any]] = {
    LocalContext: CompiledLocalContext,
    StackedLocalContext: CompiledStackedLocalContext,
    GlobalIntraContext: CompiledIntraContext,
    GlobalInterContext: CompiledInterContext,
    ChannelContext: CompiledChannelContext,
    HyperContext: CompiledHyperContext,
}
_REFINED: dict[type[nn.Module], type[Any]] = {
    GlobalIntraContext: CompiledRefinedIntraContext,
    GlobalInterContext: CompiledRefinedInterContext,
}


def compile_context(module: nn.Module) -> Any:
    """The compiled form of a context's module, which may be of a derived class."""
    classes, kind = (_REFINED, module.context) if isinstance(module, RefinedContext) else (_COMPILED, module)
    return next(compiled(module) for own, compiled in classes.items() if isinstance(kind, own))
