# SPDX-License-Identifier: Apache-2.0
"""A folder of files from end to end: what is to be done, several in flight, progress, report, failures."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlic_fast.cli import common, folders
from mlic_fast.cli.record import Record
from mlic_fast.cli.shards import Shard
from mlic_fast.concurrent import IN_FLIGHT, work_through
from mlic_fast.errors import DeviceError, NoPicturesError
from mlic_fast.output import remove_abandoned, try_folder, write_whole

# The next file would fail as this one did.
_HOPELESS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}

# Between lines in a log; a terminal has a bar.
_LOG_SECONDS = 60.0

_NAMED = 5


@dataclass(frozen=True)
class Made:
    """What came of one file.

    content: to be written; pixels: of the picture; coded_bytes: of the compressed file; notes: what could not be kept.
    """

    content: bytes
    pixels: int
    coded_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Direction:
    """What distinguishes encoding a folder from decoding it.

    done: "encoded". ending: of the files made. is_wanted: tells from a name whether a file is taken.
    replaceable: whether a file that is older than its source, and that the record does not know, may be made anew
        without being asked for. wanted: what is_wanted takes, in words. settings: what files depend on beside their
        sources, for the record. other_model: tells of a file that is there whether another model made it.
    """

    done: str
    ending: str
    is_wanted: Callable[[str], bool]
    replaceable: bool
    wanted: str
    settings: Mapping[str, Any]
    other_model: Callable[[Path], bool] = lambda target: False


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that count where the input is a folder."""
    group = parser.add_argument_group("folders")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite",
        dest="existing",
        action="store_const",
        const="overwrite",
        help="make every file anew, also those that are there",
    )
    existing.add_argument(
        "--skip",
        dest="existing",
        action="store_const",
        const="skip",
        help="make those that are missing only, also where the source has changed",
    )
    parser.set_defaults(existing="update")
    group.add_argument(
        "--in-flight",
        type=common.positive,
        default=IN_FLIGHT,
        metavar="N",
        help="how many pictures to work on at once; each takes its own memory (default: %(default)s)",
    )


def run(
    options: argparse.Namespace,
    shard: Shard,
    direction: Direction,
    work: Callable[[Path], Made],
    model_name: str | None,
    device: str,
) -> None:
    """Make what is to be made of the folder options.input in the folder options.output, and report.

    shard: the part of the files that is this process's. work: makes one file's content from its source, in threads.
    model_name: for the report. device: on which `work` computes. Raises SomeFailedError, when all others are done, if
    files could not be made; NoPicturesError if the folder has nothing to make anything of; OSError where it makes no
    sense to go on (the disk is full).
    """
    source, target = Path(options.input), Path(options.output)
    with common.progress(f"looking through {source}"):
        found = folders.plan(source, target, direction.ending, direction.is_wanted)
        if not found.tasks and not found.problems:
            raise NoPicturesError(f"{source} holds no {direction.wanted}: name another folder")
        try_folder(target)
        record = Record(source, target, direction.settings, shard.rank)
        record.compact()
        progress = _Progress(found.problems if shard.rank == 0 else ())
        mine = shard.of(found.tasks)
        tasks = []
        anew: Counter[str] = Counter()
        for task in mine:
            try:
                why = folders.why_made(
                    task,
                    options.existing,
                    replaceable=direction.replaceable,
                    record=record,
                    other_model=direction.other_model,
                )
            except OSError as error:
                progress.failures.append((task.source, error))
                continue
            if why is not None:
                tasks.append(task)
                anew.update([why] if why not in folders.EXPECTED else [])
        skipped = len(mine) - len(tasks) - (len(progress.failures) - progress.unread)
        for folder in {task.target.parent for task in mine}:
            remove_abandoned(folder)

    def make(task: folders.Task) -> Made:
        # looked at first, so that a source which changes meanwhile is newer than what is made from it
        times = task.source.stat()
        made = work(task.source)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(task.target, made.content, (times.st_atime_ns, times.st_mtime_ns))
        record.note(task.source, task.target, times)
        return made

    from mlic_fast.compute.device import resolve_device, take_own_stream

    begin = partial(take_own_stream, resolve_device(device))
    title = f"{source}{f' ({shard})' if shard.count > 1 else ''}"
    try:
        with (
            contextlib.closing(work_through(make, tasks, options.in_flight, begin)) as results,
            progress.meter(len(tasks), title, shard) as advance,
        ):
            for task, result in zip(tasks, results, strict=True):
                progress.note(task, result)
                advance()
    except BaseException:
        print(f"mlic-fast: stopped; {progress.summary(direction.done)}", file=sys.stderr)
        print("Files are whole or not there: the same command goes on from here.", file=sys.stderr)
        for line in progress.failure_lines():
            print(line, file=sys.stderr)
        raise

    left_over = record.left_over(task.target for task in found.tasks) if shard.rank == 0 else []
    if left_over:
        common.warn(
            options,
            f"{len(left_over):,} files of earlier runs have no picture, or another name, now: "
            + ", ".join([*map(str, left_over[:_NAMED]), *["…"][: len(left_over) > _NAMED]]),
        )
    counts = {
        "already there": skipped,
        **{f"made anew, {why}": count for why, count in anew.items()},
        "with something that could not be kept": len(progress.notes),
        "other files left out": found.others,
        "links to folders not followed": found.links,
        "ending kept because names met": found.renamed,
        "failed": len(progress.failures),
    }
    facts = {
        "input": options.input,
        "output": options.output,
        "model": model_name,
        "shard": {"rank": shard.rank, "count": shard.count},
        **progress.facts(),
        "skipped": skipped,
        "redone": dict(anew),
        "left_over": [str(path) for path in left_over],
        "notes": [{"input": str(path), "notes": list(notes)} for path, notes in progress.notes],
        "others": found.others,
        "links": found.links,
        "renamed": found.renamed,
        "failures": [{"input": str(path), "error": common.message(error)} for path, error in progress.failures],
    }
    used = f" with {model_name}" if model_name else ""
    told = "; ".join(
        [f"{progress.summary(direction.done)}{used}", *(f"{what}: {n:,}" for what, n in counts.items() if n)]
    )
    common.report(options, facts, f"{title}: {told}")
    failure = None
    if progress.failures:
        failure = common.SomeFailedError("\n".join([f"failed: {len(progress.failures):,}", *progress.failure_lines()]))
    if shard.count > 1:
        # the list comes now and not when the last part is done
        if failure is not None:
            print(f"mlic-fast: {failure}", file=sys.stderr)
            failure = common.SomeFailedError(f"failed in {shard}: {len(progress.failures):,}, see above")
        if sys.stdout is not None:
            sys.stdout.flush()
        shard.wait_for_others()
    if failure is not None:
        raise failure


