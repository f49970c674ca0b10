# SPDX-License-Identifier: Apache-2.0
"""Values derived from tensors, remembered for as long as the tensors have not been written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

Value = TypeVar("Value")


def _state(tensor: Tensor) -> tuple[int, int, int]:
    version = -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions
    return (id(tensor), tensor.data_ptr(), version)


class Remembered(Generic[Value]):
    """One value for each owner, computed again when one of the tensors it came from has changed.

    Owners are held weakly. Threads may ask at once: at worst the value is computed twice.
    """

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[Any, tuple[list[tuple[int, int, int]], Value]] = WeakKeyDictionary()

    def get(self, owner: Any, tensors: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        state = [_state(tensor) for tensor in tensors]
        remembered = self._values.get(owner)
        if remembered is not None and remembered[0] == state:
            return remembered[1]
        value = compute()
        self._values[owner] = (state, value)
        return value
