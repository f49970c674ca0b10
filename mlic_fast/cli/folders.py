# SPDX-License-Identifier: Apache-2.0
"""Which file of a folder becomes which file of another, and which of them are done already."""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from mlic_fast.cli.common import CommandError
from mlic_fast.cli.record import TIME_STEP_NS, Record

Existing = Literal["update", "skip", "overwrite"]

# Reasons for making a file that need not be told.
EXPECTED = {"missing", "asked for"}


@dataclass(frozen=True)
class Task:
    """One file to make: from source, at target."""

    source: Path
    target: Path


@dataclass
class Plan:
    """What is in a folder: files to make, in a fixed order, and what was left out.

    problems: files and folders that cannot be read, with the reason. others: files of other kinds, hidden ones
    not counted. links: links to folders, which are not followed. renamed: files that keep their own ending in front
    of the new one, since others would have got the same name.
    """

    tasks: list[Task] = field(default_factory=list)
    problems: list[tuple[Path, Exception]] = field(default_factory=list)
    others: int = 0
    links: int = 0
    renamed: int = 0


def check_folders(source: str, target: str, ending: str, *, apart: bool) -> None:
    """Raise CommandError for a target that cannot be a folder, and OSError for a source that cannot be read.

    ending: of the files to make. A folder is hardly meant to have it.
    apart: whether the target must not be the source, or around it, because outputs could replace what is there.
    """
    if target == "-":
        raise CommandError(f"{source} is a folder, which does not fit into standard output: name a folder with -o")
    if Path(target).exists() and not Path(target).is_dir():
        raise CommandError(f"{source} is a folder, so {target}, which is a file, cannot be the output: name a folder")
    if not Path(target).exists() and Path(target).suffix.lower() == ending:
        raise CommandError(f"{source} is a folder, and {target} looks like the name of a file: name a folder with -o")
    inside, around = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if apart and (inside == around or around in inside.parents):
        raise CommandError(
            f"{target} is or holds the folder {source}, so decoded pictures could take the place of originals: "
            "name another folder"
        )
    os.scandir(source).close()


def plan(source: Path, target: Path, ending: str, is_wanted: Callable[[str], bool]) -> Plan:
    """Look through a folder and all that are in it.

    ending: of the files to make, ".mlic". is_wanted: tells from a file's name whether it is to be taken.
    The target may lie inside the source and is left out then. Hidden files and folders are left out as well. Links to
    files are taken as files; links to folders are not followed, so that no loop is walked.
    """
    found = Plan()
    names: list[PurePath] = []
    own = os.path.realpath(target)

    def unreadable(error: OSError) -> None:
        found.problems.append((Path(error.filename or source), error))

    for place, folders, files in os.walk(source, onerror=unreadable):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            if (here / name).is_symlink():
                found.links += 1  # os.walk does not follow it
            elif os.path.realpath(here / name) == own:
                folders.remove(name)
        for name in sorted(files):
            if name.startswith("."):
                continue
            if is_wanted(name):
                names.append((here / name).relative_to(source))
            else:
                found.others += 1
    targets, found.renamed = _targets(names, ending, target)
    found.tasks = [Task(source / name, target / goal) for name, goal in zip(names, targets, strict=True)]
    return found


def why_made(
    task: Task,
    existing: Existing,
    *,
    replaceable: bool,
    record: Record | None = None,
    other_model: Callable[[Path], bool] = lambda target: False,
) -> str | None:
    """Why a file is to be made: "missing", "asked for", or what has changed; None: it is done.

    existing: "overwrite": all are made. "skip": those that are missing. "update": also those whose source, model or
        options are not those that the record says. Of files that the record does not know, those that are older than
        their source or that another model made.
    replaceable: whether "update" may replace an older target that the record does not know; otherwise that raises
        FileExistsError.
    other_model: tells of a file that is there whether another model made it.

    Raises OSError for a source that is missing or no file, and for a target that is a folder or the source itself.
    """
    source = task.source.stat()
    if not stat.S_ISREG(source.st_mode):
        raise OSError(f"{task.source} is a pipe, socket or device, not a file: copy it to a file first")
    try:
        target = task.target.stat()
    except FileNotFoundError:
        return "missing"
    if stat.S_ISDIR(target.st_mode):
        raise IsADirectoryError(f"{task.target}, which is to be written, is a folder: rename or move it")
    if os.path.samestat(source, target):
        raise FileExistsError(f"{task.target} is a link to {task.source} itself, which would be lost: remove it")
    if existing == "overwrite":
        return "asked for"
    if existing == "skip":
        return None
    known = None if record is None else record.why_anew(task.source, task.target, source, target)
    if known is not None:
        return known or None
    if target.st_mtime_ns >= source.st_mtime_ns - TIME_STEP_NS:
        return "made with another model" if other_model(task.target) else None
    if not replaceable:
        raise FileExistsError(
            f"{task.target} is there and older than {task.source}: it may be an original, so it is replaced only "
            "with --overwrite (and left alone with --skip)"
        )
    return "the picture has changed"


def _targets(names: list[PurePath], ending: str, folder: Path) -> tuple[list[PurePath], int]:
    """A different name with the ending for each name, and how many had to keep their own ending for it.

    Raises CommandError where only upper and lower case tell names apart and the file system does not.
    """
    goals = [name.with_suffix(ending) for name in names]
    kept: set[int] = set()
    while True:
        # a name kept whole may meet another again: a.png next to a.jpg and a.png.tif
        again = {index for group in _meeting(goals) for index in group} - kept
        if not again:
            break
        kept |= again
        for index in again:
            goals[index] = names[index].with_name(names[index].name + ending)
    twins = list(_meeting(goals))
    if twins and _ignores_case(folder):
        first, second, *_ = (names[index] for index in twins[0])
        raise CommandError(
            f"{first} and {second} would become one file, since {folder} does not tell upper from lower case: "
            "rename one of them"
        )
    return goals, len(kept)


def _meeting(goals: Iterable[PurePath]) -> Iterable[list[int]]:
    """Groups of indexes whose names are equal to a file system that ignores case and composition."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, goal in enumerate(goals):
        groups[unicodedata.normalize("NFC", str(goal)).casefold()].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _ignores_case(folder: Path) -> bool:
    """Whether the file system that a folder is on, or will be made on, takes "a" and "A" for one name."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".mlic-fast-", suffix="-a") as probe:
        return Path(probe.name[:-1] + "A").exists()
