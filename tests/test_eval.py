# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast eval`: the numbers, the reports, and what happens to pictures and models that fail."""

from __future__ import annotations

import csv
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import one_thread
from PIL import Image, ImageCms

from mlic_fast import decode
from mlic_fast.bitstream import container
from mlic_fast.cli.main import main
from mlic_fast.evaluate.classical import Codec
from mlic_fast.evaluate.curves import Curve, ms_ssim_decibels, read_curve
from mlic_fast.evaluate.dataset import pictures_in
from mlic_fast.evaluate.measurements import Measurement, averages, curve, left_out
from mlic_fast.evaluate.metrics import Quality

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a colour picture, and with a grey one in a subfolder whose name is markup."""
    folder = tmp_path_factory.mktemp("photographs")
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        photograph = Image.open(file).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = photograph.crop((200, 150, 392, 330))
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "b.png", icc_profile=profile)
    (folder / "a|b").mkdir()
    photograph.convert("L").crop((100, 90, 165, 150)).save(folder / "a|b" / "grey.jpg")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def evaluated(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `eval` wrote over it."""
    out = tmp_path_factory.mktemp("out")
    code = main(
        ["eval", str(photographs), "-o", str(out / "a" / "b"), "--keep", str(out / "kept"), "--classical", "jpeg"]
    )
    assert code == 0
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_picture_goes_through_a_file(photographs: Path, evaluated: Path) -> None:
    rows = {row["picture"]: row for row in rows_of(evaluated / "a/b/pictures.csv") if row["curve"] == "mlicpp-s-0.0067"}
    assert list(rows) == ["a|b/grey.jpg", "b.png"]
    for name, mode in (("a|b/grey.jpg", "L"), ("b.png", "RGB")):
        row = rows[name]
        data = (evaluated / "kept" / "mlicpp-s-0.0067" / f"{name}.mlic").read_bytes()
        file = container.read(data)
        original = np.asarray(Image.open(photographs / name).convert(mode), float)
        decoded = decode(data)
        assert decoded.mode == mode
        assert file.metadata == ()  # neither profile nor alpha
        area = original.shape[0] * original.shape[1]
        assert (int(row["height"]), int(row["width"])) == original.shape[:2]
        assert (int(row["bytes"]), int(row["bytes_strings"])) == (len(data), len(file.y) + len(file.z))
        assert float(row["bpp"]) == pytest.approx(8 * len(data) / area)
        assert float(row["bpp_strings"]) == pytest.approx(8 * (len(file.y) + len(file.z)) / area)
        error = ((original - np.asarray(decoded, float)) ** 2).mean()
        assert float(row["psnr"]) == pytest.approx(10 * math.log10(255**2 / error))
        assert 20 < float(row["psnr_truncated"]) < float(row["psnr"]) + 0.5
        assert float(row["encoding_time"]) > 0 < float(row["decoding_time"])
    # too small for it
    assert rows["a|b/grey.jpg"]["ms_ssim"] == ""
    assert 0.5 < float(rows["b.png"]["ms_ssim"]) < 1


