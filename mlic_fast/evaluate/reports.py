# SPDX-License-Identifier: Apache-2.0
"""Reports of an evaluation: JSON in the form of `compressai.utils.eval_model`, CSV, and Markdown."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import mlic_fast
from mlic_fast.errors import CurveError
from mlic_fast.evaluate.bd_rate import bd_quality, bd_rate, quality_at, rate_at
from mlic_fast.evaluate.curves import Curve, QualityMetric
from mlic_fast.evaluate.measurements import Measurement, Point, curve

NOTHING = "–"

COLUMNS = (
    "curve",
    "point",
    "picture",
    "width",
    "height",
    "bytes",
    "bytes_strings",
    "bpp",
    "bpp_strings",
    "psnr",
    "ms_ssim",
    "psnr_truncated",
    "ms_ssim_truncated",
    "encoding_time",
    "decoding_time",
)


def eval_model_json(points: Sequence[Point], name: str, description: str) -> str:
    """One curve as `compressai.utils.eval_model` writes it, for `compressai.utils.plot` and `curves.read_curve`.

    "bpp" is that of whole files and "psnr-rgb" that of rounded pixels, both as users have them; the other flavours
    stand beside them. Values that no point has are left out; infinite ones are null.
    """
    own = [point for point in points if point.curve == name]
    lists: dict[str, list[float | None]] = {
        "bpp": [point.bpp for point in own],
        "psnr-rgb": [point.psnr for point in own],
        "ms-ssim-rgb": [point.ms_ssim for point in own],
        "encoding_time": [point.encode_seconds for point in own],
        "decoding_time": [point.decode_seconds for point in own],
        "bpp-strings": [point.bpp_strings for point in own],
        "psnr-rgb-truncated": [point.psnr_truncated for point in own],
        "ms-ssim-rgb-truncated": [point.ms_ssim_truncated for point in own],
    }
    data: dict[str, Any] = {
        "name": name,
        "description": description,
        "results": {
            key: [_json_number(value) for value in values] for key, values in lists.items() if any_known(values)
        },
        "points": [point.label for point in own],
        "pictures": own[0].pictures if own else 0,
        "program": f"mlic_fast {mlic_fast.__version__}",
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def any_known(values: Sequence[float | None]) -> bool:
    """Whether there is any value among them."""
    return any(value is not None for value in values)


def csv_text(measurements: Sequence[Measurement]) -> str:
    """A line a picture and point, with all digits; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in measurements:
        quality = one.quality
        writer.writerow(
            (
                one.curve,
                one.point,
                one.picture,
                one.width,
                one.height,
                one.bytes,
                one.string_bytes,
                one.bpp,
                one.bpp_strings,
                quality.psnr,
                quality.ms_ssim,
                quality.psnr_official,
                quality.ms_ssim_official,
                one.encode_seconds,
                one.decode_seconds,
            )
        )
    return text.getvalue()


HEADS = ("codec", "point", "bpp", "bpp (strings)", "PSNR", "MS-SSIM", "encode s", "decode s")


def average_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """Cells of the table of averages, under `HEADS`."""
    return [
        (
            point.curve,
            point.label,
            f"{point.bpp:.4f}",
            _cell(point.bpp_strings, 4),
            _cell(point.psnr, 2),
            _cell(point.ms_ssim, 4),
            f"{point.encode_seconds:.3f}",
            f"{point.decode_seconds:.3f}",
        )
        for point in points
    ]


def markdown(points: Sequence[Point], measurements: Sequence[Measurement], title: str, remarks: Sequence[str]) -> str:
    """Averages, differences between the curves, and every picture, as Markdown."""
    lines = [f"# {_escaped(title)}", ""]
    if points:
        lines += [
            f"Means over {points[0].pictures} pictures of the pictures' values. bpp: of whole files. PSNR (dB) and "
            "MS-SSIM: of decoded 8-bit pixels.",
            "",
            *_table(HEADS, average_rows(points)),
            "",
        ]
    curves = [curve(points, name) for name in dict.fromkeys(point.curve for point in points)]
    if len(curves) > 1:
        anchor, *others = curves
        if len(anchor.bpp) > 1:
            compared = [difference_row(anchor, other, "psnr") for other in others]
            lines += [
                f"## Against {_escaped(anchor.name)}",
                "",
                *_table(("codec", "BD-rate", "BD-PSNR", "remark"), compared),
                "",
            ]
        labels = [point.label for point in points if point.curve == anchor.name]
        lines += [
            f"## At the rates and qualities of {_escaped(anchor.name)}",
            "",
            "Interpolated between the other codecs' points; – outside them.",
            "",
            *_table(EQUAL_HEADS, [row for other in others for row in equal_rows(anchor, labels, other)]),
            "",
        ]
    if remarks:
        lines += ["## Remarks", "", *(f"- {_escaped(remark)}" for remark in remarks), ""]
    rows = [
        (
            one.curve,
            one.point,
            one.picture,
            f"{one.bytes:,}",
            f"{one.bpp:.4f}",
            _cell(one.bpp_strings, 4),
            _cell(one.quality.psnr, 2),
            _cell(one.quality.ms_ssim, 4),
            f"{one.encode_seconds:.3f}",
            f"{one.decode_seconds:.3f}",
        )
        for one in measurements
    ]
    heads = ("codec", "point", "picture", "bytes", *HEADS[2:])
    return "\n".join([*lines, "## Pictures", "", *_table(heads, rows), ""])


EQUAL_HEADS = ("point", "bpp", "PSNR", "codec", "PSNR at equal bpp", "bpp at equal PSNR")


def equal_rows(anchor: Curve, labels: Sequence[str], other: Curve) -> list[tuple[str, ...]]:
    """Cells under `EQUAL_HEADS`: for each point of the anchor, what the other curve has at its rate and at its PSNR."""
    rows: list[tuple[str, ...]] = []
    for label, bpp, psnr in zip(labels, anchor.bpp, anchor.psnr or (), strict=True):
        quality = rate = None
        with contextlib.suppress(CurveError):
            quality, rate = quality_at(other.points(), bpp), rate_at(other.points(), psnr)
        rows.append((label, f"{bpp:.4f}", _cell(psnr, 2), other.name, _cell(quality, 2), _cell(rate, 4)))
    return rows


def difference_row(anchor: Curve, other: Curve, metric: QualityMetric) -> tuple[str, str, str, str]:
    """Name, BD-rate, BD-quality against the anchor, and why they are missing if they are."""
    try:
        a, b = anchor.points(metric), other.points(metric)
        return other.name, f"{bd_rate(a, b):+.2f} %", f"{bd_quality(a, b):+.3f} dB", ""
    except CurveError as error:
        return other.name, NOTHING, NOTHING, str(error)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    words = {"codec", "point", "picture", "remark"}
    return [
        _line(heads),
        _line(["---" if head in words else "---:" for head in heads]),
        *(_line([_escaped(cell) for cell in row]) for row in rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    # names of files may be anybody's
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return NOTHING
    return "equal" if math.isinf(value) else f"{value:.{digits}f}"


def _json_number(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
