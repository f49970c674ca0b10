# SPDX-License-Identifier: Apache-2.0
"""Recorded programs of an engine: leased to one call at a time, kept within a bound of memory.

The environment variable MLIC_FAST_GRAPH_MEMORY is that bound for each device: bytes, or a number with KiB, MiB or GiB;
0 records nothing. The default is a quarter of the device's memory. The first call of a kind and shape runs as it
stands; the second records. Whoever finds nothing free runs as it stands too, so no call waits for another.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch

from mlic_fast.compute.device import is_memory_error
from mlic_fast.engine.gpu.graphs import Parts, Recorder, Recording, Start
from mlic_fast.errors import ConfigError

VARIABLE = "MLIC_FAST_GRAPH_MEMORY"

_log = logging.getLogger(__name__)

# Kinds and shapes of an engine that are remembered to have occurred.
_SEEN = 256

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Program(Protocol):
    """The work of a kind of call, and the buffers that it reads and writes."""

    start: Start | None  # None once it is recorded, so that a recording keeps no engine alive
    nbytes: int  # of device memory in its buffers


ProgramT = TypeVar("ProgramT", bound=Program)
Result = TypeVar("Result")
# What the host does with a program, its parts, and whether the next replay overwrites what they write.
Drive = Callable[[ProgramT, Parts, bool], Result]


class _Lease:
    """Exists for as long as a call uses an instance."""


class _RecordedProgram(Generic[ProgramT]):
    """A program that was recorded."""

    def __init__(self, program: ProgramT, recording: Recording, recorder: Recorder) -> None:
        self.program, self.recording, self._recorder = program, recording, recorder
        self.nbytes = recording.nbytes + program.nbytes
        self.used = 0  # when it was last leased, in leases
        self._mark = recorder.mark()  # behind the last call's work on the device; None: not known where that ends
        self._holder: ref[_Lease] | None = None

    @property
    def idle(self) -> bool:
        return self._holder is None or self._holder() is None

    def lease(self, used: int) -> _Lease:
        # An interrupt may strike anywhere. A lease that nobody holds any more is over, however it was lost.
        lease = _Lease()
        self._holder, self.used = ref(lease), used
        return lease

    def begin(self) -> None:
        mark, self._mark = self._mark, None
        self._recorder.wait(mark)

    def end(self) -> None:
        self._mark = self._recorder.mark()
        self._holder = None

    def __del__(self) -> None:
        # Its memory must not be used for anything else while the device is at work in it.
        try:  # noqa: SIM105  # at the interpreter's end there may be no `suppress` any more, nor a device
            self._recorder.finish(self._mark)
        except Exception:
            pass


class _EngineRecords:
    """What is known of one engine's calls."""

    def __init__(self) -> None:
        self.instances: dict[Hashable, list[_RecordedProgram[Any]]] = {}
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.refused: set[Hashable] = set()


