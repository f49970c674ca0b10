# SPDX-License-Identifier: Apache-2.0
"""External codecs that are programs of the distribution, and the recipes of docs/evaluation.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from external_samples import (
    Recipe,
    photograph,
    picture,
    posix,
    recipe,
    temporaries,
)
from PIL import Image

from mlic_fast.cli.main import main
from mlic_fast.evaluate.external import code
from mlic_fast.evaluate.metrics import psnr
from mlic_fast.evaluate.recipes import read_recipe
from mlic_fast.pictures.image import open_image

__all__ = ["photograph", "picture", "recipe", "temporaries"]

ROOT = Path(__file__).parent.parent

# What a recipe is of, programs that it takes, and how close the highest quality is.
REAL: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "WebP": (
        ("cwebp", "dwebp"),
        {
            "encode": "cwebp -quiet -m 6 -q {quality} {input} -o {output}",
            "decode": "dwebp -quiet {input} -o {output}",
            "qualities": [5, 50, 95],
            "suffix": ".webp",
        },
        36,
    ),
    "WebP, PPM": (
        ("cwebp", "dwebp"),
        {
            "encode": "cwebp -quiet -q {quality} {input} -o {output}",
            "decode": "dwebp -quiet -ppm {input} -o {output}",
            "qualities": [5, 50, 95],
            "encoder_reads": "ppm",
            "decoder_writes": "ppm",
        },
        36,
    ),
    "JPEG XL": (
        ("cjxl", "djxl"),
        {
            "encode": "cjxl {input} {output} -q {quality} -e 3 --num_threads=0",
            "decode": "djxl {input} {output} --num_threads=0",
            "qualities": [10, 50, 95],
            "suffix": ".jxl",
        },
        36,
    ),
    "AVIF": (
        ("avifenc", "avifdec"),
        {
            "encode": "avifenc -s 8 -y 444 --min {quality} --max {quality} {input} {output}",
            "decode": "avifdec {input} {output}",
            "qualities": [55, 30, 5],
            "quality_name": "quantizer",
            "suffix": ".avif",
        },
        40,
    ),
    "AVIF, 16 bits out": (
        ("avifenc", "avifdec"),
        {
            "encode": "avifenc -s 8 -d 10 -y 444 --min {quality} --max {quality} {input} {output}",
            "decode": "avifdec -d 16 {input} {output}",
            "qualities": [55, 30, 5],
            "suffix": ".avif",
        },
        40,
    ),
    "AV1, raw planes": (
        ("aomenc", "aomdec"),
        {
            "encode": "aomenc --i444 --profile=1 -w {width} -h {height} --limit=1 --cpu-used=6 --allintra "
            "--end-usage=q --cq-level={quality} --ivf -o {output} {input}",
            "decode": "aomdec --rawvideo -o {output} {input}",
            "qualities": [60, 35, 5],
            "encoder_reads": "yuv444p",
            "decoder_writes": "yuv444p",
            "suffix": ".ivf",
        },
        40,
    ),
    "AV1, raw planes of 10 bits": (
        ("aomenc", "aomdec"),
        {
            "encode": "aomenc --i444 --profile=1 -b 10 --input-bit-depth=10 -w {width} -h {height} --limit=1 "
            "--cpu-used=6 --allintra --end-usage=q --cq-level={quality} --ivf -o {output} {input}",
            "decode": "aomdec --rawvideo --output-bit-depth=10 -o {output} {input}",
            "qualities": [60, 35, 5],
            "encoder_reads": "yuv444p10le",
            "decoder_writes": "yuv444p10le",
            "matrix": "bt601",
            "range": "limited",
            "suffix": ".ivf",
        },
        40,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_programs(name: str, photograph: Image.Image, recipe: Recipe) -> None:
    needed, settings, best = REAL[name]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        give_up = pytest.fail if os.environ.get("MLIC_FAST_ALL_TOOLS") == "1" else pytest.skip
        give_up(f"{' and '.join(missing)} not installed")
    codec = recipe(**settings)
    colour = open_image(photograph)
    runs = [code(codec, colour, quality) for quality in codec.qualities]
    sizes = [len(run.data) for run in runs]
    qualities = [psnr(colour.pixels, run.pixels) for run in runs]
    assert sizes[0] < sizes[1] < sizes[2]
    assert 15 < qualities[0] < qualities[1] < qualities[2]
    assert qualities[2] > best
    grey = open_image(photograph.convert("L").crop((0, 0, 63, 47)))
    assert psnr(grey.pixels, code(codec, grey, codec.qualities[2]).pixels) > best


# Stands in for VTM's two programs: takes their switches, checks them, and "codes" with steps that grow with QP.
VTM = """
import argparse, sys, zlib
parser = argparse.ArgumentParser(allow_abbrev=False)
encoder = "Encoder" in sys.argv[0]
for flag in ("-b", "-o") + (("-c", "-i", "-q", "-wdt", "-hgt", "-fr", "-f") if encoder else ("-d",)):
    parser.add_argument(flag, required=True)
if encoder:
    for flag in ("--InputBitDepth", "--InputChromaFormat", "--ConformanceWindowMode"):
        parser.add_argument(flag, required=True, type=int)
given = parser.parse_args()
if encoder:
    assert (given.InputBitDepth, given.InputChromaFormat, given.ConformanceWindowMode) == (8, 444, 1)
    assert (given.fr, given.f, given.o) == ("1", "1", "/dev/null")
    assert "InternalBitDepth" in open(given.c).read()
    data = open(given.i, "rb").read()
    assert len(data) == 3 * int(given.wdt) * int(given.hgt)
    step = round(2 ** ((int(given.q) - 4) / 6))
    open(given.b, "wb").write(zlib.compress(bytes(value // step * step for value in data)))
else:
    assert given.d == "8"
    open(given.o, "wb").write(zlib.decompress(open(given.b, "rb").read()))
"""


@posix
def test_the_documents_recipes(
    photograph: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    webp, vtm = recipes
    assert "cwebp" in webp
    programs_folder = tmp_path / "bin"
    programs_folder.mkdir()
    for name in ("EncoderAppStatic", "DecoderAppStatic", "cwebp", "dwebp"):
        program = programs_folder / name
        program.write_text(f"#!{sys.executable}\n{VTM}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs_folder), prepend=os.pathsep)
    (tmp_path / "webp.toml").write_text(webp)
    assert read_recipe(tmp_path / "webp.toml").qualities == ("5", "25", "50", "75", "95")
    (tmp_path / "vtm.toml").write_text(vtm)
    (tmp_path / "encoder_intra_vtm.cfg").write_text("InternalBitDepth : 10\n")
    (tmp_path / "kodak").mkdir()
    photograph.save(tmp_path / "kodak" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "kodak", "--external", "VTM-17.0=vtm.toml", "--no-model", "-o", "vtm", "--json"]) == 0
    averages = json.loads(capsys.readouterr().out)["averages"]
    psnrs = {point["label"]: point["psnr"] for point in averages}
    labels = [f"QP {qp}" for qp in (47, 42, 37, 32, 27, 22)]
    assert sorted(psnrs, key=lambda label: psnrs[label]) == labels
    description = json.loads((tmp_path / "vtm" / "VTM-17.0.json").read_text())["description"]
    assert description.endswith("yuv444p to the encoder, yuv444p from the decoder, bt709, full range")
