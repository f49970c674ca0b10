# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast eval`: rate, quality and times of models and other codecs over a folder of pictures."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import common, other_codecs, table
from mlic_fast.output import try_folder, write_whole

if TYPE_CHECKING:
    from mlic_fast.evaluate.dataset import Contestant, Outcome
    from mlic_fast.evaluate.measurements import Point
    from mlic_fast.limits import Limits
    from mlic_fast.pictures.folder import Found

DESCRIPTION = """\
Measure over all pictures in a folder and its subfolders. Each is compressed to a file, and what the file decodes to \
is compared with the picture: bits per pixel of the file and of its entropy-coded streams, PSNR, MS-SSIM, seconds for \
encoding and decoding. Several models (of several λ) are the points of one curve. Classical codecs, any encoder and \
decoder that are programs, each at a ladder of qualities, and models of CompressAI give further curves.

With -o, the folder OUT gets a JSON file for each curve in the form of CompressAI's eval_model, pictures.csv with \
every picture, and report.md.
"""

EPILOG = """Averages are means of the pictures' values; a picture that fails with one model counts with none.
Colours alone are coded and measured, those of transparent pixels too: alpha, colour profile and
metadata are left out. What else a picture loses on the way in is named. Seconds are from pixels to
the file's bytes and back, without reading and writing files; a model codes its first picture once
before it is measured. Those of --external are of whole programs. MS-SSIM is not defined below 161
pixels (–). docs/evaluation.md says more, what a recipe is among it.

examples:
  mlic-fast eval kodak
  mlic-fast eval kodak --model a.safetensors --model b.safetensors --name ours -o results
  mlic-fast eval kodak --classical all -o results
  mlic-fast eval kodak --external VTM-17.0=vtm.toml --no-model -o results
  mlic-fast eval kodak --compressai mbt2018-mean --quality 1,2,3,4 --fast-coder -o results
  mlic-fast eval kodak --compressai ELIC=elic2022-official --checkpoint elic.pth.tar -o results
  mlic-fast plot results/*.json --published kodak -o curves.svg

environment:
  MLIC_FAST_MODELS  files and folders of weights, separated as in PATH
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("folder", metavar="DIR", help="folder of pictures")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder for reports; made if it is missing")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        action="append",
        help="weights: a model's name (`mlic-fast models`) or a path; may be given several times",
    )
    parser.add_argument(
        "--name", type=_name, help="what the models' curve is called (default: the model's name; of several, mlic_fast)"
    )
    parser.add_argument(
        "--no-model", "--classical-only", action="store_true", help="no model of this package, other codecs alone"
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep compressed files there, but for --classical")
    parser.add_argument("--format", choices=("mlic", "official"), default="mlic", help="layout (default: %(default)s)")
    parser.add_argument("--no-guard", action="store_true", help="files without a guard")
    parser.add_argument("--reduce-depth", action="store_true", help="reduce 16-bit samples to 8 bits, not refuse them")
    other_codecs.add_arguments(parser)
    common.add_device_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure; raises this package's errors and OSError."""
    from mlic_fast.evaluate.dataset import pictures_in

    if options.no_model and (options.model or not other_codecs.are_asked_for(options)):
        raise common.CommandError("--no-model goes with --classical, --external or --compressai, and without --model")
    for place in (options.output, options.keep):
        if place is not None and Path(place).exists() and not Path(place).is_dir():
            raise common.CommandError(f"{place} is a file: name a folder")
    common.set_threads(options)
    # what would go wrong at the end goes wrong at the beginning
    found = pictures_in(Path(options.folder))
    for place in (options.output, options.keep):
        if place is not None:
            try_folder(place)
    with common.limits(options) as limits, _folder_for_files(options) as files:
        models = [] if options.no_model else [_models(options, files, limits)]
        others, settings, remarks = other_codecs.groups_of(options, lambda name: files / _file_stem(name), limits)
        groups = [*models, *others]
        _check_names(groups, bool(models))
        _evaluate(options, found, groups, settings, remarks, limits)


