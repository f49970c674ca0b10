# SPDX-License-Identifier: Apache-2.0
"""Comparing files: the numbers, what is refused, and the page with the pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import one_thread
from PIL import Image, ImageCms

from mlic_fast import decode, encode
from mlic_fast.cli.main import main
from mlic_fast.errors import ImageError, WrongWeightsError
from mlic_fast.evaluate.comparison import compare_files
from mlic_fast.evaluate.page import page

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph, 190 x 170, in several formats."""
    folder = tmp_path_factory.mktemp("compared")
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        photograph = Image.open(file).convert("RGB").crop((100, 100, 290, 270))
    photograph.save(folder / "a.png")
    photograph.save(folder / "b.jpg", quality=10)
    photograph.save(folder / "c.webp", quality=10)
    photograph.save(folder / "same.bmp")
    photograph.convert("L").save(folder / "grey.png")
    photograph.crop((0, 0, 60, 50)).save(folder / "small.png")
    (folder / "d.mlic").write_bytes(encode(photograph))
    (folder / "e.bin").write_bytes(encode(photograph, format="official"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which the test stands in and may write to."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    return copy


class _Page(HTMLParser):
    """What a page has: images (attributes and pixels), identifiers, anything that leads elsewhere, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[tuple[dict[str, str | None], np.ndarray]] = []
        self.identifiers: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.labelled: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        if identifier := given.get("id"):
            self.identifiers.append(identifier)
        self.links += [value for name, value in attributes if name in ("href", "srcset", "action", "data") and value]
        source = given.get("src")
        if tag == "img" and source and source.startswith("data:image/png;base64,"):
            content = base64.b64decode(source.partition(",")[2], validate=True)
            self.images.append((given, np.asarray(Image.open(io.BytesIO(content)))))
        elif source:
            self.links.append(source)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.png", "b.jpg", "c.webp", "d.mlic", "same.bmp", "grey.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["page"]) == (190, 170, None)
    assert facts["reference"]["bytes"] == Path("a.png").stat().st_size
    told = {picture["file"]: picture for picture in facts["pictures"]}
    assert list(told) == ["b.jpg", "c.webp", "d.mlic", "same.bmp", "grey.png"]
    decode(Path("d.mlic").read_bytes()).save("d.png")
    original = np.asarray(Image.open("a.png"), float)
    for name, source in (("b.jpg", "b.jpg"), ("c.webp", "c.webp"), ("d.mlic", "d.png"), ("grey.png", "grey.png")):
        picture, size = told[name], Path(name).stat().st_size
        decoded = np.asarray(Image.open(source).convert("RGB"), float)
        assert picture["psnr"] == pytest.approx(10 * np.log10(255**2 / ((original - decoded) ** 2).mean()))
        assert 0.5 < picture["ms_ssim"] < 1
        assert (picture["bytes"], picture["equal"], picture["notes"]) == (size, False, [])
        assert picture["bpp"] == pytest.approx(8 * size / (190 * 170))
    assert (told["same.bmp"]["equal"], told["same.bmp"]["psnr"]) == (True, None)
    assert told["same.bmp"]["ms_ssim"] == pytest.approx(1)


def test_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.png", "b.jpg", "same.bmp"]) == 0
    head, reference, jpeg, same = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "bytes", "bpp", "PSNR", "MS-SSIM", "notes"]
    assert reference.startswith("a.png ")
    assert reference.endswith("reference")
    assert re.fullmatch(r"b\.jpg +[\d,]+ +\d\.\d{4} +\d\d\.\d\d +0\.\d{4}", jpeg)
    assert re.fullmatch(r"same\.bmp +[\d,]+ +\d\d\.\d{4} +equal +1\.0000", same)
    assert main(["compare", "small.png", "small.png"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["equal", "small"]


def test_the_official_layout_needs_a_model(folder: Path) -> None:
    with pytest.raises(WrongWeightsError, match="name them"):
        compare_files("a.png", ["e.bin"])
    _, decoded = compare_files("a.png", ["e.bin"], model="mlicpp-s-0.0067")
    assert decoded.psnr is not None
    assert decoded.psnr > 20


def test_a_compressed_reference(folder: Path) -> None:
    _, original = compare_files("d.mlic", ["a.png"])
    _, decoded = compare_files("a.png", ["d.mlic"])
    assert original.psnr == decoded.psnr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.png", "small.png"], 4, "small.png is 60 x 50, the reference a.png 190 x 170"),
        (["a.png", "missing.png"], 3, "missing.png"),
        (["missing.png", "a.png"], 3, "missing.png"),
        (["a.png", "."], 4, "folder"),
        (["a.png", "text.txt"], 4, "text.txt is not a picture"),
        (["a.png", "cut.mlic"], 5, "ends early"),
        (["a.png", "d.mlic", "--model", "absent"], 6, "absent"),
        (["a.png", "page.html", "-o", "page.html"], 2, "page.html is the input itself"),
        (["a.png", "b.jpg", "-o", "c.webp"], 2, "c.webp: the page is an HTML file"),
        (["a.png", "b.jpg", "-o", "no/folder.html"], 3, "no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(arguments: list[str], code: int, words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("no picture")
    shutil.copy("b.jpg", "page.html")
    Path("cut.mlic").write_bytes(Path("d.mlic").read_bytes()[:-10])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["compare", *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("arguments", [["a.png"], ["a.png", "b.jpg", "--gain", "0"], ["a.png", "b.jpg", "--gain", "²"]])
def test_wrong_command_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    assert stopped.value.code == 2


def test_notes_on_profiles_and_alpha(folder: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    picture = Image.open("a.png")
    picture.save("profile.png", icc_profile=profile)
    clear, opaque = picture.convert("RGBA"), picture.convert("RGBA")
    clear.putalpha(100)
    clear.save("clear.png")
    opaque.save("opaque.png")
    notes = [entry.notes for entry in compare_files("a.png", ["profile.png", "clear.png", "opaque.png", "b.jpg"])]
    assert [len(each) for each in notes] == [0, 1, 1, 0, 0]
    assert "colour profile" in notes[1][0]
    assert "alpha" in notes[2][0]
    assert compare_files("profile.png", ["profile.png"])[1].notes == ()
    assert compare_files("clear.png", ["clear.png"])[1].notes == ()
    assert len(compare_files("clear.png", ["a.png"])[1].notes) == 1


def test_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "<b onload='x'>&\".png"
    shutil.copy("grey.png", hostile)
    assert main(["compare", "a.png", "b.jpg", hostile, "d.mlic", "-o", "page.html", "--gain", "3"]) == 0
    jpeg = capsys.readouterr().out.splitlines()[2].split()
    text = Path("page.html").read_text("utf-8")
    found = _Page(text)

    # the pictures, and what the difference maps are said to be
    original = np.asarray(Image.open("a.png"))
    grey = np.asarray(Image.open("grey.png"))
    (reference, *pictures) = found.images
    assert reference[0]["id"] == "reference"
    np.testing.assert_array_equal(reference[1], original)
    assert [given.get("data-picture") for given, _ in pictures] == ["0", None, "1", None, "2", None]
    assert [given.get("data-difference") for given, _ in pictures] == [None, "0", None, "1", None, "2"]
    np.testing.assert_array_equal(pictures[0][1], np.asarray(Image.open("b.jpg")))
    np.testing.assert_array_equal(pictures[2][1], grey)
    for shown, (given, map_) in zip(
        (pictures[0][1], np.repeat(grey[..., None], 3, axis=2), pictures[4][1]), pictures[1::2], strict=True
    ):
        np.testing.assert_array_equal(map_, np.clip(128 + 3 * (shown.astype(int) - original), 0, 255))
        assert "× 3" in (given["alt"] or "")
    assert pictures[2][0]["alt"] == hostile

    # the numbers of the terminal
    for value in jpeg:
        assert value in found.text
    # nothing leads anywhere, and a name is no markup
    assert found.links == []
    assert "b" not in found.tags
    assert "default-src 'none'" in text
    assert not re.findall(r"https?://|url\(|@import|fetch\(|\$[a-z]", re.sub(r'base64,[^"]*', "", text))
    # what the script looks for is there once
    assert len(set(found.identifiers)) == len(found.identifiers)
    assert set(re.findall(r'\bby\("(\w+)"\)', text)) <= set(found.identifiers)
    for name in ("main", "table", "form", "fieldset", "legend"):
        assert name in found.tags


def test_page_on_standard_output(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["compare", "a.png", "b.jpg", "-o", "-"]) == 0
    printed = capfdbinary.readouterr()
    assert len(_Page(printed.out.decode()).images) == 3
    assert b"b.jpg" in printed.err


def test_pictures_keep_their_profile_on_the_page(folder: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open("a.png").save("profile.png", icc_profile=profile)
    text = page(compare_files("profile.png", ["a.png"]), gain=1)
    contents = [base64.b64decode(data) for data in re.findall(r'base64,([^"]*)', text)]
    profiles: list[Any] = [Image.open(io.BytesIO(content)).info.get("icc_profile") for content in contents]
    assert profiles == [profile, None, None]


def test_a_page_of_one_picture_is_none(folder: Path) -> None:
    with pytest.raises(ImageError, match="a reference, a picture and a positive gain"):
        page(compare_files("a.png", []), gain=8)
