# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast decode`: a compressed file to a picture."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

from mlic_fast.cli import common
from mlic_fast.errors import ImageError

DESCRIPTION = (
    "Decompress an .mlic file, or one in the layout of the official test script, to a picture. "
    "The picture's kind follows from OUT's ending. The file appears whole or not at all."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN.mlic", help="compressed file; - for standard input")
    parser.add_argument(
        "-o", "--output", metavar="OUT.png", required=True, help="picture; - for PNG to standard output"
    )
    common.add_model_arguments(parser)
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Decode; raises this package's errors and OSError."""
    from PIL import Image

    common.refuse_same_file(options.input, options.output)
    Image.init()
    ending = Path(options.output).suffix.lower()
    kind = "PNG" if options.output == common.STANDARD_STREAM else Image.EXTENSION.get(ending)
    if kind is None or kind not in Image.SAVE:
        raise ImageError(f"{options.output}: no kind of picture ends in {ending!r}: use .png, .ppm, .tif, .webp, …")

    data = common.read_input(options.input)
    from mlic_fast.codec import decode, open_model_of

    common.set_threads(options)
    with common.progress("decoding"):
        model = open_model_of(data, options.model, options.device)
        start = time.perf_counter()
        image = decode(data, model)
        seconds = time.perf_counter() - start
    content = io.BytesIO()
    try:
        image.save(content, kind)
    except (OSError, ValueError) as error:
        raise ImageError(f"{options.output}: Pillow cannot write this picture as {kind}: {error}") from error
    common.write_output(options.output, content.getvalue())
    facts = {
        "input": options.input,
        "output": options.output,
        "model": model.name,
        "width": image.width,
        "height": image.height,
        "seconds": seconds,
    }
    text = f"{options.output}: {image.width} x {image.height} pixels, {seconds:.2f} s with {model.name}"
    common.report(options, facts, text)
