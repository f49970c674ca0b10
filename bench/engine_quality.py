# SPDX-License-Identifier: Apache-2.0
"""What the engine's arithmetic does to rate and distortion: free-running encodes against the plain path's.

    python bench/engine_quality.py FOLDER [--model NAME|FILE]...

Without --model: the bundled models. Bytes are those of the strings without a guard; everyone decodes what it wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from mlic_fast import coding, registry
from mlic_fast.checkpoint.labels import stem
from mlic_fast.codec import open_model
from mlic_fast.engine import Options
from mlic_fast.evaluate.metrics import psnr
from mlic_fast.nn.network import Network
from mlic_fast.pictures.folder import find_pictures
from mlic_fast.pictures.image import Picture, open_image, pad_to_64, to_pixels, to_tensor

ENGINES = {"float32": Options("float32"), "bfloat16": Options("bfloat16")}


class Result(NamedTuple):
    """Of one picture: bytes of the strings, and PSNR of 8-bit pixels in decibels."""

    size: int
    psnr: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how the engine's bytes and PSNR differ from the plain path's, for each picture and on average."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", help="name or file (default: the bundled models)")
    options = parser.parse_args(arguments)
    paths = find_pictures(options.folder)
    if not paths:
        parser.error(f"{options.folder} holds no pictures")
    bundled = [model.path for model in registry.available().models if model.origin == "bundled"]
    for name in options.model or bundled:
        model = open_model(name, "cpu")
        found: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
        heads = "".join(f"{engine:>24}" for engine in ENGINES)
        print(f"{stem(registry.resolve(name)):24}{heads}", flush=True)
        for path in paths:
            picture = open_image(path)
            plain = measure(model, picture, None)
            for engine in ENGINES:
                own = measure(model, picture, ENGINES[engine])
                found[engine].append((own.size / plain.size - 1, own.psnr - plain.psnr))
            show(path.name, [values[-1] for values in found.values()])
        for title, pick in (("mean", mean), ("largest", lambda values: max(values, key=abs))):
            show(title, [tuple(pick(column) for column in zip(*values, strict=True)) for values in found.values()])


def measure(model: Network, picture: Picture, engine: Options | None) -> Result:
    """A picture coded and decoded by the engine, or on the plain path where there is none."""
    if engine is not None:
        model.engine_options = engine
    x = pad_to_64(to_tensor(picture), "fade")
    coded = coding.compress(model, x, exact=engine is None)
    x_hat = coding.decompress(model, coded, (x.shape[2] // 64, x.shape[3] // 64), exact=engine is None)
    decoded = to_pixels(x_hat[..., : picture.height, : picture.width], picture.mode)
    return Result(len(coded.y) + sum(map(len, coded.z)), psnr(picture.pixels, decoded))


def show(title: str, differences: Sequence[tuple[float, ...]]) -> None:
    columns = "".join(f"{bytes_:+12.3%} {decibels:+8.4f} dB" for bytes_, decibels in differences)
    print(f"{title:24}{columns}", flush=True)


if __name__ == "__main__":
    main()
