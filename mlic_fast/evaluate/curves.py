# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion curves: averages over a set of pictures, one point a model or quality, and the files they are in.

The files are those of `compressai.utils.eval_model`: {"name", "description", "results": {"bpp": […], "psnr-rgb": […],
"ms-ssim-rgb": […], …}}, which `compressai.utils.plot` reads. Older ones say "psnr" and "ms-ssim", whose values may be
decibels, −10·log10(1 − MS-SSIM). A dictionary for each point is taken too, and numbers in place of lists of one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlic_fast.errors import CurveError

QualityMetric = Literal["psnr", "ms-ssim"]

# What lists are called, capitals and what stands between words aside; the first that is there counts.
_PSNR = ("psnr-rgb", "psnr", "psnr-db")
_MS_SSIM = ("ms-ssim-rgb", "ms-ssim")
_MS_SSIM_DECIBELS = ("ms-ssim-rgb-db", "ms-ssim-db-rgb", "ms-ssim-db")

# A file of results has some kilobytes.
_MAX_BYTES = 2**24


@dataclass(frozen=True)
class Curve:
    """Points by rising rate.

    name: for legends and tables. bpp: bits per pixel. psnr: decibels. ms_ssim: 0 to 1; None where it was not
    measured. psnr and ms_ssim have as many values as bpp.
    """

    name: str
    bpp: tuple[float, ...]
    psnr: tuple[float, ...] | None = None
    ms_ssim: tuple[float, ...] | None = None

    def points(self, metric: QualityMetric = "psnr") -> list[tuple[float, float]]:
        """(bpp, decibels) of each point; MS-SSIM as −10·log10(1 − MS-SSIM).

        Raises CurveError where the metric was not measured or has no number in decibels.
        """
        values = self.psnr if metric == "psnr" else self.ms_ssim
        if values is None:
            raise CurveError(f"{self.name} has no {metric} values")
        if metric == "ms-ssim":
            values = tuple(ms_ssim_decibels(value) for value in values)
        if not all(map(math.isfinite, values)):
            raise CurveError(f"{self.name} has points without loss, which no curve can show")
        return sorted(zip(self.bpp, values, strict=True))


def ms_ssim_decibels(ms_ssim: float) -> float:
    """−10·log10(1 − MS-SSIM), which spreads values near 1; infinite for 1."""
    return math.inf if ms_ssim >= 1 else -10 * math.log10(1 - ms_ssim)


def read_curve(path: str | os.PathLike[str]) -> Curve:
    """Read a file of results. Raises OSError, and CurveError for what is no such file."""
    file = Path(path)
    with file.open("rb") as opened:
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise CurveError(f"{file} is larger than {_MAX_BYTES:,} bytes: no file of results is")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise CurveError(
            f"{file} is no JSON: name files that `mlic-fast eval -o` or compressai.utils.eval_model wrote"
        ) from None
    try:
        return curve_of(data, file.stem)
    except CurveError as error:
        raise CurveError(f"{file}: {error}") from None


def curve_of(data: Any, name: str) -> Curve:
    """The curve in the contents of a file of results; name: what it is called if it does not say. Raises CurveError."""
    results = data.get("results", data) if isinstance(data, Mapping) else data
    if isinstance(results, list) and results and all(isinstance(point, Mapping) for point in results):
        results = {key: [point.get(key) for point in results] for key in results[0]}  # a point each
    if not isinstance(results, Mapping):
        raise CurveError('there are no "results" in it')
    bpp = _numbers(results, ("bpp",))
    psnr, ms_ssim = _numbers(results, _PSNR), _numbers(results, _MS_SSIM)
    decibels = _numbers(results, _MS_SSIM_DECIBELS)
    if ms_ssim is not None and any(value > 1 for value in ms_ssim):
        ms_ssim, decibels = None, ms_ssim
    if ms_ssim is None and decibels is not None:
        if min(decibels, default=0) < 0:
            raise CurveError("its MS-SSIM values are neither all at most 1 nor all positive decibels")
        ms_ssim = tuple(1 - 10 ** (-value / 10) for value in decibels)
    missing = [] if bpp else ['"bpp"']
    if psnr is None and ms_ssim is None:
        missing.append('"psnr-rgb" or "ms-ssim-rgb" (or "psnr", "ms-ssim", "ms-ssim-db")')
    if not bpp or missing:
        raise CurveError(f"its results have no {' and no '.join(missing)}; they have {_listed(results)}")
    if any(values is not None and len(values) != len(bpp) for values in (psnr, ms_ssim)):
        raise CurveError("its lists of bpp, PSNR and MS-SSIM differ in length")
    if min(bpp) <= 0:
        raise CurveError("bits per pixel are positive numbers")
    if ms_ssim is not None and min(ms_ssim) < -1:
        raise CurveError("MS-SSIM is from -1 to 1, or positive decibels")
    told = data.get("name") if isinstance(data, Mapping) else None
    return Curve(told if isinstance(told, str) and told else name, bpp, psnr, ms_ssim)


def _listed(results: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in list(results)[:12]) or "nothing"


def _plain(key: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


def _numbers(results: Mapping[str, Any], keys: Sequence[str]) -> tuple[float, ...] | None:
    """The list under the first of the keys that is there; None if none is. Raises CurveError."""
    by_name = {_plain(key): value for key, value in results.items()}
    for key in keys:
        values = by_name.get(_plain(key))
        if values is None:
            continue
        values = [values] if _is_number(values) else values  # of a single point
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            raise CurveError(f'"{key}" is not a list of finite numbers')
        return tuple(float(value) for value in values)
    return None


def _is_number(value: Any) -> bool:
    # a whole number may have more digits than a float can hold
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
