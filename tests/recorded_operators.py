# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CUDA graphs on the CPU: records the operators that parts call and runs them again, without Python.

As with a graph, tensors keep their places: what an operator returned when it was recorded is written again by each
replay, and what lives from one part to the next lives there. After recording everything that was computed is spoilt,
so that a replay which computes too little fails. Waiting for the device (`.item()`, bool of a tensor) is refused while
recording.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlic_fast.engine.gpu.graphs import Parts, Start

_REFUSED = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}


class _Operators(TorchDispatchMode):
    """Runs operators and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name().split(".")[0] in _REFUSED:
            raise RuntimeError(f"{func.name()} waits for the device: not permitted while recording")
        result = func(*args, **kwargs)
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        # views and what was written in place are where they were
        own = [x for x in tree_leaves(result) if isinstance(x, Tensor) and _place(x) not in given]
        self.calls.append((func, args, kwargs, own))
        return result


def _place(x: Tensor) -> Any:
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else id(x)


class OperatorRecording:
    """What was recorded of one program."""

    def __init__(self, parts: list[list[tuple[Any, Any, Any, list[Tensor]]]], nbytes: int) -> None:
        self._parts, self.nbytes = parts, nbytes
        self.on_run: Callable[[int], None] = lambda number: None

    def replay(self) -> Parts:
        for number, calls in enumerate(self._parts):
            self.on_run(number)
            for func, args, kwargs, own in calls:
                result = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
                for kept, new in zip(own, result[: len(own)], strict=True):
                    kept.copy_(new)
            yield


class OperatorRecorder:
    """A Recorder whose memory has a size and whose recordings can be made to fail."""

    def __init__(self, memory: int = 2**40, each: int = 2**20) -> None:
        self._memory, self._each = memory, each
        self.recordings: list[OperatorRecording] = []
        self.waited: list[Any] = []
        self.finished: list[Any] = []
        self.given_back = 0
        self.fail: Callable[[], None] = lambda: None
        self.on_run: Callable[[int], None] = lambda number: None
        self._marks = itertools.count(1)

    def record(self, start: Start) -> OperatorRecording:
        self.fail()
        count = sum(1 for _ in start())
        parts, calls = start(), []
        for _ in range(count):
            with _Operators() as operators:
                next(parts)
            calls.append(operators.calls)
        del parts
        for _, _, _, own in itertools.chain(*calls):
            for x in own:
                if x.is_floating_point() and x.layout == torch.strided:
                    x.fill_(float("nan"))
        recording = OperatorRecording(calls, self._each)
        recording.on_run = lambda number: self.on_run(number)
        self.recordings.append(recording)
        return recording

    def mark(self) -> int:
        return next(self._marks)

    def wait(self, mark: Any) -> None:
        self.waited.append(mark)

    def finish(self, mark: Any) -> None:
        self.finished.append(mark)

    def give_back_memory(self) -> None:
        self.given_back += 1

    def memory(self) -> int:
        return self._memory
