# SPDX-License-Identifier: Apache-2.0
"""Values derived from tensors, remembered for as long as PyTorch has not seen the tensors written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from mlic_fast.compute.private_torch import version_of

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class _State:
    """Identity, memory and version of a tensor; the weak reference tells it from a later one at the same address."""

    tensor: ref[Tensor]
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _State:
        return cls(ref(tensor), tensor.data_ptr(), version_of(tensor))

    def still_holds(self, tensor: Tensor) -> bool:
        if self.tensor() is not tensor or self.address != tensor.data_ptr():
            return False
        return self.version == version_of(tensor)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module and all in it: those of its state_dict, in some order, in less time.

    A model has a thousand, and they are looked at before every call.
    """
    tensors: list[Tensor] = []
    pending: list[nn.Module] = [module]
    while pending:
        one = pending.pop()
        tensors += [tensor for tensor in one._parameters.values() if tensor is not None]
        tensors += [tensor for tensor in one._buffers.values() if tensor is not None]
        pending += [child for child in one._modules.values() if child is not None]
    return tensors


class Derived(Generic[Value]):
    """One value for each owner, computed again when one of the tensors it came from has changed.

    Writing through `.data` escapes PyTorch's version counters and so is not noticed: call `forget`. Owners are
    held weakly. Threads may ask at once: at worst the value is computed twice.
    """

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[Any, tuple[list[_State], Value]] = WeakKeyDictionary()

    def get(self, owner: Any, tensors: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        tensors = list(tensors)
        remembered = self._values.get(owner)
        if remembered is not None and len(remembered[0]) == len(tensors):
            states, value = remembered
            if all(state.still_holds(tensor) for state, tensor in zip(states, tensors, strict=True)):
                return value
        states = [_State.of(tensor) for tensor in tensors]
        value = compute()
        self._values[owner] = (states, value)
        return value

    def put(self, owner: Any, tensors: Iterable[Tensor], value: Value) -> None:
        """Remember a value that is known already."""
        self._values[owner] = ([_State.of(tensor) for tensor in tensors], value)

    def forget(self, owner: Any) -> None:
        """Compute the owner's value anew at the next request."""
        self._values.pop(owner, None)

    def clear(self) -> None:
        """Forget every owner's value."""
        self._values.clear()
