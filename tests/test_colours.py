# SPDX-License-Identifier: Apache-2.0
"""How colours are meant survives: CMYK through its profile, PNG's and BMP's own words, Adobe RGB of EXIF data."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlic_fast.pictures import icc
from mlic_fast.pictures.image import open_image, read_picture
from mlic_fast.train.prepare import Settings, prepare, to_srgb

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def png_with(*chunks: bytes, grey: bool = False, profile: bytes | None = None) -> bytes:
    """A PNG with these chunks (kind and content) in front of its pixels."""
    buffer = io.BytesIO()
    more = {"icc_profile": profile} if profile else {}
    Image.fromarray(PIXELS[..., 0].copy() if grey else PIXELS).save(buffer, "PNG", **more)
    data = buffer.getvalue()
    made = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return data[:33] + made + data[33:]


def gamma(value: float) -> bytes:
    return b"gAMA" + struct.pack(">I", round(value * 100_000))


def primaries(points: icc.Primaries) -> bytes:
    numbers = [value for point in (points.white, points.red, points.green, points.blue) for value in point]
    return b"cHRM" + struct.pack(">8I", *(round(value * 100_000) for value in numbers))


def srgb_of(profile: bytes | None, pixels: np.ndarray[Any, Any] = PIXELS) -> np.ndarray[Any, Any]:
    assert profile is not None
    made = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    out = ImageCms.profileToProfile(Image.fromarray(pixels), made, ImageCms.createProfile("sRGB"), 1, outputMode="RGB")
    assert out is not None
    return np.asarray(out).astype(int)


def formula(points: icc.Primaries, exponent: float, pixels: np.ndarray[Any, Any] = PIXELS) -> np.ndarray[Any, Any]:
    """The same colours in sRGB, by numpy alone, for primaries whose white is D65."""

    def matrix(p: icc.Primaries) -> np.ndarray[Any, Any]:
        xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (p.red, p.green, p.blue)]).T
        x, y = p.white
        return xyz * np.linalg.solve(xyz, [x / y, 1, (1 - x - y) / y])

    light = (pixels / 255.0) ** exponent @ matrix(points).T @ np.linalg.inv(matrix(icc.SRGB)).T
    light = light.clip(0, 1)
    stored = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(stored * 255).astype(int)


@pytest.mark.parametrize(
    ("chunks", "points", "exponent"),
    [
        pytest.param([gamma(1.0)], icc.SRGB, 1.0, id="linear"),
        pytest.param([gamma(1 / 1.8)], icc.SRGB, 1.8, id="gamma alone"),
        pytest.param([gamma(1 / 2.2), primaries(icc.ADOBE_RGB)], icc.ADOBE_RGB, 2.2, id="Adobe RGB"),
        pytest.param([primaries(icc.BT_2020), gamma(1 / 2.4)], icc.BT_2020, 2.4, id="BT.2020"),
    ],
)
def test_gamma_and_primaries_become_a_profile(chunks: list[bytes], points: icc.Primaries, exponent: float) -> None:
    picture = open_image(png_with(*chunks))
    assert picture.icc_profile is not None
    assert len(picture.icc_profile) < 700
    assert np.abs(srgb_of(picture.icc_profile) - formula(points, exponent)).max() <= 2
    with Image.open(io.BytesIO(png_with(*chunks))) as image:
        assert open_image(image).icc_profile == picture.icc_profile


def test_primaries_without_a_gamma() -> None:
    profile = open_image(png_with(primaries(icc.DISPLAY_P3))).icc_profile
    assert np.abs(srgb_of(profile) - srgb_of(icc.rgb_profile("", icc.DISPLAY_P3, icc.SRGB_CURVE))).max() == 0


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([gamma(0.45455)], id="gamma 2.2"),
        pytest.param([gamma(0.45455), primaries(icc.SRGB)], id="gamma and primaries of sRGB"),
        pytest.param([b"sRGB\0", gamma(1.0), primaries(icc.BT_2020)], id="sRGB goes first"),
        pytest.param([b"cICP\x01\x0d\0\x01"], id="sRGB by number"),
        pytest.param([b"cICP\x01\x0d\0\x01", gamma(1.0)], id="sRGB by number goes first"),
    ],
)
def test_what_amounts_to_srgb_needs_no_profile(chunks: list[bytes]) -> None:
    picture = open_image(png_with(*chunks))
    assert picture.icc_profile is None
    assert picture.notes == ()


def test_a_profile_goes_before_gamma_and_numbers_before_a_profile() -> None:
    assert open_image(png_with(gamma(1.0), profile=PROFILE)).icc_profile == PROFILE
    coded = open_image(png_with(b"cICP\x0c\x0d\0\x01", profile=PROFILE)).icc_profile
    assert np.abs(srgb_of(coded) - srgb_of(icc.rgb_profile("", icc.DISPLAY_P3, icc.SRGB_CURVE))).max() == 0


@pytest.mark.parametrize(("code", "words"), [(16, "PQ"), (18, "HLG"), (9, "transfer function 9")])
def test_colours_that_no_profile_says_are_named(code: int, words: str) -> None:
    picture = read_picture(png_with(b"cICP\x09" + bytes([code]) + b"\0\x01"))
    assert picture.icc_profile is None
    assert words in picture.notes[0]


@pytest.mark.parametrize("chunks", [[gamma(1e-5)], [b"cHRM" + bytes(32)], [primaries(icc.SRGB)[:-4] + bytes(4)]])
def test_nonsense_is_named(chunks: list[bytes]) -> None:
    picture = read_picture(png_with(*chunks))
    assert picture.icc_profile is None
    assert picture.notes == ("gamma and primaries that make no sense left out",)


def test_grey_with_a_gamma() -> None:
    profile = open_image(png_with(gamma(1 / 1.8), grey=True)).icc_profile
    wanted = formula(icc.SRGB, 1.8, PIXELS[..., :1].repeat(3, 2))
    assert np.abs(srgb_of(profile, PIXELS[..., 0].copy()) - wanted).max() <= 2


def adobe_exif(space: int, index: bytes | None) -> bytes:
    """EXIF data with a colour space, and an interoperability index."""
    inner = struct.pack("<HHIHH", 0xA001, 3, 1, space, 0)
    count = 1
    if index is not None:
        inner += struct.pack("<HHII", 0xA005, 4, 1, 26 + 2 + 24 + 4)
        count = 2
    data = (
        b"II*\0\x08\0\0\0"
        + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
        + struct.pack("<H", count)
        + inner
        + bytes(4)
    )
    return data if index is None else data + struct.pack("<HHHI", 1, 1, 2, 4) + index + bytes(4)


@pytest.mark.parametrize(
    ("space", "index", "is_adobe"),
    [(1, None, False), (2, None, True), (0xFFFF, b"R03\0", True), (0xFFFF, b"R98\0", False), (1, b"R03\0", False)],
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_adobe_rgb_of_exif_data(space: int, index: bytes | None, is_adobe: bool, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, exif=b"Exif\0\0" + adobe_exif(space, index))
    profile = open_image(buffer.getvalue()).icc_profile
    assert (profile is not None) == is_adobe
    if is_adobe:
        assert np.abs(srgb_of(profile) - formula(icc.ADOBE_RGB, 563 / 256)).max() <= 2
    with_profile = io.BytesIO()
    Image.fromarray(PIXELS).save(with_profile, kind, exif=b"Exif\0\0" + adobe_exif(space, index), icc_profile=PROFILE)
    assert open_image(with_profile.getvalue()).icc_profile == PROFILE


def test_primaries_of_exif_data() -> None:
    def fractions(*values: float) -> bytes:
        return b"".join(struct.pack("<II", round(value * 10_000), 10_000) for value in values)

    p3 = icc.DISPLAY_P3
    entries = struct.pack("<HHII", 318, 5, 2, 38) + struct.pack("<HHII", 319, 5, 6, 54)
    raw = b"II*\0\x08\0\0\0\x02\0" + entries + bytes(4) + fractions(*p3.white, *p3.red, *p3.green, *p3.blue)
    image = Image.fromarray(PIXELS)
    image.info["exif"] = raw
    assert np.abs(srgb_of(open_image(image).icc_profile) - formula(p3, 2.2)).mean() < 2  # sRGB's curve, not 2.2


def bmp(space: bytes, profile: bytes = b"", exponent: float = 2.2) -> bytes:
    """A BMP file of version 5."""
    pixels = PIXELS[::-1, :, ::-1].astype(np.uint8)
    rows = b"".join(row.tobytes().ljust(-(-90 // 4) * 4, b"\0") for row in pixels)
    to_xyz = np.array([[0.5767, 0.1856, 0.1882], [0.2974, 0.6273, 0.0753], [0.0270, 0.0707, 0.9911]])  # Adobe RGB
    ends = struct.pack("<9i", *(round(value * 2**30) for value in to_xyz.T.reshape(-1)))
    info = struct.pack("<IiiHHIIiiII", 124, 30, 20, 1, 24, 0, len(rows), 0, 0, 0, 0) + bytes(16) + space + ends
    info += struct.pack("<3I", *[round(exponent * 65536)] * 3) + struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)
    size = 14 + 124 + len(rows)
    return b"BM" + struct.pack("<IHHI", size + len(profile), 0, 0, 138) + info + rows + profile


def test_bmp_files_of_version_5() -> None:
    assert np.array_equal(open_image(bmp(b"BGRs")).pixels, PIXELS)
    assert open_image(bmp(b"BGRs")).icc_profile is None
    assert open_image(bmp(b"DEBM", PROFILE)).icc_profile == PROFILE
    calibrated = open_image(bmp(bytes(4))).icc_profile
    assert np.abs(srgb_of(calibrated) - formula(icc.ADOBE_RGB, 2.2)).max() <= 3


def test_jpeg_2000_keeps_its_profile() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG2000")
    data = buffer.getvalue()
    place = data.index(b"colr") - 4
    length = int.from_bytes(data[place : place + 4], "big")
    box = struct.pack(">I4sBBB", 11 + len(PROFILE), b"colr", 2, 0, 0) + PROFILE
    head = data.index(b"jp2h") - 4
    size = int.from_bytes(data[head : head + 4], "big") + len(box) - length
    data = data[:head] + struct.pack(">I", size) + data[head + 4 : place] + box + data[place + length :]
    assert open_image(data).icc_profile == PROFILE


def test_avif_says_its_colours_by_number() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "AVIF", quality=100, subsampling="4:4:4")
    data = bytearray(buffer.getvalue())
    assert open_image(bytes(data)).icc_profile is None
    place = data.index(b"nclx") + 4
    data[place : place + 4] = struct.pack(">HH", 12, 13)
    profile = open_image(bytes(data)).icc_profile
    assert np.abs(srgb_of(profile) - srgb_of(icc.rgb_profile("", icc.DISPLAY_P3, icc.SRGB_CURVE))).max() == 0


def cmyk_profile() -> bytes:
    """Inks whose colours are far from the plain formula's: a table of 2 values an ink, to Lab."""

    def part(kind: bytes, content: bytes) -> bytes:
        return kind + bytes(4) + content

    table = b""
    for index in range(16):
        inks = [(index >> shift) & 1 for shift in (3, 2, 1, 0)]
        lightness = max(0.0, 95 - 30 * inks[0] - 40 * inks[1] - 8 * inks[2] - 75 * inks[3])
        a = 0 if inks[3] else -30 * inks[0] + 65 * inks[1]
        b = 0 if inks[3] else -35 * inks[0] + 80 * inks[2]
        table += bytes([round(lightness * 2.55), max(0, min(255, a + 128)), max(0, min(255, b + 128))])
    identity = struct.pack(">9i", *(65536 if index % 4 == 0 else 0 for index in range(9)))
    ramp = bytes(range(256))
    lut = part(b"mft1", struct.pack(">4B", 4, 3, 2, 0) + identity + ramp * 4 + table + ramp * 3)
    name = b"Inks of a test\0"
    desc = part(b"desc", struct.pack(">I", len(name)) + name + bytes(78))
    white = part(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061))
    tags = {b"desc": desc, b"cprt": part(b"text", b"CC0\0"), b"wtpt": white, b"A2B0": lut}
    start = 128 + 4 + 12 * len(tags)
    index_of, data = b"", b""
    for tag, content in tags.items():
        index_of += struct.pack(">4sII", tag, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += (struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp").ljust(44, b"\0") + struct.pack(
        ">3i", 63190, 65536, 54061
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index_of + data


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "object"])
def test_cmyk_goes_through_its_profile(kind: str, tmp_path: Path) -> None:
    profile = cmyk_profile()
    inks = Image.fromarray(RNG.integers(0, 200, (20, 30, 4), dtype=np.uint8), "CMYK")
    inks.info["icc_profile"] = profile
    source: Any = inks
    stored = inks
    if kind != "object":
        buffer = io.BytesIO()
        more = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        inks.save(buffer, kind, icc_profile=profile, **more)
        source = buffer.getvalue()
        stored = Image.open(io.BytesIO(source))
    picture = read_picture(source)
    wanted = ImageCms.profileToProfile(
        stored, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), 0, outputMode="RGB"
    )
    assert wanted is not None
    assert np.abs(picture.pixels.astype(int) - np.asarray(wanted)).max() <= 1
    assert np.abs(picture.pixels.astype(int) - np.asarray(stored.convert("RGB"))).mean() > 10
    assert picture.icc_profile is None
    assert picture.notes == ("CMYK converted to sRGB through its profile (Inks of a test)",)
    if kind != "object":
        (tmp_path / "inks").write_bytes(source)
        outcome = prepare(tmp_path / "inks", tmp_path / "out.png", Settings(min_side=8, halve="none"))
        assert picture.notes[0] in outcome.notes
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), picture.pixels)


def test_cmyk_with_a_profile_of_other_colours_or_none() -> None:
    inks = Image.fromarray(RNG.integers(0, 200, (20, 30, 4), dtype=np.uint8), "CMYK")
    for profile, words in ((PROFILE, "cannot be applied"), (b"no profile", "cannot be applied"), (None, "without")):
        inks.info = {} if profile is None else {"icc_profile": profile}
        picture = read_picture(inks)
        assert np.array_equal(picture.pixels, np.asarray(inks.convert("RGB")))
        assert words in picture.notes[0]
        assert picture.icc_profile is None


def test_training_pictures_are_converted_too() -> None:
    for data, wanted in (
        (png_with(gamma(1.0)), formula(icc.SRGB, 1.0)),
        (png_with(gamma(1 / 2.2), primaries(icc.ADOBE_RGB)), formula(icc.ADOBE_RGB, 2.2)),
    ):
        image, notes = to_srgb(open_image(data))
        assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 2
        assert notes[0].startswith("converted from ")
