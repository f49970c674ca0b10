# SPDX-License-Identifier: Apache-2.0
"""Bjøntegaard's deltas: how far two rate-distortion curves are apart on average, in rate or in quality.

A curve is a sequence of points (rate, quality): rate in any unit, as long as it is the same for both, quality in
decibels (PSNR, or MS-SSIM as −10·log10(1 − MS-SSIM)). Between its points it is interpolated over the logarithm of the
rate; the difference is integrated over the interval that both curves cover, and divided by its length.

"pchip" interpolates piecewise with monotone cubics, as the common test conditions of HEVC and VVC do
(JCTVC-L1100, JVET-T2010). "cubic" fits one cubic polynomial, by least squares where there are more than four points, as
G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mlic_fast.errors import CurveError

Points = Sequence[tuple[float, float]]
Method = Literal["pchip", "cubic"]

_Array = npt.NDArray[np.float64]

_FEWEST = {"pchip": 2, "cubic": 4}


def bd_rate(anchor: Points, test: Points, method: Method = "pchip") -> float:
    """How much more rate `test` takes than `anchor` for equal quality, in percent; negative: it takes less.

    Raises CurveError where the points make no curve, or the curves have no quality in common.
    """
    anchor_curve, test_curve = _sorted(anchor, method), _sorted(test, method)
    log_ratio = _mean_difference(anchor_curve[::-1], test_curve[::-1], method, "qualities")
    return float(100 * np.expm1(log_ratio))


def bd_quality(anchor: Points, test: Points, method: Method = "pchip") -> float:
    """How much better `test` is than `anchor` for equal rate, in the unit of the qualities (BD-PSNR for PSNR).

    Raises CurveError where the points make no curve, or the curves have no rate in common.
    """
    return _mean_difference(_sorted(anchor, method), _sorted(test, method), method, "rates")


def quality_at(points: Points, rate: float, method: Method = "pchip") -> float | None:
    """The interpolated quality at a rate; None outside the curve, since nothing is extrapolated. Raises CurveError."""
    if not rate > 0:
        raise CurveError(f"a rate is a positive number, not {rate:g}")
    return _value_at(_sorted(points, method), float(np.log(rate)), method)


def rate_at(points: Points, quality: float, method: Method = "pchip") -> float | None:
    """The interpolated rate at a quality; None outside the curve, since nothing is extrapolated. Raises CurveError."""
    log_rate = _value_at(_sorted(points, method)[::-1], quality, method)
    return None if log_rate is None else float(np.exp(log_rate))


def _sorted(points: Points, method: Method) -> tuple[_Array, _Array]:
    """Logarithms of the rates and qualities, both rising. Raises CurveError."""
    if method not in get_args(Method):
        raise CurveError(f"there is no method {method!r}: use one of {', '.join(get_args(Method))}")
    if len(points) < _FEWEST[method]:
        raise CurveError(f"a curve takes at least {_FEWEST[method]} points for the method {method}, not {len(points)}")
    values = np.array(sorted(points), dtype=np.float64)  # [points, 2]
    if not np.isfinite(values).all() or not (values[:, 0] > 0).all():
        raise CurveError("the points of a curve are finite numbers, and rates are positive")
    if not (np.diff(values, axis=0) > 0).all():
        raise CurveError("the points make no curve: each must have more rate and more quality than the one before")
    return np.log(values[:, 0]), values[:, 1]


def _mean_difference(anchor: tuple[_Array, _Array], test: tuple[_Array, _Array], method: Method, what: str) -> float:
    """Mean of test − anchor over the interval that both cover, each given by rising x and its values."""
    low, high = max(anchor[0][0], test[0][0]), min(anchor[0][-1], test[0][-1])
    if not low < high:
        raise CurveError(f"the curves have no {what} in common, so they cannot be compared")
    return float((_integral(*test, low, high, method) - _integral(*anchor, low, high, method)) / (high - low))


def _value_at(curve: tuple[_Array, _Array], x: float, method: Method) -> float | None:
    knots, values = curve
    if not knots[0] <= x <= knots[-1]:
        return None
    return float(_interpolation(knots, values, method)(np.array([x]))[0])


def _integral(knots: _Array, values: _Array, low: float, high: float, method: Method) -> float:
    """Integral of the interpolation from low to high, which lie within the knots."""
    inside = knots[(knots > low) & (knots < high)]
    ends = np.concatenate([[low], inside, [high]])
    left, right = ends[:-1], ends[1:]
    f = _interpolation(knots, values, method)
    # Simpson's rule has no error for cubics, and between knots there is one cubic.
    return float(((right - left) / 6 * (f(left) + 4 * f((left + right) / 2) + f(right))).sum())


def _interpolation(knots: _Array, values: _Array, method: Method) -> Callable[[_Array], _Array]:
    if method == "cubic":
        # about the middle, for the sake of the fit's rounding
        middle = knots.mean()
        polynomial = np.polyfit(knots - middle, values, 3)
        return lambda x: np.polyval(polynomial, x - middle)
    slopes = _monotone_slopes(knots, values)

    def evaluate(x: _Array) -> _Array:
        k = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
        width = knots[k + 1] - knots[k]
        t = (x - knots[k]) / width
        # Hermite's cubic, by Horner's rule
        rise = values[k + 1] - values[k]
        first, last = slopes[k] * width, slopes[k + 1] * width
        return values[k] + t * (first + t * (3 * rise - 2 * first - last + t * (first + last - 2 * rise)))

    return evaluate


def _monotone_slopes(knots: _Array, values: _Array) -> _Array:
    """Slopes at the knots that keep a piecewise cubic as monotone as its values (Fritsch and Butland, 1984)."""
    width = np.diff(knots)
    secant = np.diff(values) / width
    if len(knots) == 2:
        return np.repeat(secant, 2)
    slopes = np.empty_like(knots)
    # weighted harmonic mean; secants are positive, since curves rise
    before, after = width[1:] + 2 * width[:-1], 2 * width[1:] + width[:-1]
    slopes[1:-1] = (before + after) / (after / secant[:-1] + before / secant[1:])
    slopes[0] = _end_slope(width[0], width[1], secant[0], secant[1])
    slopes[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])
    return slopes


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """Slope of the parabola through the three points at an end, limited so that the first cubic stays monotone."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    # a limit above is not needed: both secants are positive
    return max(slope, 0.0)
