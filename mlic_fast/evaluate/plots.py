# SPDX-License-Identifier: Apache-2.0
"""Drawing rate-distortion curves as PNG, SVG or PDF. Takes matplotlib, which is installed with CompressAI."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePath

from mlic_fast.errors import BackendError, CurveError
from mlic_fast.evaluate.curves import Curve, QualityMetric

FORMATS = ("png", "svg", "pdf")

_LABELS = {"psnr": "PSNR [dB]", "ms-ssim": "MS-SSIM [dB]"}
_MARKERS = "osD^v<>ph*"


def format_of(name: str) -> str:
    """The format that a file's name asks for. Raises CurveError for any other."""
    ending = PurePath(name).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise CurveError(f"{name}: a plot's name ends in {', '.join('.' + kind for kind in FORMATS)}")
    return ending


def draw(curves: Sequence[Curve], *, metric: QualityMetric = "psnr", format: str = "png", title: str = "") -> bytes:
    """The contents of an image file with these curves over bits per pixel; the same input gives the same bytes.

    Published curves are dashed. MS-SSIM is drawn in decibels. Raises CurveError where a curve does not have the metric,
    BackendError without matplotlib.
    """
    if format not in FORMATS:
        raise CurveError(f"plots are drawn as {', '.join(FORMATS)}, not {format!r}")
    drawn = [(curve.name, curve.points(metric)) for curve in curves]
    if not drawn:
        raise CurveError("there is no curve to draw")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError("drawing takes matplotlib, which is not installed: pip install 'mlic-fast[plot]'") from None
    # text stays text; without a salt the identifiers in SVG files would be random. No display is needed.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlic_fast", "text.usetex": False}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(drawn):
            published = name.endswith("(published)")
            axes.plot(
                [rate for rate, _ in points],
                [quality for _, quality in points],
                label=_plain(name),
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                linewidth=1,
                linestyle="--" if published else "-",
            )
        axes.set_xlabel("Rate [bits per pixel]")
        axes.set_ylabel(_LABELS[metric])
        axes.set_xlim(left=0)
        axes.grid(alpha=0.4)
        axes.legend(loc="lower right")
        if title:
            axes.set_title(_plain(title))
        content = io.BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(content, format=format, dpi=150, metadata=dates.get(format))
    return content.getvalue()


def _plain(text: str) -> str:
    # matplotlib takes dollars for formulas and a leading underscore for "not in the legend"
    return ("\N{ZERO WIDTH SPACE}" if text.startswith("_") else "") + text.replace("$", r"\$")