class RecordedPrograms:
    """The recorded programs on one device. Threads may share it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        # engines are held weakly: with an engine go its instances
        self._engines: WeakKeyDictionary[Any, _EngineRecords] = WeakKeyDictionary()
        self._lock = threading.Lock()  # of the books, never held for long
        self._exclusive: ref[_Lease] | None = None  # of whoever records, or gives memory back
        self._leases = itertools.count(1)

    def call(self, engine: Any, key: Hashable, make: Callable[[], ProgramT], drive: Drive[ProgramT, Result]) -> Result:
        """drive(program, parts, replayed) with a recorded program of this engine and key, or a new one as it stands.

        make: a new program. drive: is called again, with a new program, if memory runs out the first time. Raises what
        they raise, ConfigError for a bound that cannot be understood.
        """
        try:
            return self._call(engine, key, make, drive)
        except Exception as error:
            if not _out_of_memory(error):
                raise
        # not in the handler: there the failed call's tensors would still be alive
        self.clear()
        return run_plain(make, drive)

    def clear(self) -> None:
        """Forget all recorded programs that are not in use, and return their memory to the device."""
        with self._lock:
            before = [books.instances for books in self._books()]
            for books in self._books():
                books.instances = {
                    key: [instance for instance in instances if not instance.idle]
                    for key, instances in books.instances.items()
                }
        before.clear()  # not under the lock: letting go of one may take long
        with self._lock:
            lease = self._take_exclusive()
        if lease is not None:  # while somebody records, memory cannot be given back
            self._recorder.give_back_memory()

    def nbytes(self) -> int:
        """Device memory that recorded programs keep."""
        with self._lock:
            return sum(instance.nbytes for _, _, instance in self._all())

    def count(self, idle: bool = False) -> int:
        """How many recorded programs there are, or how many of them are not in use."""
        with self._lock:
            return sum(1 for _, _, instance in self._all() if instance.idle or not idle)

    def _call(self, engine: Any, key: Hashable, make: Callable[[], ProgramT], drive: Drive[ProgramT, Result]) -> Result:
        found = self._find(engine, key, make)
        if found is None:
            return run_plain(make, drive)
        instance, _lease = found
        del found
        try:
            instance.begin()
            return drive(instance.program, instance.recording.replay(), True)
        finally:
            instance.end()

    def _find(
        self, engine: Any, key: Hashable, make: Callable[[], ProgramT]
    ) -> tuple[_RecordedProgram[ProgramT], _Lease] | None:
        bound = graph_memory(self._recorder)
        dropped: list[_RecordedProgram[Any]] = []  # until the lock is released: letting go of one may take long
        with self._lock:
            books = self._engines.setdefault(engine, _EngineRecords())
            if bound == 0 or key in books.refused:
                _log.debug("not recorded: %s", f"{VARIABLE} is 0" if bound == 0 else "it was tried in vain before")
                return None
            own = books.instances.get(key, [])
            for instance in own:
                if instance.idle:
                    return instance, instance.lease(next(self._leases))
            if key not in books.seen:
                books.seen[key] = None
                if len(books.seen) > _SEEN:
                    books.seen.popitem(last=False)
                return None
            if own and not self._make_room(own[0].nbytes, bound, dropped):
                return None
            exclusive = self._take_exclusive()
        dropped.clear()
        return None if exclusive is None else self._record(books, key, make, bound)

    def _take_exclusive(self) -> _Lease | None:
        """The right to record or to give memory back, or None if somebody has it. The lock is held."""
        if self._exclusive is not None and self._exclusive() is not None:
            return None
        lease = _Lease()
        self._exclusive = ref(lease)
        return lease

    def _record(
        self, books: _EngineRecords, key: Hashable, make: Callable[[], ProgramT], bound: int
    ) -> tuple[_RecordedProgram[ProgramT], _Lease] | None:
        try:
            program = make()
            assert program.start is not None  # it is new
            instance = _RecordedProgram(program, self._recorder.record(program.start), self._recorder)
            program.start = None
        except Exception as error:
            if _out_of_memory(error):
                raise
            books.refused.add(key)
            _log.info("a call could not be recorded: %s", error, exc_info=True)
            warnings.warn(
                f"a call could not be recorded and will be launched kernel by kernel, which is slower: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        dropped: list[_RecordedProgram[Any]] = []
        with self._lock:
            if not self._make_room(instance.nbytes, bound, dropped):
                if instance.nbytes > bound:
                    books.refused.add(key)  # recording it again would be in vain
                _log.info("a recording of %d bytes is not kept: %s allows for %d", instance.nbytes, VARIABLE, bound)
                return None
            lease = instance.lease(next(self._leases))
            books.instances.setdefault(key, []).append(instance)
            return instance, lease

    def _make_room(self, nbytes: int, bound: int, dropped: list[_RecordedProgram[Any]]) -> bool:
        """Drop what was not used for longest until so many bytes fit in; nothing that is in use. The lock is held."""
        used = sum(instance.nbytes for _, _, instance in self._all())
        idle = sorted((entry for entry in self._all() if entry[2].idle), key=lambda entry: entry[2].used)
        if used - sum(entry[2].nbytes for entry in idle) + nbytes > bound:
            return False
        for books, key, instance in idle:
            if used + nbytes <= bound:
                break
            books.instances[key].remove(instance)
            dropped.append(instance)
            used -= instance.nbytes
        return True

    def _books(self) -> list[_EngineRecords]:
        return list(self._engines.values())

    def _all(self) -> Iterator[tuple[_EngineRecords, Hashable, _RecordedProgram[Any]]]:
        for books in self._books():
            for key, instances in books.instances.items():
                for instance in instances:
                    yield books, key, instance


def run_plain(make: Callable[[], ProgramT], drive: Drive[ProgramT, Result]) -> Result:
    """drive with a new program as it stands."""
    program = make()
    assert program.start is not None  # it is new
    return drive(program, program.start(), False)


def graph_memory(recorder: Recorder) -> int:
    """Bytes that recorded programs may keep on a device. Raises ConfigError for a setting that means nothing."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return recorder.memory() // 4
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]iB)?", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{VARIABLE} is a number of bytes, or one with KiB, MiB or GiB such as 2GiB, not {text!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def _out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, torch.cuda.OutOfMemoryError) or is_memory_error(error) or "CUDA error: out of" in str(error)
    )
