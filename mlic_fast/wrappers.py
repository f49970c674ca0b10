# SPDX-License-Identifier: Apache-2.0
"""Models inside PyTorch's wrappers: torch.compile, DataParallel, DistributedDataParallel, AveragedModel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlic_fast.errors import NotAModelError

if TYPE_CHECKING:
    from mlic_fast.nn.network import Network

# class → where it keeps what it wraps
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}

# A wrapper of a wrapper, and so on: no more than anybody writes.
_DEEPEST = 8


def unwrapped(model: Any) -> Network:
    """The Network, MLICPlusPlus as a rule, in `model`, which is one or is wrapped.

    Coding needs its methods and its one set of weights.

    Raises NotAModelError, saying what to do, for anything else.
    """
    from mlic_fast.nn.network import Network

    inner, depth = model, 0
    while not isinstance(inner, Network):
        # by class and not by attribute: what only looks alike may hold its weights in another way
        attribute = next((_WRAPPERS[kind.__name__] for kind in type(inner).__mro__ if kind.__name__ in _WRAPPERS), None)
        if attribute is None or depth == _DEEPEST:
            raise NotAModelError(_refusal(inner, model))
        inner, depth = getattr(inner, attribute), depth + 1
    return inner


def _refusal(inner: Any, model: Any) -> str:
    import torch

    kind = type(inner).__name__
    place = kind if inner is model else f"{type(model).__name__} around {kind}"
    if isinstance(inner, dict):
        return "a dictionary is no model: MLICPlusPlus.from_state_dict(...) makes one of a state dict"
    if "FullyShardedDataParallel" in kind or "FSDP" in kind:
        return f"a model is wanted, not {place}, whose weights lie in parts in several processes: gather its state dict"
    if isinstance(inner, torch.nn.Module):
        return (
            f"a mlic_fast.MLICPlusPlus is wanted, not {place}: give the one that is inside, or make one with "
            "MLICPlusPlus.from_state_dict(model.state_dict())"
        )
    return f"a model is a mlic_fast.MLICPlusPlus, or the name or path of one, not {place}"
