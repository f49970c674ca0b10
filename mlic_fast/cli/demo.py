# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast demo`: a bundled photograph through a real file and back, in two processes."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import common
from mlic_fast.output import try_folder, write_whole

if TYPE_CHECKING:
    from mlic_fast.limits import Limits

DESCRIPTION = (
    "Compress a bundled photograph with the bundled weights to a file, decode the file in a new process, print size, "
    "quality and times, and write the original and the decoded picture side by side."
)

EPILOG = """examples:
  mlic-fast demo
  mlic-fast demo -o out --image photo.png --model checkpoint.pth.tar

environment:
  MLIC_FAST_MODELS   files and folders of weights, separated as in PATH
  MLIC_FAST_BACKEND  torch, cpu, triton or auto (default: auto)
  MLIC_FAST_ENGINE   off: do without the compiled engine
"""

PHOTOGRAPH = "coffee.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("-o", "--output", metavar="DIR", default="mlic_demo", help="folder (default: mlic_demo)")
    parser.add_argument("--image", metavar="IN", help="a picture of yours instead of the bundled one")
    common.add_model_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Encode, decode elsewhere, compare; raises this package's errors and OSError."""
    with common.limits(options) as limits:
        _demonstrate(options, limits)


def _demonstrate(options: argparse.Namespace, limits: Limits) -> None:
    from PIL import Image

    from mlic_fast.codec import encode, open_model
    from mlic_fast.evaluate.metrics import ms_ssim, psnr
    from mlic_fast.pictures.image import open_image, read_picture

    common.set_threads(options)
    if options.image is None:
        photograph = resources.files("mlic_fast").joinpath("data").joinpath(PHOTOGRAPH).read_bytes()
        picture = open_image(photograph)
    else:
        picture = read_picture(options.image, limits)
        for note in picture.notes:
            common.warn(options, f"{options.image}: {note}")
    folder = Path(options.output)
    try_folder(folder)
    coded, pair = folder / "demo.mlic", folder / "demo.png"

    with common.progress("encoding"):
        model = open_model(options.model, options.device)
        encode(picture, model, limits=limits)  # the first call pays for what PyTorch sets up once
        start = time.perf_counter()
        data = encode(picture, model, limits=limits)
        encode_seconds = time.perf_counter() - start
    write_whole(coded, data)

    with common.progress("decoding"), tempfile.TemporaryDirectory() as scratch:
        decoded_path = Path(scratch, "decoded.png")
        decode_report = _decode_elsewhere(options, coded, decoded_path)
        decoded = open_image(decoded_path, limits)

    decibels, similarity = psnr(picture.pixels, decoded.pixels), ms_ssim(picture.pixels, decoded.pixels)
    side_by_side = Image.new("RGB", (2 * picture.width, picture.height))
    side_by_side.paste(Image.fromarray(picture.pixels), (0, 0))
    side_by_side.paste(Image.fromarray(decoded.pixels), (picture.width, 0))
    content = io.BytesIO()
    side_by_side.save(content, "PNG")
    write_whole(pair, content.getvalue())

    facts: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "model": model.name,
        "file": str(coded),
        "pair": str(pair),
        "bytes": len(data),
        "bpp": 8 * len(data) / (picture.width * picture.height),
        "psnr": common.finite(decibels),
        "ms_ssim": similarity,
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_report["seconds"],
    }
    text = "\n".join(
        [
            f"picture   {picture.width} x {picture.height} pixels, coded with {model.name}",
            f"file      {coded}: {len(data):,} bytes, {facts['bpp']:.4f} bpp",
            f"quality   PSNR {decibels:.2f} dB, MS-SSIM {common.similarity_text(similarity)}",
            f"times     encode {encode_seconds:.2f} s, decode {decode_report['seconds']:.2f} s (in a new process)",
            f"pair      {pair}: original left, decoded right",
        ]
    )
    common.report(options, facts, text)


def _decode_elsewhere(options: argparse.Namespace, coded: Path, decoded: Path) -> dict[str, Any]:
    """Run `mlic-fast decode` in a process of its own; returns its report. Raises MlicError if it fails."""
    command = [sys.executable, "-m", "mlic_fast", "decode", str(coded), "-o", str(decoded), "--json"]
    for name in ("model", "device", "threads", "max_side", "max_pixels"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        message = f"decoding in a new process failed: {finished.stderr.strip()}"
        raise common.ChildError(message, finished.returncode if finished.returncode > 0 else 1)
    report: dict[str, Any] = json.loads(finished.stdout)
    return report