def test_reports_agree(evaluated: Path) -> None:
    rows = rows_of(evaluated / "a/b/pictures.csv")
    assert {path.name for path in (evaluated / "a/b").iterdir()} == {
        "pictures.csv",
        "report.md",
        "mlicpp-s-0.0067.json",
        "JPEG.json",
    }
    data = json.loads((evaluated / "a/b/mlicpp-s-0.0067.json").read_text())
    own = [row for row in rows if row["curve"] == "mlicpp-s-0.0067"]
    results = data["results"]
    assert (data["name"], data["points"], data["pictures"]) == ("mlicpp-s-0.0067", ["mlicpp-s-0.0067"], 2)
    for key, column in (
        ("bpp", "bpp"),
        ("bpp-strings", "bpp_strings"),
        ("psnr-rgb", "psnr"),
        ("psnr-rgb-truncated", "psnr_truncated"),
        ("encoding_time", "encoding_time"),
        ("decoding_time", "decoding_time"),
    ):
        assert results[key] == [pytest.approx(np.mean([float(row[column]) for row in own]))]
    # of the one picture that is large enough
    assert results["ms-ssim-rgb"] == [pytest.approx(float(own[1]["ms_ssim"]))]
    jpeg = json.loads((evaluated / "a/b/JPEG.json").read_text())
    assert "bpp-strings" not in jpeg["results"]
    assert "4:2:0" in jpeg["description"]
    assert jpeg["results"]["bpp"] == sorted(jpeg["results"]["bpp"])
    assert len(jpeg["results"]["bpp"]) == len(jpeg["points"]) == 11

    report = (evaluated / "a/b/report.md").read_text()
    assert (
        f"| mlicpp-s-0.0067 | mlicpp-s-0.0067 | {results['bpp'][0]:.4f} | {results['bpp-strings'][0]:.4f} |" in report
    )
    assert "| JPEG | quality 50 |" in report
    assert r"a\|b/grey.jpg" in report
    heads = [line for line in report.splitlines() if line.startswith("| codec ")]
    assert len(heads) == 2
    # what JPEG has at the model's rate, interpolated
    (line,) = [line for line in report.splitlines() if line.startswith("| mlicpp-s-0.0067 | ") and "| JPEG |" in line]
    quality, rate = (float(cell) for cell in line.strip("| ").split(" | ")[-2:])
    points = read_curve(evaluated / "a/b/JPEG.json").points()
    below = max(point for point in points if point[0] <= results["bpp"][0])
    above = min(point for point in points if point[0] >= results["bpp"][0])
    assert below[1] <= quality <= above[1]
    assert rate > 0


