# SPDX-License-Identifier: Apache-2.0
"""Fused operations as operators of PyTorch, which autograd, torch.compile, fake tensors and recorders see.

torch.library.custom_op does the same and imports torch.compile's machinery at the first call: two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_LIBRARY = torch.library.Library("mlic_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


class Operator:
    """torch.ops.mlic_fast.<name>, computed by one annotated Python function on every device."""

    def __init__(self, name: str, function: Callable[..., Any], mutates: Sequence[str]) -> None:
        """mutates: names of the arguments that are written to. Autograd is not told of it."""
        self._name = f"mlic_fast::{name}"
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=mutates), tags=_TAGS)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        self._call = getattr(torch.ops.mlic_fast, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """What has the results' shapes and types, for tensors without memory."""
        torch.library.register_fake(self._name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """The gradients, as torch.library.register_autograd takes them."""
        torch.library.register_autograd(self._name, backward, setup_context=setup_context, lib=_LIBRARY)


def operator(name: str, *, mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an `Operator` of the function that it decorates, whose arguments and result are annotated."""
    return lambda function: Operator(name, function, mutates)
