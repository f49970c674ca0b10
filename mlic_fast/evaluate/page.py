# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: one HTML file that holds the pictures and needs nothing else.

Its looks and its script are in data/compare.html; here measurements and pictures are put in.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

import numpy as np
from PIL import Image

from mlic_fast.errors import ImageError
from mlic_fast.evaluate.comparison import Entry, alike
from mlic_fast.pictures.image import Pixels

TEMPLATE = "compare.html"

# The difference map's value for equal pixels.
_MIDDLE = 128


def page(entries: Sequence[Entry], *, gain: int) -> str:
    """The HTML text of a comparison.

    entries: as `compare_files` gives them, the reference first, and at least one more.
    gain: how many times differences are enlarged in the difference maps, at least 1. Raises ImageError.
    """
    reference, *others = entries
    if not others or gain < 1:
        raise ImageError(f"a page needs a reference, a picture and a positive gain, not {len(entries)} and {gain}")
    template = resources.files("mlic_fast").joinpath("data").joinpath(TEMPLATE).read_text("utf-8")
    pictures = []
    for index, entry in enumerate(others):
        pictures.append(_image(entry.picture.pixels, entry.name, f'data-picture="{index}"', entry.picture.icc_profile))
        told = f"difference of {entry.name} from the reference, × {gain}"
        pictures.append(_image(difference(reference, entry, gain), told, f'data-difference="{index}"'))
    return Template(template).substitute(
        title=escape(f"Compared with {reference.name}"),
        gain=gain,
        rows="\n".join(_row(entry, index) for index, entry in enumerate(entries)),
        choices="\n".join(_choice(entry, index) for index, entry in enumerate(others)),
        reference=_image(
            reference.picture.pixels, f"reference {reference.name}", 'id="reference"', reference.picture.icc_profile
        ),
        pictures="\n".join(pictures),
    )


def difference(reference: Entry, entry: Entry, gain: int) -> Pixels:
    """Difference map: middle grey plus `gain` times how much the picture is above the reference, clipped to uint8."""
    a, b = alike(reference.picture, entry.picture)
    enlarged = np.subtract(b, a, dtype=np.int32) * gain + _MIDDLE
    return enlarged.clip(0, 255).astype(np.uint8)


def decibels(psnr: float | None) -> str:
    """PSNR as people read it."""
    if psnr is None:
        return ""
    return "equal" if math.isinf(psnr) else f"{psnr:.2f}"


def similarity(entry: Entry) -> str:
    """MS-SSIM as people read it; "small" where the picture is too small for it to be defined."""
    if entry.psnr is None:
        return ""
    return "small" if entry.ms_ssim is None else f"{entry.ms_ssim:.4f}"


def _row(entry: Entry, index: int) -> str:
    quality = f", {decibels(entry.psnr)} dB" if entry.psnr is not None and math.isfinite(entry.psnr) else ""
    cells = (
        ("", str(index) if 0 < index < 10 else "reference" if index == 0 else ""),
        (' class="text"', escape(entry.name)),
        ("", f"{entry.bytes:,}"),
        ("", f"{entry.bpp:.4f}"),
        ("", decibels(entry.psnr)),
        ("", similarity(entry)),
        (' class="text"', escape("; ".join(entry.notes))),
    )
    columns = "".join(f"<td{attributes}>{text}</td>" for attributes, text in cells)
    return f'<tr data-told=" ({entry.bpp:.4f} bpp{quality})">{columns}</tr>'


def _choice(entry: Entry, index: int) -> str:
    checked = " checked" if index == 0 else ""
    return (
        f'<label class="choice"><input type="radio" name="picture" value="{index}"{checked}>'
        f"<span>{escape(_short(entry.name))}</span></label>"
    )


def _short(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name


def _image(pixels: Pixels, told: str, attributes: str, icc_profile: bytes | None = None) -> str:
    content = io.BytesIO()
    # with its profile, so that the browser shows it as any viewer would
    Image.fromarray(pixels).save(content, "PNG", icc_profile=icc_profile)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img {attributes} alt="{escape(told)}" decoding="sync" src="data:image/png;base64,{data}">'
