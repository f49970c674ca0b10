# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast compare`: PSNR, MS-SSIM and bpp of files against a reference picture, and a page to look at them."""

from __future__ import annotations

import argparse
import math
from typing import Any

from mlic_fast.cli import common, table

DESCRIPTION = (
    "Measure pictures against a reference: PSNR, MS-SSIM and bits per pixel. Each file is an .mlic file, which is "
    "decoded, one in the layout of the official test script (with --model), or a picture in any format that Pillow "
    "reads, such as JPEG, WebP or PNG. With -o, also write one HTML page that shows them: flicker, slider, side by "
    "side, difference map. It holds the pictures and needs no network."
)

EPILOG = """Samples are compared as 8-bit numbers: colour profiles are not applied, alpha is left out (colours
of transparent pixels count like others), what else a picture loses on the way in is noted, and
grey is repeated where the other picture is in colour. bpp counts the whole file, metadata included.
MS-SSIM is not defined for pictures smaller than 161 pixels in one direction ("small").

examples:
  mlic-fast compare photo.png photo.mlic photo.jpg photo.webp
  mlic-fast compare photo.png a.mlic b.mlic -o page.html --gain 16
  mlic-fast compare photo.png photo.bin --model mlicpp-s-0.0067 --json

environment:
  MLIC_FAST_MODELS  files and folders of weights, separated as in PATH
"""

MAX_GAIN = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("reference", metavar="A", help="the picture to compare with, usually the original")
    parser.add_argument("others", metavar="B", nargs="+", help="files to compare with it, of the same size in pixels")
    parser.add_argument("-o", "--output", metavar="PAGE.html", help="write a page; - for standard output")
    parser.add_argument(
        "--gain", type=_gain, default=8, metavar="N", help="enlarge differences in the page's maps N times (default: 8)"
    )
    parser.add_argument("--reduce-depth", action="store_true", help="reduce 16-bit samples to 8 bits, not refuse them")
    common.add_model_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure; raises this package's errors and OSError."""
    from mlic_fast.evaluate.comparison import compare_files
    from mlic_fast.evaluate.page import decibels, page, similarity

    names = [options.reference, *options.others]
    if options.output is not None:
        # what is compared is easily named after -o by mistake, and would be lost
        if options.output != common.STANDARD_STREAM and not options.output.lower().endswith((".html", ".htm")):
            raise common.CommandError(f"{options.output}: the page is an HTML file: name it PAGE.html")
        for name in names:
            common.refuse_same_file(name, options.output)
    common.try_output(options.output)
    common.set_threads(options)
    with common.progress("comparing"), common.limits(options) as limits:
        entries = compare_files(
            options.reference,
            options.others,
            model=options.model,
            device=options.device,
            limits=limits,
            reduce_depth=options.reduce_depth,
        )
        if options.output is not None:
            common.write_output(options.output, page(entries, gain=options.gain).encode("utf-8", "backslashreplace"))

    heads = ("file", "bytes", "bpp", "PSNR", "MS-SSIM", "notes")
    rows = [
        (
            entry.name,
            f"{entry.bytes:,}",
            f"{entry.bpp:.4f}",
            decibels(entry.psnr) if index else table.NOTHING,
            similarity(entry) if index else table.NOTHING,
            "; ".join((*([] if index else ["reference"]), *entry.notes)),
        )
        for index, entry in enumerate(entries)
    ]
    reference, *others = entries
    facts: dict[str, Any] = {
        "reference": {
            "file": reference.name,
            "bytes": reference.bytes,
            "bpp": reference.bpp,
            "notes": list(reference.notes),
        },
        "width": reference.picture.width,
        "height": reference.picture.height,
        "pictures": [
            {
                "file": entry.name,
                "bytes": entry.bytes,
                "bpp": entry.bpp,
                "equal": entry.psnr == math.inf,
                "psnr": None if entry.psnr is None else common.finite(entry.psnr),
                "ms_ssim": entry.ms_ssim,
                "notes": list(entry.notes),
            }
            for entry in others
        ],
        "page": options.output,
    }
    common.report(options, facts, "\n".join(table.lines(heads, rows, {"file", "notes"})))


def _gain(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_GAIN:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_GAIN}")
    return int(text)
