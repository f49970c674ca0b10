# SPDX-License-Identifier: Apache-2.0
"""The figures that the authors published, shipped as data/published_rd.json. None of them was measured here."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, get_args

from mlic_fast.errors import CurveError
from mlic_fast.evaluate.curves import Curve

DATA = "published_rd.json"

# Kodak (24 pictures), Tecnick (100), CLIC Professional Valid (41), as the file calls them
PictureSet = Literal["kodak", "tecnick", "clic_pro_val"]

SET_NAMES: dict[str, str] = {"kodak": "Kodak", "tecnick": "Tecnick", "clic_pro_val": "CLIC Pro Valid"}


def published_curves(picture_set: str) -> dict[str, Curve]:
    """MLIC, MLIC+ and MLIC++ by name, trained for MSE, PSNR alone; means over the set. Raises CurveError."""
    if picture_set not in get_args(PictureSet):
        raise CurveError(f"nothing is published here for {picture_set!r}: use one of {', '.join(get_args(PictureSet))}")
    points = _data()["points"][picture_set]
    return {
        name: Curve(f"{name} (published)", tuple(given["bpp"]), tuple(given["psnr"])) for name, given in points.items()
    }


def published_bd_rates() -> dict[str, dict[str, float | None]]:
    """Codec → set → BD-rate against VTM-17.0 Intra in percent; None where none was published."""
    return {codec: dict(rates) for codec, rates in _data()["bd_rates_vtm17"].items()}


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return json.loads(resources.files("mlic_fast").joinpath("data").joinpath(DATA).read_text("utf-8"))
