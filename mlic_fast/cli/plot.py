# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast plot`: rate-distortion curves as a picture, and how far they are apart."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import common, table

if TYPE_CHECKING:
    from mlic_fast.evaluate.curves import Curve

DESCRIPTION = """\
Draw rate-distortion curves from files of results, as `mlic-fast eval -o` and CompressAI's eval_model write them, \
together with the points that the authors published for MLIC, MLIC+ and MLIC++, and say how far each curve is from one \
of them: BD-rate (how much more or fewer bits for equal quality) and BD-PSNR (how much more quality for equal bits).
"""

EPILOG = """BD-rate and BD-PSNR are computed by piecewise cubic interpolation, as in the common test conditions
of HEVC and VVC, over what both curves cover; – for curves that have nothing in common, and for
single points. MS-SSIM is drawn and compared in decibels, −10·log10(1 − MS-SSIM). Published points
are averages over all pictures of a set, so they belong beside results of the same pictures only.
They are of truncated pixels, which is 0.05 to 0.15 dB lower at high rates than of rounded ones.

examples:
  mlic-fast plot results/*.json --published kodak -o curves.png -o curves.svg
  mlic-fast plot results/*.json --anchor JPEG --at-bpp 0.5
  mlic-fast plot --published tecnick --anchor "MLIC (published)"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("results", metavar="RESULTS.json", nargs="*", help="files of results, one a curve")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PLOT",
        action="append",
        default=[],
        help="picture to write, .png, .svg or .pdf; may be given several times",
    )
    parser.add_argument(
        "--published", choices=("kodak", "tecnick", "clic_pro_val"), help="add the authors' points for these pictures"
    )
    parser.add_argument("--metric", choices=("psnr", "ms-ssim"), default="psnr", help="(default: %(default)s)")
    parser.add_argument("--anchor", metavar="NAME", help="the curve to compare with (default: the first)")
    parser.add_argument(
        "--at-bpp", type=common.positive_number, metavar="X", help="also say each curve's quality at X bits per pixel"
    )
    parser.add_argument("--title", default="", help="above the plot")
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Draw and compare; raises this package's errors and OSError."""
    from mlic_fast.evaluate.curves import read_curve
    from mlic_fast.evaluate.plots import draw, format_of
    from mlic_fast.evaluate.published import published_curves

    if not options.results and options.published is None:
        raise common.CommandError("nothing to plot: name files of results, or --published")
    formats = {name: format_of(name) for name in options.output}
    for name in options.results:
        for output in options.output:
            common.refuse_same_file(name, output)
    for output in options.output:
        common.try_output(output)
    curves = [read_curve(name) for name in options.results]
    if options.published is not None:
        if options.metric != "psnr":
            raise common.CommandError("the published points are of PSNR alone: leave --published or --metric out")
        curves += published_curves(options.published).values()
    anchor = _anchor(curves, options.anchor)
    # drawn before anything is written, so that no curve's error comes between two files
    plots = {
        name: draw(curves, metric=options.metric, format=kind, title=options.title) for name, kind in formats.items()
    }
    facts = [_compared(curve, anchor, options) for curve in curves]
    for name, content in plots.items():
        common.write_output(name, content)
    heads = ["curve", "points", "BD-rate", f"BD-{'PSNR' if options.metric == 'psnr' else 'MS-SSIM'}"]
    if options.at_bpp is not None:
        heads.append(f"dB at {options.at_bpp:g} bpp")
    heads.append("remark")
    lines = table.lines(heads, [_row(one, options) for one in facts], {"curve", "remark"})
    lines += [f"written: {name}" for name in plots]
    told = {"anchor": anchor.name, "metric": options.metric, "curves": facts, "written": list(plots)}
    common.report(argparse.Namespace(json=options.json), told, "\n".join(lines))


def _anchor(curves: list[Curve], name: str | None) -> Curve:
    if name is None:
        return curves[0]
    for curve in curves:
        if curve.name == name:
            return curve
    raise common.CommandError(f"there is no curve {name!r}; there are {', '.join(curve.name for curve in curves)}")


def _compared(curve: Curve, anchor: Curve, options: argparse.Namespace) -> dict[str, Any]:
    """What is said of one curve. Raises CurveError where it does not have the metric."""
    from mlic_fast.errors import CurveError
    from mlic_fast.evaluate.bd_rate import bd_quality, bd_rate, quality_at

    points, base = curve.points(options.metric), anchor.points(options.metric)
    facts: dict[str, Any] = {
        "name": curve.name,
        "points": points,
        "bd_rate": None,
        "bd_quality": None,
        "quality_at_bpp": None,
        "remark": "anchor" if curve is anchor else "",
    }
    try:
        if curve is not anchor:
            facts["bd_rate"] = bd_rate(base, points)
            facts["bd_quality"] = bd_quality(base, points)
    except CurveError as error:
        facts["remark"] = str(error)
    if options.at_bpp is not None:
        try:
            facts["quality_at_bpp"] = quality_at(points, options.at_bpp)
        except CurveError as error:
            facts["remark"] = facts["remark"] or str(error)
    return facts


def _row(facts: dict[str, Any], options: argparse.Namespace) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return table.NOTHING if value is None else format(value, form)

    row = [
        facts["name"],
        str(len(facts["points"])),
        table.NOTHING if facts["bd_rate"] is None else f"{facts['bd_rate']:+.2f} %",
        cell(facts["bd_quality"], "+.3f"),
    ]
    if options.at_bpp is not None:
        row.append(cell(facts["quality_at_bpp"], ".2f"))
    return [*row, facts["remark"]]
