# SPDX-License-Identifier: Apache-2.0
"""Inference compiled from a model's weights; `mlic_fast.nn` stays the model as it is written down.

The environment variable MLIC_FAST_ENGINE drops it if it is `off`; `on` is the default.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlic_fast.compute.backend import choose, is_named
from mlic_fast.compute.derived import Derived, tensors_of
from mlic_fast.engine.engine import Engine, Options, TransformType
from mlic_fast.errors import BackendError

if TYPE_CHECKING:
    from mlic_fast.nn.network import Network

__all__ = ["Engine", "Options", "TransformType", "engine_for", "forget_all_engines", "forget_engines"]

VARIABLE = "MLIC_FAST_ENGINE"

_log = logging.getLogger(__name__)


class _Engines:
    """A model's engines."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.possible = all(x.dtype == torch.float32 for x in tensors if x.is_floating_point())
        self.made: dict[Options, Engine] = {}


_engines: Derived[_Engines] = Derived()

# Engines of one model that are kept: each holds weights of its own.
_KEPT = 2


def engine_for(model: Network, options: Options | None = None) -> Engine | None:
    """The model's engine, compiled again when its weights have changed; None where the readable model is to be used.

    That is in training mode, on the plain path, with weights that are not float32, and with MLIC_FAST_ENGINE=off.
    Writing to weights through `.data` is not noticed: call the model's refresh(). Raises BackendError for another value
    of MLIC_FAST_ENGINE, ConfigError for options that there are not.
    """
    if not is_on():
        return _without(f"{VARIABLE} is off")
    if model.training:
        return _without("the model is in training mode: call its eval()")
    tensors = tensors_of(model)
    if tensors[0].device.type not in ("cpu", "cuda"):
        return _without(f"there is none for {tensors[0].device}")
    if choose(tensors[0]) == "torch":
        named = "is named" if is_named() else "runs: the official operators are asked for, or nothing else is there"
        return _without(f"the backend torch {named}")
    found = _engines.get(model, tensors, lambda: _Engines(tensors))
    if not found.possible:
        return _without("the weights are not all float32")
    options, engines = (options or Options()).settled(tensors[0].device), found.made
    engine = engines.get(options)
    if engine is None:
        engine = Engine(model, options)
        for other in list(engines)[: len(engines) - _KEPT + 1]:
            engines.pop(other, None)
        engines[options] = engine
    return engine


def forget_engines(model: Network) -> None:
    """Compile the model's engines again at their next use."""
    _engines.forget(model)


def forget_all_engines() -> None:
    """Compile every model's engines again at their next use."""
    _engines.clear()


def _without(reason: str) -> Engine | None:
    _log.info("the engine is not used: %s", reason)
    return None


def is_on() -> bool:
    """Whether the environment lets engines be used. Raises BackendError for a value that means nothing."""
    value = os.environ.get(VARIABLE) or "on"
    if value not in ("on", "off"):
        raise BackendError(f"{VARIABLE} is on or off, not {value!r}")
    return value == "on"
