# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast plot`: what is drawn, what is said, and files of results that are none."""

from __future__ import annotations

import builtins
import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mlic_fast.cli.main import main
from mlic_fast.errors import BackendError, CurveError
from mlic_fast.evaluate.bd_rate import bd_quality, bd_rate
from mlic_fast.evaluate.curves import Curve, read_curve
from mlic_fast.evaluate.plots import draw
from mlic_fast.evaluate.published import published_curves

CURVE = Curve("ours", (0.2, 0.4, 0.8), (30.0, 33.0, 36.0), (0.95, 0.98, 0.99))
WORSE = Curve("theirs", (0.3, 0.6, 1.2), (30.0, 33.0, 36.0), (0.95, 0.98, 0.99))


def written(path: Path, curve: Curve, **more: Any) -> Path:
    results = {"bpp": curve.bpp, "psnr-rgb": curve.psnr, "ms-ssim-rgb": curve.ms_ssim}
    path.write_text(json.dumps({"name": curve.name, "description": "", "results": results, **more}))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "ours.json", CURVE)
    written(tmp_path / "theirs.json", WORSE)
    return tmp_path


def test_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plot", "ours.json", "theirs.json", "--published", "kodak", "--title", "$_x^2$ & <b>"]
    assert main([*arguments, "-o", "a.png", "-o", "b.svg", "-o", "c.pdf"]) == 0
    assert "written: b.svg" in capsys.readouterr().out
    with Image.open("a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[:2] == (900, 1350)
    # lines in matplotlib's first five colours, one a curve
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)):
        assert (pixels == colour).all(axis=2).sum() > 100
    text = "".join(ElementTree.parse("b.svg").getroot().itertext())
    for words in ("ours", "theirs", "MLIC (published)", "MLIC+ (published)", "MLIC++ (published)", "PSNR [dB]"):
        assert words in text
    assert "<b>" in text
    assert Path("c.pdf").read_bytes().startswith(b"%PDF-")
    again = Path("b.svg").read_bytes()
    assert main([*arguments, "-o", "b.svg"]) == 0
    assert Path("b.svg").read_bytes() == again


def test_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "ours.json", "theirs.json", "--published", "kodak", "--at-bpp", "0.4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["anchor"], facts["written"]) == ("ours", [])
    ours, theirs, *published = facts["curves"]
    assert (ours["bd_rate"], ours["remark"], ours["quality_at_bpp"]) == (None, "anchor", pytest.approx(33))
    # half as many bits again for the same quality, three quarters of a factor of two in 3 dB steps
    assert theirs["bd_rate"] == pytest.approx(50)
    assert theirs["bd_quality"] == pytest.approx(-3 * math.log2(1.5))
    assert theirs["points"] == [[0.3, 30], [0.6, 33], [1.2, 36]]
    for one in published:
        points = [(rate, quality) for rate, quality in one["points"]]
        assert one["bd_rate"] == pytest.approx(bd_rate(CURVE.points(), points))
        assert one["bd_quality"] == pytest.approx(bd_quality(CURVE.points(), points))
    assert len(published) == 3


def test_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("one.json"), Curve("one", (0.5,), (30.0,)))
    assert main(["plot", "ours.json", "theirs.json", "one.json", "--anchor", "theirs", "--at-bpp", "0.2"]) == 0
    head, ours, theirs, one = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", head) == ["curve", "points", "BD-rate", "BD-PSNR", "dB at 0.2 bpp", "remark"]
    assert ours.split() == ["ours", "3", "-33.33", "%", "+1.755", "30.00"]
    assert theirs.split() == ["theirs", "3", "–", "–", "–", "anchor"]
    assert "at least 2 points" in one
    assert main(["plot", "--published", "tecnick", "--anchor", "MLIC+ (published)"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    curves = published_curves("tecnick")
    assert f"{bd_rate(curves['MLIC+'].points(), curves['MLIC++'].points()):+.2f} %" in last


def test_ms_ssim_is_in_decibels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "ours.json", "theirs.json", "--metric", "ms-ssim", "--json", "-o", "x.svg"]) == 0
    ours, _ = json.loads(capsys.readouterr().out)["curves"]
    assert [quality for _, quality in ours["points"]] == pytest.approx([13.0103, 16.9897, 20])
    assert "MS-SSIM [dB]" in Path("x.svg").read_text()


def test_other_forms_of_results(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"bpp": [2, 1], "psnr": [40, 30.5], "ms-ssim": [0.99, 0.9]}))
    curve = read_curve(path)
    assert (curve.name, curve.points()) == ("old", [(1.0, 30.5), (2.0, 40.0)])
    assert curve.points("ms-ssim")[0] == (1.0, pytest.approx(10))


