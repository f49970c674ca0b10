# SPDX-License-Identifier: Apache-2.0
"""Rate and distortion of a model over a folder of pictures, each coded to a real file and back.

    python bench/quality.py FOLDER [--model NAME|FILE]

Prints bpp of the file and of the streams alone, PSNR and MS-SSIM of the rounded picture, and both
as the official test script computes them (truncated), a line a picture and their means.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from mlic_fast.bitstream import container
from mlic_fast.codec import decode_tensor, encode, open_model
from mlic_fast.evaluate.metrics import bits_per_pixel, compare
from mlic_fast.image import open_image

COLUMNS = ("bpp", "bpp streams", "PSNR", "MS-SSIM", "PSNR trunc.", "MS-SSIM trunc.")


def measure(path: Path, model_name: str | None) -> tuple[float, ...]:
    """One row of the table for the picture at `path`."""
    model = open_model(model_name, "cpu")
    picture = open_image(path)
    data = encode(picture, model)
    file = container.read(data)
    quality = compare(picture, decode_tensor(data, model)[0])
    size = (picture.height, picture.width)
    nan = float("nan")
    return (
        bits_per_pixel(len(data), *size),
        bits_per_pixel(len(file.y) + len(file.z), *size),
        quality.psnr,
        nan if quality.ms_ssim is None else quality.ms_ssim,
        quality.psnr_official,
        nan if quality.ms_ssim_official is None else quality.ms_ssim_official,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Rate and distortion over a folder of pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="name or file (default: the bundled model)")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".webp"})
    if not paths:
        parser.error(f"{options.folder} holds no .png, .jpg or .webp pictures")

    width = max(len(path.name) for path in paths)
    print(f"{'':{width}}  " + "  ".join(f"{name:>14}" for name in COLUMNS))
    rows = []
    for path in paths:
        rows.append(measure(path, options.model))
        print(_line(path.name, width, rows[-1]), flush=True)
    print(_line("mean", width, [fmean(column) for column in zip(*rows, strict=True)]))


def _line(name: str, width: int, values: tuple[float, ...] | list[float]) -> str:
    return f"{name:{width}}  " + "  ".join(f"{value:14.4f}" for value in values)


if __name__ == "__main__":
    main()