@pytest.mark.parametrize("metric", ["psnr", "ms-ssim"])
def test_compressai_plots_it(metric: str, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from compressai.utils.plot.__main__ import main as plot

    files = [str(evaluated / "a/b" / name) for name in ("mlicpp-s-0.0067.json", "JPEG.json")]
    plot(["-f", *files, "-m", metric, "-o", str(tmp_path / "plot.png")])
    with Image.open(tmp_path / "plot.png") as drawn:
        assert min(drawn.size) > 100


def scaled_model(path: Path, scale: float, name: str) -> None:
    """The bundled model with a smaller latent, which takes fewer bits."""
    from mlic_fast.checkpoint import read_checkpoint, write_native
    from mlic_fast.registry import DEFAULT_MODEL, resolve

    source = read_checkpoint(resolve(DEFAULT_MODEL))
    state = dict(source.state_dict)
    for part in ("weight", "bias"):
        key = f"g_a.analysis_transform.6.{part}"
        state[key] = state[key] * scale
    write_native(path, state, source.config, name=name, lmbda=scale, metric="mse")


def test_several_models_make_a_curve(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaled_model(tmp_path / "half.safetensors", 0.5, "half")
    single = tmp_path / "single"
    single.mkdir()
    (single / "b.png").write_bytes((photographs / "b.png").read_bytes())
    models = ["--model", "mlicpp-s-0.0067", "--model", str(tmp_path / "half.safetensors")]
    out = tmp_path / "out"
    assert (
        main(["eval", str(single), *models, "--name", "two λ", "-o", str(out), "--format", "official", "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert [point["label"] for point in facts["averages"]] == ["half", "mlicpp-s-0.0067"]
    assert facts["failures"] == []
    found = read_curve(out / "two-λ.json")
    assert found.name == "two λ"
    assert found.bpp[0] < found.bpp[1]
    # the official layout has 28 bytes beside the streams
    row = rows_of(out / "pictures.csv")[0]
    assert int(row["bytes"]) - int(row["bytes_strings"]) == 28


def test_a_bad_picture_is_named_and_does_not_stop_the_rest(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes((photographs / "b.png").read_bytes()[:2000])
    (folder / "b.png").write_bytes((photographs / "b.png").read_bytes())
    arguments = ["eval", str(folder), "--classical", "jpeg,webp", "--classical-only", "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.count("a.png") >= 1
    assert "failed: 1\n" in printed.err
    assert "means over 1 of 2 pictures" in printed.out
    rows = rows_of(tmp_path / "out/pictures.csv")
    assert {row["picture"] for row in rows} == {"b.png"}
    assert len(rows) == 22
    assert "failed: a.png" in (tmp_path / "out/report.md").read_text()
    (folder / "b.png").write_bytes(b"")
    assert main(arguments[:-2]) == 1
    assert "failed: 2\n" in capsys.readouterr().err


def test_a_picture_that_one_quality_cannot_code_counts_nowhere(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = Codec.encode

    def failing(self: Codec, picture: Any, quality: float) -> bytes:
        if picture.height == 60 and quality == 20:
            raise MemoryError
        return encode(self, picture, quality)

    monkeypatch.setattr(Codec, "encode", failing)
    arguments = ["eval", str(photographs), "--classical", "jpeg", "--classical-only", "-o", str(tmp_path)]
    assert main([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    (failure,) = facts["failures"]
    assert (failure["picture"], failure["codec"]) == ("a|b/grey.jpg", "JPEG, quality 20")
    assert facts["pictures"] == 1
    assert "a|b/grey.jpg" in facts["remarks"][-1]
    rows = rows_of(tmp_path / "pictures.csv")
    assert len(rows) == 21
    for point in facts["averages"]:
        (own,) = [row for row in rows if row["point"] == point["label"] and row["picture"] == "b.png"]
        assert point["bpp"] == float(own["bpp"])


def test_interrupted(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = Codec.encode

    def stopping(self: Codec, picture: Any, quality: float) -> bytes:
        if quality == 30:
            raise KeyboardInterrupt
        return encode(self, picture, quality)

    monkeypatch.setattr(Codec, "encode", stopping)
    (tmp_path / "JPEG.json").write_text("of an earlier run")
    arguments = ["eval", str(photographs), "--classical", "jpeg", "--classical-only", "-o", str(tmp_path)]
    assert main(arguments) == 130
    assert "6 measurements" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"JPEG.json", "pictures-interrupted.csv"}
    assert (tmp_path / "JPEG.json").read_text() == "of an earlier run"
    assert len(rows_of(tmp_path / "pictures-interrupted.csv")) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing"], 3, "no folder missing"),
        (["b.png"], 4, "not a folder"),
        (["empty"], 4, "no pictures in empty"),
        ([".", "--model", "absent"], 6, "absent"),
        ([".", "--model", "mlicpp-s-0.0067", "--model", "mlicpp-s-0.0067"], 2, "two models are called mlicpp-s-0.0067"),
        ([".", "--classical", "bpg"], 2, "no classical codec 'bpg'"),
        ([".", "--classical-only"], 2, "--no-model goes with"),
        ([".", "--no-model", "--model", "mlicpp-s-0.0067", "--classical", "jpeg"], 2, "without --model"),
        ([".", "--classical", "jpeg", "--name", "jpeg"], 2, "use --name"),
        ([".", "-o", "b.png"], 2, "b.png is a file"),
        ([".", "--device", "cuda:77"], 7, "cuda:77"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(
    arguments: list[str],
    code: int,
    words: str,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "b.png").write_bytes((photographs / "b.png").read_bytes())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"b.png", "empty"}


def test_pictures_are_found_by_their_endings(photographs: Path) -> None:
    found = pictures_in(photographs).pictures
    assert [path.relative_to(photographs).as_posix() for path in found] == ["a|b/grey.jpg", "b.png"]


def measured(point: str, picture: str, size: int, psnr: float, ms_ssim: float | None = None) -> Measurement:
    quality = Quality(psnr, ms_ssim, psnr - 0.1, ms_ssim)
    return Measurement("c", point, picture, 10, 8, size, size - 10, quality, 1.0, 2.0)


def test_averages_are_means_of_the_pictures_values() -> None:
    measurements = [
        measured("much", "a", 300, 40.0, 0.9),
        measured("much", "b", 100, 30.0),
        measured("little", "a", 30, 20.0),
        measured("little", "b", 20, 22.0),
        measured("little", "only here", 99, 99.0),
    ]
    little, much = averages(measurements)
    assert (little.label, little.pictures, little.bpp, little.psnr) == ("little", 2, 2.5, 21.0)
    assert (much.label, much.bpp, much.bpp_strings, much.psnr, much.ms_ssim) == ("much", 20.0, 19.0, 35.0, 0.9)
    assert (much.psnr_truncated, much.encode_seconds, much.decode_seconds) == (34.9, 1.0, 2.0)
    assert left_out(measurements) == ["only here"]
    assert curve([little, much], "c") == Curve("c", (2.5, 20.0), (21.0, 35.0))
    assert averages([measured("x", "a", 10, math.inf)])[0].psnr == math.inf
    assert averages([]) == []
    assert ms_ssim_decibels(0.99) == pytest.approx(20)
