# SPDX-License-Identifier: Apache-2.0
"""Bjøntegaard's deltas: against a well-kept library, against closed forms, and against published figures."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import bjontegaard
import numpy as np
import pytest

from mlic_fast.errors import CurveError
from mlic_fast.evaluate.bd_rate import Method, Points, bd_quality, bd_rate, quality_at, rate_at
from mlic_fast.evaluate.published import SET_NAMES, published_bd_rates, published_curves

DOCUMENT = Path(__file__).parent.parent / "docs" / "published.md"

SETS = ("kodak", "tecnick", "clic_pro_val")

# The example in the library's documentation: libx265 at two settings.
X265 = [(9487.76, 40.037), (4593.60, 38.615), (2486.44, 36.845), (1358.24, 34.851)]
X265_TEST = [(9787.80, 40.121), (4469.00, 38.651), (2451.52, 36.970), (1356.24, 34.987)]

# The example that goes with most programs for the purpose.
COMMON = [(686.76, 40.28), (309.58, 37.18), (157.11, 34.24), (85.95, 31.42)]
COMMON_TEST = [(893.34, 40.39), (407.8, 37.21), (204.93, 34.17), (112.75, 31.24)]


def random_curve(seed: int, count: int) -> Points:
    generator = np.random.default_rng(seed)
    rates = 0.1 * np.exp(np.cumsum(generator.uniform(0.05, 0.9, count)))
    return list(zip(rates, 28 + np.cumsum(generator.uniform(0.05, 2.5, count)), strict=True))


@pytest.mark.parametrize("method", ["pchip", "cubic"])
@pytest.mark.parametrize(
    ("anchor", "test"),
    [(X265, X265_TEST), (COMMON, COMMON_TEST), *((random_curve(i, 6), random_curve(i + 50, 6)) for i in range(20))],
    ids=["x265", "common", *(f"random-{i}" for i in range(20))],
)
def test_equals_the_library(anchor: Points, test: Points, method: Method) -> None:
    columns = [list(column) for points in (anchor, test) for column in zip(*points, strict=True)]
    rate = bjontegaard.bd_rate(*columns, method=method, min_overlap=0)
    quality = bjontegaard.bd_psnr(*columns, method=method, min_overlap=0)
    assert math.isfinite(rate)
    assert bd_rate(anchor, test, method) == pytest.approx(rate, rel=1e-7, abs=1e-7)
    assert bd_quality(anchor, test, method) == pytest.approx(quality, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("method", ["pchip", "cubic"])
def test_curves_of_which_the_answer_is_known(method: Method) -> None:
    curve = random_curve(1, 5)
    assert bd_rate(curve, curve, method) == pytest.approx(0, abs=1e-9)
    # a fifth fewer bits at the same quality
    assert bd_rate(curve, [(0.8 * rate, quality) for rate, quality in curve], method) == pytest.approx(-20)
    assert bd_quality(curve, [(rate, quality + 0.7) for rate, quality in curve], method) == pytest.approx(0.7)
    # in whatever order and unit
    scaled = [(1000 * rate, quality) for rate, quality in reversed(COMMON)]
    other = [(1000 * rate, quality) for rate, quality in COMMON_TEST]
    assert bd_rate(scaled, other, method) == pytest.approx(bd_rate(COMMON, COMMON_TEST, method))


def test_two_points_are_a_line() -> None:
    """6 dB for each factor of 4 in rate; the other curve needs twice the rate."""
    anchor, test = [(1.0, 30.0), (4.0, 36.0)], [(2.0, 30.0), (8.0, 36.0)]
    assert bd_rate(anchor, test) == pytest.approx(100)
    assert bd_quality(anchor, test) == pytest.approx(-3)
    assert quality_at(anchor, 2.0) == pytest.approx(33)
    assert rate_at(anchor, 33.0) == pytest.approx(2)


def test_interpolation_goes_through_the_points_and_not_beyond() -> None:
    curve = random_curve(3, 7)
    for rate, quality in curve:
        assert quality_at(curve, rate) == pytest.approx(quality)
        assert rate_at(curve, quality) == pytest.approx(rate)
    assert quality_at(curve, curve[0][0] * 0.99) is None
    assert rate_at(curve, curve[-1][1] + 0.01) is None
    fine = [quality_at(curve, rate) for rate in np.geomspace(curve[0][0], curve[-1][0] * 0.999999, 500)]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(fine))


@pytest.mark.parametrize(
    ("anchor", "test", "words"),
    [
        (COMMON, [(686.0, 50.0), (900.0, 55.0)], "no qualities in common"),
        (COMMON, COMMON[:1], "at least 2 points"),
        (COMMON, [(1.0, 30.0), (2.0, 29.0)], "more rate and more quality"),
        (COMMON, [(1.0, 30.0), (1.0, 31.0)], "more rate and more quality"),
        (COMMON, [(0.0, 30.0), (1.0, 31.0)], "positive"),
        (COMMON, [(1.0, 30.0), (2.0, math.inf)], "finite"),
        (COMMON, [(1.0, 30.0), (2.0, math.nan)], "finite"),
    ],
)
def test_refused(anchor: Points, test: Points, words: str) -> None:
    with pytest.raises(CurveError, match=words):
        bd_rate(anchor, test)


def test_more_is_refused() -> None:
    with pytest.raises(CurveError, match="no rates in common"):
        bd_quality(COMMON, [(rate * 100, quality) for rate, quality in COMMON])
    with pytest.raises(CurveError, match="at least 4 points"):
        bd_rate(COMMON, COMMON[:3], "cubic")
    with pytest.raises(CurveError, match="no method 'akima'"):
        bd_rate(COMMON, COMMON, "akima")  # type: ignore[arg-type]
    with pytest.raises(CurveError, match="positive number"):
        quality_at(COMMON, 0)
    with pytest.raises(CurveError, match="nothing is published here for 'div2k'"):
        published_curves("div2k")


@pytest.mark.parametrize("picture_set", SETS)
@pytest.mark.parametrize("anchor", ["MLIC", "MLIC+"])
def test_published_points_reproduce_the_published_bd_rates(anchor: str, picture_set: str) -> None:
    """MLIC++ against the other two: from the points, and as their BD-rates against VTM imply."""
    curves, rates = published_curves(picture_set), published_bd_rates()
    ours, theirs = rates["MLIC++"][picture_set], rates[anchor][picture_set]
    assert ours is not None
    assert theirs is not None
    computed = bd_rate(curves[anchor].points(), curves["MLIC++"].points())
    implied = 100 * ((1 + ours / 100) / (1 + theirs / 100) - 1)
    # BD-rates do not chain exactly, and points are rounded to four digits
    assert computed == pytest.approx(implied, abs=0.2)
    gain = bd_quality(curves[anchor].points(), curves["MLIC++"].points())
    row = f"| {SET_NAMES[picture_set]} | {anchor} | {computed:.2f} | {implied:.2f} | {gain:.3f} |".replace("-", "−")
    assert row in DOCUMENT.read_text("utf-8")


def test_the_document_has_the_published_table() -> None:
    text = DOCUMENT.read_text("utf-8")
    rates = published_bd_rates()
    assert list(rates) == ["STF", "WACNN", "ELIC", "LIC-TCM Large", "MLIC", "MLIC+", "MLIC++"]
    for codec, values in rates.items():
        cells = ["–" if values[name] is None else f"{values[name]:+.2f}".replace("-", "−") for name in SETS]
        assert f"| {codec} | {' | '.join(cells)} |" in text
    for name in SETS:
        for codec, curve in published_curves(name).items():
            points = ", ".join(f"{bpp:g} / {psnr:g}" for bpp, psnr in curve.points())
            assert re.search(rf"\| {SET_NAMES[name]} \| {re.escape(codec)} \| {re.escape(points)} \|", text)
