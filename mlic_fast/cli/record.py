# SPDX-License-Identifier: Apache-2.0
"""What was made in a folder, and of what: a hidden file beside the outputs, so that a later run knows what is done.

A line of JSON for each file: its name, the source's name, size and time, its own size and time, and the settings it was
made with. Each of several processes writes a file of its own, and reads all. What the record does not know, because it
is older or somebody else's, is judged by its time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mlic_fast.output import write_whole

PREFIX = ".mlic-fast-record"

# Some file systems keep times to two seconds.
TIME_STEP_NS = 2 * 10**9

_MAX_BYTES = 2**30  # of a record that is read


@dataclass(frozen=True)
class Entry:
    """One file that was made. source, target: relative names with "/". settings: what else it depends on."""

    target: str
    source: str
    source_size: int
    source_time: int
    size: int
    time: int
    settings: Mapping[str, Any]
    written: int


class Record:
    """The record of a folder of outputs.

    source, target: the folders. settings: of this run, values that JSON can hold. rank: of this process.
    """

    def __init__(self, source: Path, target: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._source, self._target = source, target
        self._settings = dict(settings)
        self._own = target / f"{PREFIX}-{rank}.jsonl"
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        for path in sorted(target.glob(f"{PREFIX}-*.jsonl")):
            self._read(path)

    def why_anew(self, source: Path, target: Path, status: os.stat_result, made: os.stat_result) -> str | None:
        """Why a file that is there is to be made anew: "" for no reason; None where the record does not know the file.

        status: of the source; made: of the target.
        """
        entry = self._entries.get(self._name(self._target, target))
        if entry is None or (entry.size, entry.time) != (made.st_size, made.st_mtime_ns):
            return None
        if entry.source != self._name(self._source, source):
            return "made of another picture"
        if entry.source_size != status.st_size or abs(entry.source_time - status.st_mtime_ns) > TIME_STEP_NS:
            return "the picture has changed"
        keys = entry.settings.keys() | self._settings.keys()
        other = sorted(key for key in keys if entry.settings.get(key) != self._settings.get(key))
        if "model" in other:
            return "made with another model"
        return f"made with other options ({', '.join(other)})" if other else ""

    def note(self, source: Path, target: Path, status: os.stat_result) -> None:
        """Write down that the target was made of the source, which had this status. Raises OSError."""
        made = target.stat()
        entry = Entry(
            target=self._name(self._target, target),
            source=self._name(self._source, source),
            source_size=status.st_size,
            source_time=status.st_mtime_ns,
            size=made.st_size,
            time=made.st_mtime_ns,
            settings=self._settings,
            written=time.time_ns(),
        )
        line = json.dumps(vars(entry)) + "\n"
        with self._lock:
            self._entries[entry.target] = entry
            with self._own.open("a", encoding="utf-8") as file:
                file.write(line)

    def left_over(self, targets: Iterable[Path]) -> list[Path]:
        """Files of earlier runs, as they were made, that this run makes under another name or not at all."""
        wanted = {self._name(self._target, target) for target in targets}
        found = []
        for name, entry in sorted(self._entries.items()):
            if name in wanted:
                continue
            path = self._target / name
            try:
                status = path.stat()
            except OSError:
                continue
            if (status.st_size, status.st_mtime_ns) == (entry.size, entry.time):
                found.append(path)
        return found

    def compact(self) -> None:
        """Write this process's file anew if it has several lines about one output. Raises OSError."""
        try:
            lines = self._own.read_bytes().splitlines()
        except OSError:
            return
        mine = {entry.target: line for line in lines if (entry := _entry_of(line)) is not None}
        if len(mine) < len(lines):
            write_whole(self._own, b"".join(line + b"\n" for line in mine.values()))

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES)
        except OSError:
            return
        for line in content.splitlines():
            entry = _entry_of(line)
            if entry is None:
                continue
            known = self._entries.get(entry.target)
            if known is None or known.written <= entry.written:
                self._entries[entry.target] = entry

    @staticmethod
    def _name(folder: Path, path: Path) -> str:
        name: PurePath = path.relative_to(folder)
        return name.as_posix()


def _entry_of(line: bytes) -> Entry | None:
    """The entry of a line; None for one that is not whole, or of another release."""
    try:
        entry = Entry(**json.loads(line))
    except (TypeError, ValueError):
        return None
    numbers = (entry.source_size, entry.source_time, entry.size, entry.time, entry.written)
    texts = (entry.target, entry.source)
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
        return None
    inside = not Path(entry.target).is_absolute() and ".." not in Path(entry.target).parts
    return entry if inside and isinstance(entry.settings, dict) else None
