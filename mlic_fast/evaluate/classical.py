# SPDX-License-Identifier: Apache-2.0
"""Classical codecs at a ladder of qualities: JPEG, JPEG 2000, WebP, AVIF through Pillow, JPEG XL through its plugin.

Files are made and read in memory, by one thread where the codec lets one say so. Which codecs are there is found when
asked: Pillow may be built without some, and JPEG XL takes the package pillow-jxl-plugin.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, features

from mlic_fast.errors import CurveError
from mlic_fast.pictures.image import Picture, Pixels


@dataclass(frozen=True)
class Codec:
    """One codec and how it is driven.

    name: for the command line. title: for people. format: Pillow's. ladder: qualities, by rising rate.
    quality_name: what the ladder's numbers are. options: of Pillow's save, from a quality. settings: in words.
    is_there: whether this installation has it. wanted: what to install otherwise.
    """

    name: str
    title: str
    format: str
    ladder: tuple[float, ...]
    quality_name: str
    options: Callable[[float], dict[str, Any]]
    settings: str
    is_there: Callable[[], bool]
    wanted: str

    def encode(self, picture: Picture, quality: float) -> bytes:
        """The file of a picture's colours, without alpha and metadata. Raises CurveError for a codec's failure."""
        content = io.BytesIO()
        try:
            Image.fromarray(picture.pixels).save(content, self.format, **self.options(quality))
        except (OSError, ValueError, RuntimeError) as error:
            raise CurveError(
                f"{self.title} does not code {picture.width} x {picture.height} pixels at {quality:g}: {error}"
            ) from error
        return content.getvalue()

    def decode(self, data: bytes, picture: Picture) -> Pixels:
        """Pixels of a file in the mode of the original, uint8 [H, W] or [H, W, 3]."""
        import numpy as np

        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("L" if picture.pixels.ndim == 2 else "RGB"))

    def label(self, quality: float) -> str:
        """Name of a point of its curve."""
        return f"{self.quality_name} {quality:g}"


def _has_jpeg_xl() -> bool:
    if not _plugin_loaded():
        return False
    Image.init()
    return "JXL" in Image.SAVE


def _plugin_loaded() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("pillow_jxl")
    except ImportError:
        return False
    return True


def _check(feature: str) -> Callable[[], bool]:
    return lambda: bool(features.check(feature))


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(
            name="jpeg",
            title="JPEG",
            format="JPEG",
            ladder=(5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
            quality_name="quality",
            options=lambda quality: {"quality": int(quality), "subsampling": "4:2:0", "optimize": True},
            settings="4:2:0, baseline, optimised Huffman tables (libjpeg-turbo)",
            is_there=_check("jpg"),
            wanted="a Pillow with libjpeg",
        ),
        Codec(
            name="jpeg2000",
            title="JPEG 2000",
            format="JPEG2000",
            ladder=(240, 160, 96, 64, 48, 32, 24, 16, 12, 8),
            quality_name="ratio",
            options=lambda ratio: {
                "quality_mode": "rates",
                "quality_layers": [ratio],
                "irreversible": True,
                "no_jp2": True,
            },
            settings="9/7 wavelet, colour transform, one layer, compression ratios, bare codestream (OpenJPEG)",
            is_there=_check("jpg_2000"),
            wanted="a Pillow with OpenJPEG",
        ),
        Codec(
            name="webp",
            title="WebP",
            format="WEBP",
            ladder=(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
            quality_name="quality",
            options=lambda quality: {"quality": int(quality), "method": 6},
            settings="lossy, 4:2:0, method 6 (libwebp)",
            is_there=_check("webp"),
            wanted="a Pillow with libwebp",
        ),
        Codec(
            name="avif",
            title="AVIF",
            format="AVIF",
            ladder=(10, 20, 30, 40, 50, 60, 70, 80, 90),
            quality_name="quality",
            options=lambda quality: {"quality": int(quality), "subsampling": "4:2:0", "speed": 4, "max_threads": 1},
            settings="4:2:0, 8 bits, speed 4 (libavif with its default encoder)",
            is_there=_check("avif"),
            wanted="a Pillow with libavif",
        ),
        Codec(
            name="jpegxl",
            title="JPEG XL",
            format="JXL",
            ladder=(10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
            quality_name="quality",
            options=lambda quality: {"quality": int(quality), "effort": 7, "num_threads": 0},
            settings="lossy, effort 7 (libjxl)",
            is_there=_has_jpeg_xl,
            wanted="the package pillow-jxl-plugin (pip install 'mlic-fast[jpegxl]')",
        ),
    )
}


def chosen(names: str) -> tuple[list[Codec], list[str]]:
    """Codecs for "all" or names separated by commas, and remarks about those that "all" leaves out.

    Raises CurveError for names that no codec has, and for codecs asked for by name that are not installed.
    """
    if names == "all":
        missing = [codec for codec in CODECS.values() if not codec.is_there()]
        remarks = [f"{codec.title} is left out: it takes {codec.wanted}" for codec in missing]
        return [codec for codec in CODECS.values() if codec not in missing], remarks
    codecs = []
    for name in dict.fromkeys(part.strip().lower() for part in names.split(",")):
        if name not in CODECS:
            raise CurveError(f"there is no classical codec {name!r}: use all, or some of {', '.join(CODECS)}")
        if not CODECS[name].is_there():
            raise CurveError(f"{CODECS[name].title} is not installed: it takes {CODECS[name].wanted}")
        codecs.append(CODECS[name])
    return codecs, []
