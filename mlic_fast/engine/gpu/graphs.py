# SPDX-License-Identifier: Apache-2.0
"""Running the parts of a call: as they stand, or recorded once as CUDA graphs and replayed.

A call's work on the device is an iterator each of whose steps is a part: it reads and writes tensors which stay where
they are, and gives nothing. A recorded part is replayed without Python: same kernels, same addresses.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import torch

from mlic_fast.compute.private_torch import end_allocation_to
from mlic_fast.errors import DeviceError

Parts = Iterator[None]
# Begins the work anew. While it is being recorded it is run twice.
Start = Callable[[], Parts]


class Recording(Protocol):
    """The parts of one call that were recorded."""

    nbytes: int  # of device memory that it keeps, besides the program's own buffers

    def replay(self) -> Parts:
        """The parts once more, each on the current stream of the program's device."""
        ...


class Recorder(Protocol):
    """What recording takes, on one device. Any thread may use it."""

    def record(self, start: Start) -> Recording:
        """Record the parts in order and keep nothing of the iterator alive.

        Whatever it raises, nothing stays in the state of being recorded.
        """
        ...

    def mark(self) -> Any:
        """A point in the current stream, behind all that is in it so far."""
        ...

    def wait(self, mark: Any) -> None:
        """Let the current stream wait for a mark; for everything on the device if it is None."""
        ...

    def finish(self, mark: Any) -> None:
        """Wait here until a mark is reached; until everything is done if it is None."""
        ...

    def give_back_memory(self) -> None:
        """Return memory that nobody uses to the device."""
        ...

    def memory(self) -> int:
        """Bytes of the device's memory."""
        ...


class CudaRecorder:
    """Records parts as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: set[int] = set()  # those that living recordings were made on

    def record(self, start: Start) -> Recording:
        with torch.cuda.device(self._device):
            current, stream = torch.cuda.current_stream(), self._unused_stream()
            pool = torch.cuda.graph_pool_handle()
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    # kernels are compiled and libraries set up before: neither is possible while recording
                    count = sum(1 for _ in start())
                    stream.synchronize()
                    parts = start()
                    graphs = [_capture(parts, pool) for _ in range(count)]
                    del parts
            finally:
                current.wait_stream(stream)
            recording = CudaRecording(graphs, _bytes_of_pool(pool))
            self._streams.add(stream.cuda_stream)
            weakref.finalize(recording, self._streams.discard, stream.cuda_stream)
        return recording

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, mark: torch.cuda.Event | None) -> None:
        if mark is None:
            torch.cuda.synchronize(self._device)
        else:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: torch.cuda.Event | None) -> None:
        if mark is None:
            torch.cuda.synchronize(self._device)
        else:
            mark.synchronize()

    def give_back_memory(self) -> None:
        torch.cuda.empty_cache()

    def memory(self) -> int:
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    def _unused_stream(self) -> torch.cuda.Stream:
        # PyTorch hands out the same few streams again and again, and cuBLAS's scratch memory belongs to a stream: two
        # recordings made on one would write to the same scratch memory when they are replayed at once.
        for _ in range(64):
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if stream.cuda_stream not in self._streams:
                return stream
        raise DeviceError("as many calls are recorded as there are streams: nothing more is recorded")


class CudaRecording:
    """Graphs of one program's parts."""

    def __init__(self, graphs: list[Any], nbytes: int) -> None:
        self._graphs, self.nbytes = graphs, nbytes

    def replay(self) -> Parts:
        for graph in self._graphs:
            graph.replay()
            yield


def _capture(parts: Parts, pool: Any) -> Any:
    graph = torch.cuda.CUDAGraph()
    try:
        # other threads may allocate and copy meanwhile
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # type: ignore[no-untyped-call]
        next(parts)
        graph.capture_end()  # type: ignore[no-untyped-call]
    except BaseException:
        if torch.cuda.is_current_stream_capturing():
            # What was begun must be ended, also when it has failed already. Then PyTorch stops before it takes leave of
            # the pool, without which its allocator would go on as if recording were under way.
            with suppress(RuntimeError):
                graph.capture_end()  # type: ignore[no-untyped-call]
            end_allocation_to(pool)
        raise
    return graph


def _bytes_of_pool(pool: Any) -> int:
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == tuple(pool))