def _evaluate(
    options: argparse.Namespace,
    found: Found,
    groups: Sequence[Sequence[Contestant]],
    settings: dict[str, str],
    remarks: list[str],
    limits: Limits,
) -> None:
    from tqdm import tqdm

    from mlic_fast.evaluate import reports
    from mlic_fast.evaluate.dataset import Outcome
    from mlic_fast.evaluate.dataset import run as measure
    from mlic_fast.evaluate.measurements import averages, left_out

    pictures = found.pictures
    contestants = [contestant for group in groups for contestant in group]
    special = OSError("a pipe, socket or device, not a file: copy it to a file first")
    outcome = Outcome(failures=[(path.relative_to(options.folder).as_posix(), None, special) for path in found.special])
    total = len(contestants) * len(pictures)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    try:
        with tqdm(total=total, desc=options.folder, unit=" codings", disable=not terminal, dynamic_ncols=True) as bar:

            def advance() -> None:
                bar.update()

            measure(
                contestants,
                Path(options.folder),
                pictures,
                limits=limits,
                reduce_depth=options.reduce_depth,
                advance=advance,
                outcome=outcome,
            )
    except BaseException:
        _rescue(options, outcome)
        raise

    points = averages(outcome.measurements)
    failures = [f"{name}{f' ({where})' if where else ''}: {common.message(e)}" for name, where, e in outcome.failures]
    apart = left_out(outcome.measurements)
    if apart:
        remarks = [*remarks, f"not in the averages, since not every codec managed them: {', '.join(apart)}"]
    for name, notes in outcome.notes.items():
        for note in notes:
            common.warn(options, f"{name}: {note}")
            remarks = [*remarks, f"{name}: {note}"]
    unwritten: OSError | None = None
    written: list[Path] = []
    try:
        written = _write(options, outcome, points, settings, [*remarks, *(f"failed: {line}" for line in failures)])
    except OSError as error:  # what was measured is told all the same
        unwritten = error
    facts: dict[str, Any] = {
        "folder": options.folder,
        "pictures": points[0].pictures if points else 0,
        "averages": [
            {**asdict(p), "psnr": common.finite(p.psnr), "psnr_truncated": common.finite(p.psnr_truncated)}
            for p in points
        ],
        "settings": settings,
        "remarks": remarks,
        "notes": [{"picture": name, "notes": list(notes)} for name, notes in outcome.notes.items()],
        "failures": [
            {"picture": name, "codec": where, "error": common.message(e)} for name, where, e in outcome.failures
        ],
        "written": [str(path) for path in written],
    }
    lines = table.lines(reports.HEADS, reports.average_rows(points), {"codec", "point"}) if points else []
    if points:
        lines.append(f"means over {points[0].pictures} of {len(pictures)} pictures")
    lines += [f"not in the averages, since not every codec managed them: {', '.join(apart)}"] if apart else []
    lines += [f"written: {path}" for path in written]
    print_options = argparse.Namespace(json=options.json)  # the report goes to standard output, also with -o
    common.report(print_options, facts, "\n".join(lines))
    if unwritten is not None:
        raise unwritten
    if failures:
        raise common.SomeFailedError("\n".join([f"failed: {len(failures):,}", *(f"  {line}" for line in failures)]))


def _write(
    options: argparse.Namespace,
    outcome: Outcome,
    points: Sequence[Point],
    settings: dict[str, str],
    remarks: Sequence[str],
) -> list[Path]:
    from mlic_fast.evaluate import reports

    if options.output is None:
        return []
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, str] = {}
    for name in dict.fromkeys(point.curve for point in points):
        told = settings.get(name) or f"mlic_fast, layout {options.format}{', no guard' if options.no_guard else ''}"
        contents[f"{_file_stem(name)}.json"] = reports.eval_model_json(points, name, told)
    contents["pictures.csv"] = reports.csv_text(outcome.measurements)
    remarks = [*(f"{title}: {text}" for title, text in settings.items()), *remarks]
    contents["report.md"] = reports.markdown(
        points, outcome.measurements, f"Evaluation of {Path(options.folder).name}", remarks
    )
    for name, text in contents.items():
        write_whole(folder / name, text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in contents]


def _rescue(options: argparse.Namespace, outcome: Outcome) -> None:
    """Keep what was measured before an interruption."""
    from mlic_fast.evaluate import reports

    if options.output is None or not outcome.measurements:
        return
    path = Path(options.output) / "pictures-interrupted.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, reports.csv_text(outcome.measurements).encode("utf-8", "backslashreplace"))
    print(f"mlic-fast eval: stopped; {len(outcome.measurements)} measurements are in {path}", file=sys.stderr)


def _models(options: argparse.Namespace, files: Path, limits: Limits) -> list[Contestant]:
    """The models as contestants; they are looked for now and loaded when they are needed."""
    from functools import partial

    from mlic_fast.codec import open_model
    from mlic_fast.compute.device import resolve_device
    from mlic_fast.evaluate.dataset import of_model
    from mlic_fast.registry import DEFAULT_MODEL, find

    resolve_device(options.device)
    models = [find(name) for name in options.model or [DEFAULT_MODEL]]
    curve = options.name or (models[0].name if len(models) == 1 else "mlic_fast")
    names = [model.name for model in models]
    for model in models:
        if names.count(model.name) > 1:
            raise common.CommandError(f"two models are called {model.name}, so their results could not be told apart")
    return [
        of_model(
            curve,
            partial(open_model, model.path, options.device),
            model.name,
            files / _file_stem(model.name),
            format=options.format,
            guard=not options.no_guard,
            limits=limits,
        )
        for model in models
    ]


@contextmanager
def _folder_for_files(options: argparse.Namespace) -> Iterator[Path]:
    if options.keep is not None:
        yield Path(options.keep)
        return
    with tempfile.TemporaryDirectory(prefix="mlic-fast-eval-") as folder:
        yield Path(folder)


def _check_names(groups: Sequence[Sequence[Contestant]], has_models: bool) -> None:
    stems: dict[str, str] = {}
    for index, group in enumerate(groups):
        name = group[0].curve
        stem = _file_stem(name).casefold()
        if stem in stems:
            models = index > 0 and has_models and stems[stem] == groups[0][0].curve
            advice = "use --name for the models' curve" if models else "give one another with NAME="
            raise common.CommandError(f"two curves would be called {stems[stem]} and {name}: {advice}")
        stems[stem] = name


def _file_stem(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "curve"


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no name")
    return text
