# SPDX-License-Identifier: Apache-2.0
"""Values derived from tensors, remembered for as long as PyTorch has not seen the tensors written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class _State:
    """Identity, memory and version of a tensor; the weak reference tells it from a later one at the same address."""

    tensor: ref[Tensor]
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _State:
        # inference tensors count no versions
        return cls(ref(tensor), tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)

    def still_holds(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self == _State.of(tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and (self.address, self.version) == (other.address, other.version)


class Remembered(Generic[Value]):
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

    def forget(self, owner: Any) -> None:
        """Compute the owner's value anew at the next request."""
        self._values.pop(owner, None)
