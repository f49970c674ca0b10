# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files of a release: `python tests/golden/make_files.py NEW_FOLDER WEIGHTS`.

A file of a release is decoded by every later one, so files are added and never written again; weights are kept beside
the folders, once they are no longer bundled. Beside each lies what the
plain path decodes in float32: the model's output, clamped, as 16-bit integers, and alpha.
"""

from __future__ import annotations

import io
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mlic_fast
from mlic_fast.codec import decode_tensor
from mlic_fast.compute.backend import use_backend


def pictures() -> dict[str, Image.Image]:
    """Name → picture; small ones of every kind."""
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        photograph = Image.open(file).convert("RGB")
    noise = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    alpha = photograph.crop((0, 0, 100, 70)).convert("L")
    alpha.putpixel((0, 0), 0)
    with_alpha = photograph.crop((200, 100, 300, 170)).convert("RGBA")
    with_alpha.putalpha(alpha)
    exif = Image.Exif()
    exif[0x010E] = "golden"
    with_alpha.info.update(exif=exif.tobytes(), xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", comment=b"golden")
    text = np.kron(np.random.Generator(np.random.PCG64(4)).random((8, 40)) < 0.4, np.ones((8, 5))) > 0
    return {
        "rgb": photograph.crop((250, 120, 401, 221)),
        "grey": photograph.crop((0, 0, 64, 64)).convert("L"),
        "rgb-alpha": with_alpha,
        "grey-alpha": photograph.crop((300, 200, 340, 290)).convert("LA"),
        "noise": Image.fromarray(noise),
        "flat": Image.new("RGB", (130, 67), (128, 128, 128)),
        "text": Image.fromarray(np.where(text, 20, 240).astype(np.uint8)),
        "one-pixel": Image.new("RGB", (1, 1), (250, 100, 3)),
    }


def main() -> None:
    """Write the files and their references into a folder that does not exist yet."""
    folder, weights = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True)
    for name, picture in pictures().items():
        thumbnail = 32 if name == "rgb-alpha" else 0
        data = mlic_fast.encode(picture, weights, thumbnail=thumbnail)
        (folder / f"{name}.mlic").write_bytes(data)
        reference(folder / f"{name}.npz", data, weights)
    official = mlic_fast.encode(pictures()["rgb"], weights, format="official")
    (folder / "official.bin").write_bytes(official)
    reference(folder / "official.npz", official, weights)


def reference(path: Path, data: bytes, weights: Any) -> None:
    """What a file is to decode to."""
    with use_backend("torch"):
        x_hat, _ = decode_tensor(data, weights)
        image = mlic_fast.decode(data, weights)
    arrays = {"x_hat": np.round(x_hat.clamp(0, 1).numpy()[0] * 65535).astype(np.uint16)}
    if image.mode in ("LA", "RGBA"):
        arrays["alpha"] = np.asarray(image)[..., -1]
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    path.write_bytes(stream.getvalue())


if __name__ == "__main__":
    main()
