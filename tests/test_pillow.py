# SPDX-License-Identifier: Apache-2.0
"""The Pillow plugin: opening, decoding, saving, thumbnails, limits, errors, copies, pickles and threads."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

import mlic_fast
import mlic_fast.codec
import mlic_fast.pillow
import mlic_fast.rate_control
from mlic_fast.bitstream import container
from mlic_fast.bitstream.container import ChunkKind, Metadata
from mlic_fast.pillow import MlicImageFile

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def exif_of(**tags: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[ExifTags.Base[name]] = value
    return exif


@pytest.fixture(scope="module")
def photograph() -> Image.Image:  # RGB, 64 x 42
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        return Image.open(file).convert("RGB").resize((300, 200)).crop((110, 70, 174, 112))


@pytest.fixture(scope="module")
def coded(photograph: Image.Image) -> bytes:
    """The photograph with a thumbnail of 32 x 21 and all kinds of metadata."""
    image = photograph.copy()
    image.info["comment"] = b"a cup"
    buffer = io.BytesIO()
    image.save(buffer, "MLIC", icc_profile=ICC, exif=exif_of(Make="Example"), xmp=XMP, thumbnail=32)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoded(coded: bytes) -> Image.Image:
    return mlic_fast.decode(coded)


@pytest.fixture
def path(coded: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "cup.mlic"
    path.write_bytes(coded)
    return path


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr(mlic_fast.codec, "decode", refuse)


def save(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "MLIC", **options)
    return buffer.getvalue()


def reopen(image: Image.Image, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(save(image, **options)))


def rewritten(data: bytes, **changes: Any) -> bytes:
    """The file with other contents and right checksums."""
    return container.write(replace(container.read(data), **changes))


def with_thumbnail(data: bytes, thumbnail: Image.Image | bytes) -> bytes:
    if isinstance(thumbnail, Image.Image):
        buffer = io.BytesIO()
        thumbnail.save(buffer, "PNG")
        thumbnail = buffer.getvalue()
    others = [chunk for chunk in container.read(data).metadata if chunk.kind != ChunkKind.THUMBNAIL]
    return rewritten(data, metadata=(*others, Metadata(int(ChunkKind.THUMBNAIL), thumbnail)))


def test_opening_neither_decodes_nor_imports_torch(path: Path) -> None:
    program = (
        "import sys, mlic_fast.pillow\n"
        "from PIL import Image\n"
        "image = Image.open(sys.argv[1])\n"
        "print(image.format, image.mode, image.size, sorted(image.info), image.get_format_mimetype())\n"
        "image.thumbnail((20, 20)); image.load(); print(image.size)\n"
        "again = Image.open(sys.argv[1]); again.verify()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    run = [sys.executable, "-W", "error::ResourceWarning", "-c", program, str(path)]
    finished = subprocess.run(run, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [
        "MLIC RGB (64, 42) ['comment', 'dpi', 'exif', 'icc_profile', 'xmp'] image/x-mlic",
        "(20, 13)",
    ]


def test_opens_by_path_and_from_memory(path: Path, coded: bytes, decoded: Image.Image) -> None:
    renamed = path.rename(path.with_suffix(".png"))  # the contents decide
    for source in (renamed, str(renamed), io.BytesIO(coded)):
        with Image.open(source) as image:
            assert isinstance(image, MlicImageFile)
            assert image.tobytes() == decoded.tobytes()
    with renamed.open("rb") as file, Image.open(file) as image:
        image.load()
        assert not file.closed  # whoever opened it closes it
        file.seek(0)


def test_opens_a_stream_that_cannot_seek(coded: bytes, decoded: Image.Image) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self._rest = io.BytesIO(coded)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self._rest.readinto(buffer)

    assert Image.open(io.BufferedReader(Pipe())).tobytes() == decoded.tobytes()


def test_metadata_is_that_of_decode(coded: bytes, decoded: Image.Image) -> None:
    image = Image.open(io.BytesIO(coded))
    assert image.info == decoded.info
    assert image.info["icc_profile"] == ICC
    assert image.info["xmp"] == XMP
    assert image.info["comment"] == b"a cup"
    assert image.getexif()[ExifTags.Base.Make] == "Example"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes(photograph: Image.Image, mode: str) -> None:
    source = photograph.crop((0, 0, 40, 30)).convert(mode)
    if mode.endswith("A"):
        source.putalpha(Image.linear_gradient("L").resize(source.size))
    image = reopen(source)
    assert image.mode == mode
    assert image.load() is not None
    assert (image.mode, image.size) == (mode, (40, 30))
    difference = np.asarray(image, float) - np.asarray(source, float)
    assert np.abs(difference).mean() < 12
    if mode.endswith("A"):
        assert image.getchannel("A").tobytes() == source.getchannel("A").tobytes()


@pytest.mark.parametrize(("mode", "becomes"), [("P", "RGB"), ("1", "L"), ("CMYK", "RGB")])
def test_saves_what_converts(photograph: Image.Image, mode: str, becomes: str) -> None:
    assert reopen(photograph.resize((16, 16)).convert(mode)).mode == becomes


def test_16_bits_are_reduced_only_when_asked() -> None:
    deep = Image.fromarray(np.full((16, 16), 30_000, np.uint16))
    with pytest.raises(OSError, match=r"save a picture of mode I;16 as MLIC: .*reduce"):
        save(deep)
    assert reopen(deep, reduce_depth=True).mode == "L"


def test_saves_to_a_path_as_encode_does(photograph: Image.Image, tmp_path: Path) -> None:
    for target in (tmp_path / "a.mlic", str(tmp_path / "b.MLIC")):
        photograph.save(target)
        assert Path(target).read_bytes() == mlic_fast.encode(photograph)


def test_carried_metadata_is_kept_replaced_and_left_out(coded: bytes, decoded: Image.Image) -> None:
    assert reopen(decoded).info == decoded.info
    changed = reopen(decoded, xmp="<other/>", exif=exif_of(Artist="Me"))
    assert changed.info["xmp"] == b"<other/>"
    assert dict(changed.getexif()) == {ExifTags.Base.Artist: "Me"}
    assert changed.info["icc_profile"] == ICC
    without = reopen(decoded, icc_profile=None, exif=b"", xmp=None)
    assert set(without.info) == {"comment", "dpi"}
    assert set(reopen(decoded, metadata=False).info) == {"icc_profile"}
    assert decoded.info["xmp"] == XMP  # the image that was saved is as it was


def test_resolution(photograph: Image.Image) -> None:
    assert reopen(photograph, dpi=(300, 150)).info["dpi"] == (300, 150)
    assert "dpi" not in reopen(photograph, dpi=None).info
    assert "dpi" not in reopen(photograph, dpi=(300, 150), metadata=False).info
    image = photograph.copy()
    image.info["dpi"] = (72, 72)
    assert reopen(image).info["dpi"] == (72, 72)


def test_exif_as_bytes_with_and_without_prefix(photograph: Image.Image) -> None:
    exif = exif_of(Artist="Me").tobytes()
    for given in (exif, exif.removeprefix(b"Exif\0\0")):
        assert reopen(photograph.resize((16, 16)), exif=given).info["exif"] == exif


def test_orientation_is_applied(photograph: Image.Image) -> None:
    turned = photograph.copy()
    turned.info["exif"] = exif_of(Orientation=6, Artist="Me").tobytes()
    upright = save(ImageOps.exif_transpose(turned))
    assert Image.open(io.BytesIO(upright)).size == (42, 64)
    taken_out = save(turned)  # in place, where Pillow wrote the EXIF data anew: the tags are the same
    assert dict(Image.open(io.BytesIO(taken_out)).getexif()) == dict(Image.open(io.BytesIO(upright)).getexif())
    first, second = container.read(taken_out), container.read(upright)
    other = [chunk for chunk in second.metadata if chunk.kind != ChunkKind.EXIF]
    assert [chunk for chunk in first.metadata if chunk.kind != ChunkKind.EXIF] == other
    assert replace(first, metadata=()) == replace(second, metadata=())
    # an explicit orientation counts instead of the image's, and so it is not applied twice
    assert save(turned, exif=exif_of(Orientation=6, Artist="Me")) == taken_out
    assert save(photograph, exif=exif_of(Orientation=6, Artist="Me")) == taken_out
    assert Image.open(io.BytesIO(save(turned, exif=exif_of(Artist="Me")))).size == (64, 42)
    assert Image.open(io.BytesIO(save(turned, exif=None))).size == (42, 64)


def test_quality_chooses_a_model(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    small = photograph.resize((16, 16))
    assert save(small, quality=40) == save(small)  # λ = 0.0067, the default model's
    asked: list[Any] = []

    class Chosen:
        path = "no-such-model.safetensors"

    def choose(quality: Any) -> Any:
        asked.append(quality)
        return Chosen

    monkeypatch.setattr(mlic_fast.rate_control, "choose_by_quality", choose)
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        save(small, quality=40)
    assert asked == [40]


def test_model(photograph: Image.Image, small_model: Any, coded: bytes) -> None:
    data = save(photograph.resize((64, 64)), model=small_model)
    assert container.read(data).fingerprint != container.read(coded).fingerprint
    assert save(photograph, model="mlicpp-s-0.0067") == save(photograph)
    with pytest.raises(OSError, match="no-such-model"):
        save(photograph, model="no-such-model")
    # nobody can find the weights of a model that is in no file
    with pytest.raises(OSError, match=r"cannot be decoded: .*other weights"):
        Image.open(io.BytesIO(data)).load()


def test_options_of_encode(photograph: Image.Image) -> None:
    small = photograph.resize((16, 16))
    options = {"guard": False, "thumbnail": 8, "device": "cpu"}
    assert save(small, **options) == mlic_fast.encode(small, **options)
    assert container.read(save(small, **options)).guard is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 101}, "quality must be a number from 0 to 100"),
        ({"quality": "high"}, "quality must be a number"),
        ({"quality": 50, "model": "mlicpp-s-0.0067"}, "quality or model, not both"),
        ({"lossless": True}, "lossy"),
        ({"save_all": True}, "holds one picture"),
        ({"append_images": [Image.new("L", (8, 8))]}, "holds one picture"),
        ({"exif": b"rubbish"}, "exif is no EXIF data"),
        ({"exif": 5}, "exif must be bytes, not int"),
        ({"xmp": b"\xff\xfe"}, "not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Image.new("L", (8, 8)).save(tmp_path / "x.mlic", **options)
    assert list(tmp_path.iterdir()) == []


def test_harmless_options_of_other_formats(photograph: Image.Image) -> None:
    small = photograph.resize((16, 16))
    assert save(small, optimize=True, lossless=False, quality=None, method=6) == save(small)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mode F as MLIC"):
        Image.new("F", (8, 8)).save(tmp_path / "x.mlic")
    with pytest.raises(OSError, match="512 pixels"):
        Image.new("L", (8, 8)).save(tmp_path / "x.mlic", thumbnail=9999)
    assert list(tmp_path.iterdir()) == []


def test_saves_over_its_own_file(path: Path, decoded: Image.Image) -> None:
    with Image.open(path) as image:
        image.save(path)
    with Image.open(path) as image:
        assert image.size == decoded.size
        assert image.info == decoded.info


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(
    ("size", "result"), [((24, 24), (24, 16)), ((20, 20), (20, 13)), ((32, 32), (32, 21)), ((999, 21), (32, 21))]
)
def test_thumbnail_is_made_of_the_stored_one(coded: bytes, size: tuple[int, int], result: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(coded))
    image.thumbnail(size)
    assert image.size == result == image.copy().size
    assert len(image.tobytes()) == 3 * result[0] * result[1]


def test_thumbnail_is_the_picture_in_small(coded: bytes, decoded: Image.Image) -> None:
    stored, whole = Image.open(io.BytesIO(coded)), decoded.copy()
    for image in (stored, whole):
        image.thumbnail((24, 24))
    assert np.abs(np.asarray(stored, float) - np.asarray(whole, float)).mean() < 10


@pytest.mark.parametrize(("side", "gap"), [(40, 2.0), (24, None)], ids=["larger than the stored one", "no draft"])
def test_other_thumbnails_are_made_of_the_picture(coded: bytes, decoded: Image.Image, side: int, gap: Any) -> None:
    image, expected = Image.open(io.BytesIO(coded)), decoded.copy()
    for each in (image, expected):
        each.thumbnail((side, side), reducing_gap=gap)
    assert image.size == expected.size
    assert image.tobytes() == expected.tobytes()


@pytest.mark.usefixtures("no_decoding")
def test_draft_takes_what_is_large_enough(coded: bytes) -> None:
    image = Image.open(io.BytesIO(coded))
    assert image.draft("L", None) is None
    assert image.draft(None, (64, 42)) is None
    assert image.draft("RGB", (24, 22)) is None  # wide enough, not high enough
    assert image.size == (64, 42)
    assert image.draft("L", (32, 21)) == ("RGB", (0, 0, 32, 21))
    assert image.draft("L", (4, 4)) is None  # a second call changes nothing
    assert image.convert("L").size == image.size == (32, 21)
    assert image.draft(None, (4, 4)) is None  # loaded


@pytest.mark.usefixtures("no_decoding")
def test_child_images_are_the_stored_thumbnail(coded: bytes) -> None:
    (child,) = Image.open(io.BytesIO(coded)).get_child_images()
    assert child.size == (32, 21)
    assert Image.open(io.BytesIO(rewritten(coded, metadata=()))).get_child_images() == []


@pytest.mark.parametrize(
    "thumbnail",
    [b"", b"rubbish", Image.new("RGB", (32, 26)), Image.new("RGB", (128, 84)), Image.new("RGB", (520, 341))],
    ids=["empty", "rubbish", "another shape", "larger than the picture", "too large"],
)
def test_a_bad_thumbnail_is_passed_over(coded: bytes, decoded: Image.Image, thumbnail: Any) -> None:
    image = Image.open(io.BytesIO(with_thumbnail(coded, thumbnail)))
    image.thumbnail((24, 24))
    expected = decoded.copy()
    expected.thumbnail((24, 24))
    assert image.tobytes() == expected.tobytes()
    assert image.get_child_images() == []


@pytest.mark.usefixtures("no_decoding")
def test_a_thumbnail_of_another_mode_is_converted(photograph: Image.Image, coded: bytes) -> None:
    image = Image.open(io.BytesIO(with_thumbnail(coded, photograph.resize((32, 21)).convert("RGBA"))))
    image.thumbnail((24, 24))
    assert len(image.tobytes()) == 24 * 16 * 3


@pytest.mark.usefixtures("no_decoding")
def test_pillow_limit_applies_before_decoding(coded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 42 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(coded))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 42 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(coded))


@pytest.mark.parametrize("limit", [64 * 42 - 1, None], ids=["warned of", "no limit"])
def test_what_pillow_opens_is_decoded_and_saved(
    coded: bytes, decoded: Image.Image, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(coded))
        assert image.tobytes() == decoded.tobytes()
        assert save(image).startswith(container.MAGIC)


def test_a_side_beyond_the_limit_opens_and_does_not_decode(coded: bytes) -> None:
    image = Image.open(io.BytesIO(rewritten(coded, width=65_537, height=1)))
    assert image.size == (65_537, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="side may have at most 65,536"):
            image.load()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: flipped(data, 9), "header of the .mlic file is damaged"),
        (lambda data: flipped(data, len(data) - 20), "body of the .mlic file is damaged"),
        (lambda data: data[:-1], "ends early"),
        (lambda data: data[:6], "ends"),
        (lambda data: data + b"x", "bytes follow the end"),
        (lambda data: data[:5] + b"\x63" + data[6:], "newer release"),
        (lambda data: b"\x8cMLIC" + data[5:], "cannot identify image file"),
    ],
    ids=["header", "body", "truncated", "6 bytes", "more", "newer", "other magic"],
)
def test_damage_is_found_on_opening(coded: bytes, damage: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(UnidentifiedImageError, match=message):
        Image.open(io.BytesIO(damage(coded)))


def test_streams_that_are_no_streams_are_an_oserror_on_load(coded: bytes) -> None:
    image = Image.open(io.BytesIO(rewritten(coded, y=b"12345678" * 20)))
    with pytest.raises(OSError, match="cannot be decoded") as caught:
        image.load()
    assert isinstance(caught.value.__cause__, mlic_fast.MlicError)


def test_incremental_parser(coded: bytes, decoded: Image.Image) -> None:
    parser = ImageFile.Parser()
    for start in range(0, len(coded), 700):
        parser.feed(coded[start : start + 700])
    assert parser.close().tobytes() == decoded.tobytes()


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "only opened"])
def test_pickles_and_copies(path: Path, decoded: Image.Image, loaded: bool) -> None:
    for duplicate in (copy.copy, copy.deepcopy, Image.Image.copy, lambda image: pickle.loads(pickle.dumps(image))):
        with Image.open(path) as image:
            if loaded:
                image.load()
            twin = duplicate(image)
        assert twin.tobytes() == decoded.tobytes()
        assert twin.info == decoded.info
        twin.putpixel((0, 0), (1, 2, 3))
        assert image.getpixel((0, 0)) == decoded.getpixel((0, 0))
        twin.close()


def test_a_pickle_needs_no_import(coded: bytes, decoded: Image.Image) -> None:
    program = (
        "import pickle, sys; image = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(image.tobytes()); "
        "from PIL import Image; assert Image.registered_extensions()['.mlic'] == 'MLIC'; "
        "assert 'torch' not in sys.modules"
    )
    data = pickle.dumps(Image.open(io.BytesIO(coded)))
    finished = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == decoded.tobytes()


def test_threads_open_and_load_one_file(path: Path, decoded: Image.Image) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: Image.open(path).tobytes(), range(8))) == {decoded.tobytes()}


def test_threads_load_one_image(path: Path, decoded: Image.Image) -> None:
    with Image.open(path) as image, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: image.tobytes(), range(4))) == {decoded.tobytes()}


def test_closing(path: Path, decoded: Image.Image) -> None:
    with Image.open(path) as image:
        file = image.fp
    assert file.closed
    assert image.tobytes() == decoded.tobytes()  # as of AVIF and WebP files, all had been read
    for loaded in (True, False):
        image = Image.open(path)
        file = image.fp
        if loaded:
            image.load()
            assert file.closed
        image.close()
        assert file.closed
        with pytest.raises(ValueError, match="closed image"):
            image.load()


def test_one_frame(coded: bytes) -> None:
    image = Image.open(io.BytesIO(coded))
    assert image.tell() == 0
    image.seek(0)
    with pytest.raises(EOFError):
        image.seek(1)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)


def test_registration() -> None:
    mlic_fast.pillow.register()
    assert Image.ID.count("MLIC") == 1
    assert Image.registered_extensions()[".mlic"] == "MLIC"