class _Progress:
    """Counts, and shows on standard error how far things are: a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, problems: Iterable[tuple[Path, Exception]]) -> None:
        self.failures = list(problems)
        self.unread = len(self.failures)
        self.notes: list[tuple[Path, tuple[str, ...]]] = []
        self._files = self._pixels = self._bytes = 0
        self._start = time.perf_counter()

    def note(self, task: folders.Task, result: Made | Exception) -> None:
        """Count a result. Raises it if it is an error that would come with every further file."""
        if isinstance(result, Made):
            self._files += 1
            self._pixels += result.pixels
            self._bytes += result.coded_bytes
            if result.notes:
                self.notes.append((task.source, result.notes))
            return
        if isinstance(result, OSError) and result.errno in _HOPELESS:
            raise result
        self.failures.append((task.source, result))

    @contextlib.contextmanager
    def meter(self, total: int, title: str, shard: Shard) -> Iterator[Callable[[], None]]:
        """Show progress within the block; what it gives is to be called after each file."""
        from tqdm import tqdm

        self._start = last = time.perf_counter()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        done = 0
        # several bars in one terminal would overwrite each other
        bar = tqdm(total=total, desc=title, unit=" files", disable=not terminal or shard.rank > 0, dynamic_ncols=True)

        def advance() -> None:
            nonlocal done, last
            done += 1
            if self.failures:
                bar.set_postfix_str(f"{len(self.failures)} failed", refresh=False)
            bar.update()
            now = time.perf_counter()
            if not terminal and now - last > _LOG_SECONDS:
                last = now
                text = tqdm.format_meter(done, total, now - self._start, prefix=title, unit=" files", ncols=0)
                print(text, file=sys.stderr, flush=True)

        with bar:
            yield advance

    def facts(self) -> dict[str, Any]:
        """Counts for programs."""
        return {
            "files": self._files,
            "pixels": self._pixels,
            "bytes": self._bytes,
            "bpp": 8 * self._bytes / self._pixels if self._pixels else None,
            "seconds": time.perf_counter() - self._start,
        }

    def summary(self, done: str) -> str:
        """Counts for people."""
        facts = self.facts()
        text = f"{done} {self._files:,} {'picture' if self._files == 1 else 'pictures'}"
        if self._files:
            text += (
                f", {self._pixels / 1e6:,.1f} megapixels, {self._bytes:,} bytes compressed, {facts['bpp']:.4f} bpp, "
                f"{facts['seconds']:.1f} s ({self._files / facts['seconds']:.2f} a second)"
            )
        return text

    def failure_lines(self) -> list[str]:
        """A line for each failure, and advice."""
        lines = []
        for path, error in self.failures:
            text = common.message(error)
            lines.append(f"  {text}" if str(path) in text else f"  {path}: {text}")
        if any(isinstance(error, (DeviceError, MemoryError)) for _, error in self.failures):
            lines.append("Fewer pictures at once take less memory: --in-flight 1")
        return lines
