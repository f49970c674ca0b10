# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast prepare-data`: a folder of training pictures from a folder of any pictures."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlic_fast.cli import common, folders

DESCRIPTION = (
    "Make training pictures of a folder and all that are in it: upright, 8 bits, sRGB, stored without loss. Sources "
    "that were compressed with loss (JPEG, MPO, JPEG 2000, AVIF, lossy WebP) are halved with an anti-aliasing filter "
    "(Lanczos), so that a model does not learn their artefacts. Small and broken pictures are left out."
)

EPILOG = """Grey becomes RGB, 16 bits become 8, alpha is left out, orientation and colour profiles are applied
(a profile that cannot be applied is dropped, with a note), CMYK goes through its profile. What a
picture loses (further frames, depth) is noted. Targets have the names and times of their sources.
Those that were made of the same source with the same options are skipped (hidden files in DST,
.mlic-fast-record-*, say so), so the same command goes on after it was stopped, with the same
result. Where names meet (a.jpg beside a.png), the ending of the source is kept: a.jpg.png. A
folder without any picture is an error (exit code 4).

examples:
  mlic-fast prepare-data photos training
  mlic-fast prepare-data photos training --format webp --min-side 512 --jobs 8 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("source", metavar="SRC", help="the folder with pictures")
    parser.add_argument("target", metavar="DST", help="the folder to write to; made if it is not there")
    parser.add_argument(
        "--min-side",
        type=common.positive_of(2**16),
        default=256,
        metavar="N",
        help="leave out what is smaller than this, after halving (default: %(default)s, so that a patch of that size "
        "fits; a JPEG file has to have 512 then)",
    )
    parser.add_argument(
        "--halve", choices=("lossy", "all", "none"), default="lossy", help="which sources (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=("png", "webp"),
        default="png",
        help="webp: without loss, about a quarter smaller, several times slower to make (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=common.positive, metavar="N", help="processes (default: one a processor)")
    parser.add_argument("--overwrite", action="store_true", help="make all anew, also what is there")
    common.add_limit_arguments(parser)
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Prepare; raises NoPicturesError, SomeFailedError when all others are done, CommandError, OSError."""
    from mlic_fast.cli.record import Record
    from mlic_fast.errors import NoPicturesError
    from mlic_fast.output import remove_abandoned, try_folder
    from mlic_fast.pictures.folder import picture_endings
    from mlic_fast.train.prepare import Outcome, Settings, prepare_all

    start = time.perf_counter()
    source, target = Path(options.source), Path(options.target)
    ending = f".{options.format}"
    folders.check_folders(options.source, options.target, ending, apart=True)
    endings = picture_endings()
    found = folders.plan(source, target, ending, lambda name: Path(name).suffix.lower() in endings)
    if not found.tasks and not found.problems:
        raise NoPicturesError(f"{source} holds no picture of a kind that is read: name another folder")
    record = Record(source, target, {"min_side": options.min_side, "halve": options.halve, "format": options.format})
    record.compact()
    failures = [(path, common.message(error)) for path, error in found.problems]
    tasks: list[folders.Task] = []
    anew: Counter[str] = Counter()
    there = 0
    for task in found.tasks:
        try:
            existing: folders.Existing = "overwrite" if options.overwrite else "update"
            why = folders.why_made(task, existing, replaceable=True, record=record)
        except OSError as error:
            failures.append((task.source, common.message(error)))
            continue
        if why is None:
            there += 1
        else:
            tasks.append(task)
            anew.update([why] if why not in folders.EXPECTED else [])
    for folder in {task.target.parent for task in found.tasks}:
        remove_abandoned(folder)

    try_folder(target)
    made: list[Outcome] = []
    small = 0
    notes: Counter[str] = Counter()
    with common.limits(options) as limits:
        settings = Settings(options.min_side, options.halve, options.format, limits)
        jobs = options.jobs or os.cpu_count() or 1
        outcomes = prepare_all([(task.source, task.target) for task in tasks], settings, jobs)
        for task, outcome in zip(tasks, _shown(outcomes, len(tasks)), strict=True):
            if outcome.status == "made":
                if outcome.times is not None:
                    record.note(task.source, task.target, outcome.times)
                made.append(outcome)
                notes.update(outcome.notes)
            elif outcome.status == "small":
                small += 1
            else:
                failures.append((outcome.source, outcome.error or ""))

    facts: dict[str, Any] = {
        "source": options.source,
        "target": options.target,
        "made": len(made),
        "halved": sum(outcome.halved for outcome in made),
        "pixels": sum(outcome.width * outcome.height for outcome in made),
        "bytes": sum(outcome.bytes for outcome in made),
        "already_there": there,
        "redone": dict(anew),
        "left_over": [str(path) for path in record.left_over(task.target for task in found.tasks)],
        "too_small": small,
        "others": found.others,
        "links": found.links,
        "renamed": found.renamed,
        "notes": dict(notes),
        "failures": [{"input": str(path), "error": error} for path, error in failures],
        "seconds": time.perf_counter() - start,
    }
    common.report(options, facts, "\n".join(_lines(facts)))
    if failures:
        lines = [text if str(path) in text else f"{path}: {text}" for path, text in failures]
        raise common.SomeFailedError("\n  ".join([f"left out, as they cannot be read: {len(failures):,}", *lines]))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{facts['source']}: made {facts['made']:,} pictures ({facts['halved']:,} of them halved), "
        f"{facts['pixels'] / 1e6:,.1f} megapixels, {facts['bytes']:,} bytes, {facts['seconds']:.1f} s"
    )
    counts = {
        "already there": facts["already_there"],
        **{f"made anew, {why}": count for why, count in facts["redone"].items()},
        "left over from earlier runs, without a picture or of another name": len(facts["left_over"]),
        "too small": facts["too_small"],
        "other files left out": facts["others"],
        "links to folders not followed": facts["links"],
        "ending kept because names met": facts["renamed"],
        **facts["notes"],
    }
    yield from (f"{what}: {count:,}" for what, count in counts.items() if count)


def _shown(outcomes: Iterable[Any], total: int) -> Iterator[Any]:
    """The outcomes, with a bar on standard error if it is a terminal."""
    from tqdm import tqdm

    shown = sys.stderr is not None and sys.stderr.isatty()
    yield from tqdm(outcomes, total=total, unit=" pictures", disable=not shown, dynamic_ncols=True)
