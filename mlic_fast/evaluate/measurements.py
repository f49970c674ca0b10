# SPDX-License-Identifier: Apache-2.0
"""What was measured over a set of pictures, and its averages: means over the pictures, as the field has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlic_fast.evaluate.curves import Curve
from mlic_fast.evaluate.metrics import Quality, bits_per_pixel


@dataclass(frozen=True)
class Measurement:
    """One picture, coded once and decoded.

    curve, point: which codec, and which model or quality of it. picture: its path within the folder.
    bytes: of the file. string_bytes: of the entropy-coded streams alone; None where files do not tell them apart.
    encode_seconds: from pixels to the file's bytes; decode_seconds: from those to pixels.
    """

    curve: str
    point: str
    picture: str
    width: int
    height: int
    bytes: int
    string_bytes: int | None
    quality: Quality
    encode_seconds: float
    decode_seconds: float

    @property
    def bpp(self) -> float:
        """Bits per pixel of the file."""
        return bits_per_pixel(self.bytes, self.height, self.width)

    @property
    def bpp_strings(self) -> float | None:
        """Bits per pixel of the streams alone."""
        return None if self.string_bytes is None else bits_per_pixel(self.string_bytes, self.height, self.width)


@dataclass(frozen=True)
class Point:
    """Averages of one model or quality: the mean of the pictures' values, not the value of all pixels together.

    MS-SSIM is averaged over the pictures that are large enough for it; None if none is.
    """

    curve: str
    label: str
    pictures: int
    bpp: float
    bpp_strings: float | None
    psnr: float
    ms_ssim: float | None
    psnr_truncated: float
    ms_ssim_truncated: float | None
    encode_seconds: float
    decode_seconds: float


def averages(measurements: Iterable[Measurement]) -> list[Point]:
    """A point for each model and quality, by curve in the order of appearance, then by rising rate.

    Only pictures that every model and quality managed count, so that all points are about the same pictures.
    """
    groups = _by_point(measurements)
    everywhere = _in_common(groups.values())
    kept = {key: [one for one in group if one.picture in everywhere] for key, group in groups.items()}
    points = [_point(*key, group) for key, group in kept.items() if group]
    order = list(dict.fromkeys(point.curve for point in points))
    return sorted(points, key=lambda point: (order.index(point.curve), point.bpp))


def left_out(measurements: Iterable[Measurement]) -> list[str]:
    """Pictures that were measured for some models and qualities but not for all, and do not count in `averages`."""
    groups = _by_point(measurements)
    everywhere = _in_common(groups.values())
    return sorted({one.picture for group in groups.values() for one in group} - everywhere)


def curve(points: Sequence[Point], name: str) -> Curve:
    """The points of one curve. They must not be empty."""
    own = [point for point in points if point.curve == name]
    ms_ssim = [point.ms_ssim for point in own if point.ms_ssim is not None]
    return Curve(
        name,
        tuple(point.bpp for point in own),
        tuple(point.psnr for point in own),
        tuple(ms_ssim) if len(ms_ssim) == len(own) else None,
    )


def _by_point(measurements: Iterable[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.curve, one.point), []).append(one)
    return groups


def _in_common(groups: Iterable[list[Measurement]]) -> set[str]:
    sets = [{one.picture for one in group} for group in groups]
    return set.intersection(*sets) if sets else set()


def _point(curve: str, label: str, group: list[Measurement]) -> Point:
    strings = [one.bpp_strings for one in group]
    return Point(
        curve=curve,
        label=label,
        pictures=len(group),
        bpp=fmean(one.bpp for one in group),
        bpp_strings=_mean(strings) if None not in strings else None,
        psnr=_psnr(one.quality.psnr for one in group),
        ms_ssim=_mean(one.quality.ms_ssim for one in group),
        psnr_truncated=_psnr(one.quality.psnr_official for one in group),
        ms_ssim_truncated=_mean(one.quality.ms_ssim_official for one in group),
        encode_seconds=fmean(one.encode_seconds for one in group),
        decode_seconds=fmean(one.decode_seconds for one in group),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _psnr(values: Iterable[float]) -> float:
    known = list(values)
    # fmean refuses what adds up to infinity on some versions of Python
    return math.inf if math.inf in known else fmean(known)