@pytest.mark.parametrize("names", [("psnr", "ms-ssim"), ("PSNR", "MS-SSIM"), ("psnr-rgb", "ms_ssim_rgb")], ids=str)
@pytest.mark.parametrize("wrapped", [True, False], ids=["in results", "bare"])
@pytest.mark.parametrize("similarity", ["plain", "decibels", "named decibels"])
def test_older_and_other_projects_results(
    names: tuple[str, str], wrapped: bool, similarity: str, tmp_path: Path
) -> None:
    psnr, ms_ssim = names
    values = [0.9, 0.99] if similarity == "plain" else [10.0, 20.0]
    key = f"{ms_ssim} (dB)" if similarity == "named decibels" else ms_ssim
    results = {"bpp": [0.5, 1.0], psnr: [30, 34.5], key: values}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"results": results} if wrapped else results))
    curve = read_curve(path)
    assert curve.points() == [(0.5, 30.0), (1.0, 34.5)]
    assert curve.ms_ssim == (pytest.approx(0.9), pytest.approx(0.99))


@pytest.mark.parametrize(
    "content",
    [
        {"results": [{"bpp": 1, "PSNR": 34.5, "ms-ssim": 20}, {"bpp": 0.5, "PSNR": 30, "ms-ssim": 10, "more": 1}]},
        [{"bpp": 0.5, "psnr": 30, "ms-ssim": 0.9}, {"bpp": 1, "psnr": 34.5, "ms-ssim": 0.99}],
    ],
    ids=["decibels", "bare"],
)
def test_a_dictionary_for_each_point(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content))
    curve = read_curve(path)
    assert curve.name == "theirs"
    assert curve.points() == [(0.5, 30.0), (1.0, 34.5)]
    assert sorted(curve.ms_ssim or ()) == [pytest.approx(0.9), pytest.approx(0.99)]


def test_a_single_point(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"name": "one", "results": {"bpp": 0.5, "psnr-rgb": 30}}))
    assert read_curve(path) == Curve("one", (0.5,), (30.0,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"results": [{"psnr": 3}]}', "no .bpp."),
        (b'{"results": [{"bpp": 1, "psnr": 3}, {"bpp": 2}]}', "finite numbers"),
        (b'{"results": [{"bpp": 1, "psnr": 3}, 5]}', "no .results."),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no .results."),
        (b'{"results": 3}', "no .results."),
        (b'{"results": {}}', "no .bpp."),
        (b'{"results": {"bpp": [1]}}', "no .psnr-rgb."),
        (b'{"results": {"psnr": [1], "rate": [2]}}', "no .bpp.; they have 'psnr', 'rate'"),
        (b'{"results": {"bpp": [], "psnr": []}}', "no .bpp."),
        (b'{"results": {"bpp": [1, 2], "psnr": [1]}}', "differ in length"),
        (b'{"results": {"bpp": [NaN], "psnr": [1]}}', "finite numbers"),
        (b'{"results": {"bpp": [1], "psnr": [null]}}', "finite numbers"),
        (b'{"results": {"bpp": [1' + b"0" * 400 + b'], "psnr": [1]}}', "finite numbers"),
        (b'{"results": {"bpp": [true], "psnr": [1]}}', "finite numbers"),
        (b'{"results": {"bpp": "1", "psnr": "1"}}', "finite numbers"),
        (b'{"results": {"bpp": [0], "psnr": [1]}}', "positive"),
        (b'{"results": {"bpp": [1, 2], "ms-ssim": [12.5, -0.5]}}', "decibels"),
        (b'{"results": {"bpp": [1], "ms-ssim": [-1.5]}}', "-1 to 1"),
    ],
)
def test_what_is_no_file_of_results(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CurveError, match=words) as raised:
        read_curve(path)
    assert str(path) in str(raised.value)
    assert main(["plot", str(path), "-o", str(tmp_path / "x.png")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "nothing to plot"),
        (["missing.json"], 3, "missing.json"),
        (["ours.json", "-o", "x.jpg"], 2, "x.jpg: a plot's name ends in .png, .svg, .pdf"),
        (["ours.json", "--anchor", "absent"], 2, "there are ours"),
        (["ours.json", "--published", "kodak", "--metric", "ms-ssim"], 2, "PSNR alone"),
        (["plain.json", "--metric", "ms-ssim"], 2, "plain has no ms-ssim"),
        (["perfect.json", "--metric", "ms-ssim", "-o", "x.png"], 2, "without loss"),
        (["ours.json", "-o", "no/x.png"], 3, "no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(arguments: list[str], code: int, words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain.json").write_text(json.dumps({"results": {"bpp": [1], "psnr": [30]}}))
    Path("perfect.json").write_text(json.dumps({"results": {"bpp": [1], "ms-ssim": [1]}}))
    before = sorted(folder.iterdir())
    assert main(["plot", *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert sorted(folder.iterdir()) == before


def test_names_are_no_markup_and_no_formulas() -> None:
    hostile = [Curve(name, (1.0, 2.0), (30.0, 31.0)) for name in ("_hidden", r"$\frac$", "<script>")]
    text = draw(hostile, format="svg").decode()
    labels = "".join(ElementTree.parse(io.StringIO(text)).getroot().itertext())
    for name in ("_hidden", r"$\frac$", "<script>"):
        assert name in labels
    assert "<script>" not in text


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackendError, match=r"mlic-fast\[plot\]"):
        draw([CURVE])


def test_nothing_to_draw() -> None:
    with pytest.raises(CurveError, match="no curve"):
        draw([])
    with pytest.raises(CurveError, match="gif"):
        draw([CURVE], format="gif")
