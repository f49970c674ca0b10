# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast calibrate`: how large the guard's δ has to be for a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import common, table
from mlic_fast.entropy.guard import DEFAULT_DELTA
from mlic_fast.output import try_file

if TYPE_CHECKING:
    from mlic_fast.limits import Limits
    from mlic_fast.pictures.picture import Picture

DESCRIPTION = (
    "Measure how far this model's scales lie apart when they are computed in different ways (backends, threads, with "
    "and without oneDNN) from the same symbols, against float64, and choose the guard's δ from it. The pictures are "
    "made up: flat ones, noise, edges, text; photographs can be added."
)

EPILOG = """δ is 4 times the largest deviation found, and at least 5e-5. With -o it is stored with the
weights in a native file (MODEL itself, if that is one), and files written with these weights
then allow for it. Without calibration they allow for 5e-5. docs/portability.md says what δ
means and what it costs.

examples:
  mlic-fast calibrate mlicpp-s-0.0067
  mlic-fast calibrate checkpoint.pth.tar photos/*.png -o mlicpp.safetensors
  mlic-fast calibrate mlicpp.safetensors --size 768x512 --size 3840x2160  # large ones take long

environment:
  MLIC_FAST_MODELS  files and folders of weights, separated as in PATH
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("model", metavar="MODEL", help="name or file of weights")
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", help="photographs to measure with as well")
    parser.add_argument("-o", "--output", metavar="OUT.safetensors", help="native file to write, with the δ found")
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        metavar="WxH",
        help="of the made-up pictures; may be given several times (default: 768x512)",
    )
    common.add_device_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure; raises this package's errors and OSError."""
    from mlic_fast.checkpoint.native import is_native, read_header, with_deltas
    from mlic_fast.codec import open_model
    from mlic_fast.evaluate import calibration
    from mlic_fast.pictures.image import read_head
    from mlic_fast.registry import resolve

    path = resolve(options.model)
    has_header = is_native(path) and read_header(path) is not None
    if options.output is not None:
        if Path(options.output).suffix != ".safetensors":
            raise common.CommandError(f"{options.output}: native weights end in .safetensors")
        if not has_header:  # of a native file nothing but δ changes
            common.refuse_same_file(str(path), options.output)
        try_file(options.output)
    with common.limits(options):
        for picture in options.pictures:
            if not Path(picture).is_fifo():
                read_head(picture)  # what is no picture is known before the work
    common.set_threads(options)
    model = open_model(options.model, options.device)
    sizes = options.size or [(768, 512)]
    made_up = (
        (name if len(sizes) == 1 else f"{name} {width}x{height}", picture)
        for width, height in sizes
        for name, picture in calibration.pictures(height=height, width=width)
    )
    with common.limits(options) as limits, common.progress("measuring"):
        found = calibration.measure(model, chain(made_up, _photographs(options, limits)))
    deltas = calibration.deltas_for(found)
    if options.output is not None:
        from mlic_fast.checkpoint import convert

        if has_header:
            with_deltas(path, options.output, deltas)
        else:
            convert(path, options.output, guard_deltas=deltas)
    values = sorted(delta for channels in deltas for delta in channels)
    largest, middle, raised = values[-1], values[len(values) // 2], sum(delta > DEFAULT_DELTA for delta in values)
    facts: dict[str, Any] = {
        "model": model.name,
        "delta": largest,
        "deltas": deltas,
        "largest": max(one.largest for one in found),
        "output": options.output,
        "deviations": [{"picture": one.picture, "way": one.way, "largest": one.largest} for one in found],
    }
    ways = list(dict.fromkeys(one.way for one in found))
    seen = {(one.picture, one.way): f"{one.largest:.1e}" for one in found}
    rows = [(name, *(seen[name, way] for way in ways)) for name in dict.fromkeys(one.picture for one in found)]
    lines = [
        "largest deviation in log-scale from float64:",
        *table.lines(("picture", *ways), rows, {"picture"}),
        f"δ of each pass and channel ({calibration.MARGIN} times its largest, at least {DEFAULT_DELTA:g}): at most "
        f"{largest:.2e}, median {middle:.2e}, above the least in {raised} of {len(values)}",
        *([f"stored in {options.output}"] if options.output is not None else []),
    ]
    common.report(options, facts, "\n".join(lines))


def _photographs(options: argparse.Namespace, limits: Limits) -> Iterator[tuple[str, Picture]]:
    """The pictures that were named, one at a time."""
    from mlic_fast.pictures.image import read_picture

    for name in options.pictures:
        picture = read_picture(name, limits)
        for note in picture.notes:
            common.warn(options, f"{name}: {note}")
        yield Path(name).name, picture


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (width, height)]
    if not x or not all(16 <= side <= 16384 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 768x512, of 16 to 16384 pixels a side")
    return sides[0], sides[1]
