# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast encode`: a picture to a compressed file."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mlic_fast.cli import common

DESCRIPTION = (
    "Compress a picture (anything Pillow reads: PNG, JPEG, WebP, …; grey or RGB, 8 bits a sample) to an .mlic file. "
    "The file appears whole or not at all."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN", help="picture; - for standard input")
    parser.add_argument("-o", "--output", metavar="OUT.mlic", required=True, help="file; - for standard output")
    parser.add_argument("--format", choices=("mlic", "official"), default="mlic", help="layout (default: mlic)")
    parser.add_argument("--measure", action="store_true", help="decode again and report PSNR and MS-SSIM")
    common.add_model_arguments(parser)
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Encode; raises this package's errors and OSError."""
    from mlic_fast.codec import encode, open_model
    from mlic_fast.image import open_image

    common.refuse_same_file(options.input, options.output)
    common.set_threads(options)
    source = common.read_input(options.input) if options.input == common.STANDARD_STREAM else options.input
    picture = open_image(source)
    with common.progress(f"encoding {picture.width} x {picture.height} pixels"):
        model = open_model(options.model, options.device)
        start = time.perf_counter()
        data = encode(picture, model, format=options.format)
        seconds = time.perf_counter() - start
    common.write_output(options.output, data)

    facts: dict[str, Any] = {
        "input": options.input,
        "output": options.output,
        "model": model.name,
        "width": picture.width,
        "height": picture.height,
        "bytes": len(data),
        "bpp": 8 * len(data) / (picture.width * picture.height),
        "seconds": seconds,
    }
    lines = [
        f"{options.output}: {picture.width} x {picture.height} pixels in {len(data):,} bytes, "
        f"{facts['bpp']:.4f} bpp, {seconds:.2f} s with {model.name}"
    ]
    if options.measure:
        from mlic_fast.codec import decode_tensor
        from mlic_fast.evaluate.metrics import compare

        with common.progress("measuring"):
            quality = compare(picture, decode_tensor(data, model)[0])
        facts.update(
            psnr=common.finite(quality.psnr),
            ms_ssim=quality.ms_ssim,
            psnr_official=common.finite(quality.psnr_official),
            ms_ssim_official=quality.ms_ssim_official,
        )
        lines += common.quality_lines(quality)
    common.report(options, facts, "\n".join(lines))
