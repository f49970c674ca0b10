# SPDX-License-Identifier: Apache-2.0
"""The .mlic container: round trips, hostile data, room for the future, the bytes for ever."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.bitstream import container, sniff
from mlic_fast.bitstream.container import ChunkKind, Metadata, Mlic
from mlic_fast.contexts import FAMILY
from mlic_fast.errors import BitstreamError, LimitError, MlicError, NotMlicFileError, TruncatedFileError
from mlic_fast.limits import Limits

SMALL = Mlic(
    width=600,
    height=400,
    mode="rgb",
    variant="new",
    model_name="mlicpp-small",
    fingerprint=bytes(range(8)),
    z=b"zzz",
    y=b"stream y",
)
# Written by version 1 and never to change: a release that reads it differently is broken.
SMALL_BYTES = bytes.fromhex(
    "8d4d4c4943 01 0f d804 9003 03 00 00 01 00 0001020304050607 0c 6d6c696370702d736d616c6c 29b62a7e"
    "01 03 7a7a7a 02 08 73747265616d2079 22e537ad"
)
RICH = dataclasses.replace(
    SMALL,
    width=5,
    height=3,
    mode="grey-alpha",
    padding="fade",
    guard=b"guard",
    alpha=b"\x80",
    metadata=(Metadata(ChunkKind.COMMENT, b"hi"),),
)
RICH_BYTES = bytes.fromhex(
    "8d4d4c4943 01 1d 05 03 02 00 01 01 01 0001020304050607 0c 6d6c696370702d736d616c6c 12d5a61b"
    "84 02 6869 04 01 80 03 05 6775617264 01 03 7a7a7a 02 08 73747265616d2079 f41d16f5"
)


def png(width: int = 600, height: int = 400, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of this kind, with pixels of whichever size."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return SIGNATURE + part(b"IHDR", head) + part(b"IDAT", b"pixels") + part(b"IEND", b"")


def part(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
KNOWN = {int(kind) for kind in ChunkKind}

names = st.text(max_size=40).map(container.fit_name)
metadata = st.lists(
    st.builds(Metadata, kind=st.integers(0x80, 0xFF), data=st.binary(max_size=300)),
    max_size=4,
    unique_by=lambda chunk: chunk.kind if chunk.kind in KNOWN else id(chunk),
)


def with_alpha(mlic: Mlic, value: int) -> Mlic:
    mode = "grey-alpha" if mlic.mode == "grey" else "rgb-alpha"
    return dataclasses.replace(mlic, mode=mode, alpha=bytes([value]))  # type: ignore[arg-type]


opaque = st.builds(
    Mlic,
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    mode=st.sampled_from(["grey", "rgb"]),
    variant=st.sampled_from(["new", "old"]),
    model_name=names,
    fingerprint=st.binary(min_size=8, max_size=8),
    z=st.binary(max_size=300),
    y=st.binary(max_size=300),
    padding=st.sampled_from(["zero", "fade"]),
    guard=st.none() | st.binary(max_size=300),
    metadata=metadata.map(tuple),
)
beside = st.builds(
    lambda mlic, model: dataclasses.replace(mlic, architecture=model[0], variant=model[1]),
    opaque,
    st.sampled_from([(name, variant) for name, member in FAMILY.items() for variant in member.variants]),
)
files = opaque | beside | st.builds(with_alpha, opaque | beside, st.integers(0, 255))


BOTH = b"\x01\x01z\x02\x01y"  # the streams' chunks


def build(
    *,
    version: int = 1,
    width: bytes = b"\xd8\x04",
    codes: bytes = bytes((3, 0, 0, 1, 0)),
    name: bytes = b"m",
    chunks: bytes = BOTH,
    body_length: bytes | None = None,
) -> bytes:
    """Put together a file with valid checksums from fields that `write` would refuse."""
    header = container.MAGIC + bytes([version]) + (body_length or varint(len(chunks))) + width + b"\x90\x03" + codes
    header += bytes(8) + bytes([len(name)]) + name
    return header + zlib.crc32(header).to_bytes(4, "little") + chunks + zlib.crc32(chunks).to_bytes(4, "little")


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def test_bytes_for_ever() -> None:
    assert container.write(SMALL) == SMALL_BYTES
    assert container.read(SMALL_BYTES) == SMALL
    assert container.write(RICH) == RICH_BYTES
    assert container.read(RICH_BYTES) == RICH


def test_the_documented_examples_are_these_files() -> None:
    text = (Path(__file__).parent.parent / "docs" / "bitstream.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    written = [bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines())) for block in blocks]
    assert written == [SMALL_BYTES, RICH_BYTES]


@given(files)
def test_round_trip(mlic: Mlic) -> None:
    data = container.write(mlic)
    assert container.read(data) == mlic
    assert container.read(bytearray(data)) == container.read(memoryview(data)) == mlic
    assert sniff(data) == "mlic"


def test_overhead_of_a_plain_image_is_at_most_60_bytes() -> None:
    for name in ("mlicpp-small", "mlicpp-mse-0.0483"):
        mlic = dataclasses.replace(SMALL, width=3840, height=2160, model_name=name, y=bytes(2**20), z=bytes(2**14))
        overhead = len(container.write(mlic)) - 2**20 - 2**14
        assert overhead <= 60
        assert container.describe(container.write(mlic))["overhead_bytes"] == overhead


@pytest.mark.parametrize("whole", [SMALL_BYTES, RICH_BYTES], ids=["small", "rich"])
def test_every_prefix_is_called_truncated(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(TruncatedFileError):
            container.read(whole[:length])


@pytest.mark.parametrize("whole", [SMALL_BYTES, RICH_BYTES], ids=["small", "rich"])
def test_every_altered_byte_is_noticed(whole: bytes) -> None:
    for position in range(len(whole)):
        for change in range(1, 256):
            data = bytearray(whole)
            data[position] ^= change
            with pytest.raises(BitstreamError):
                container.read(data)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes(data: bytes, with_magic: bool) -> None:
    with pytest.raises(MlicError):
        container.read(SMALL_BYTES[:6] + data if with_magic else data)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_random_body_and_name_with_valid_checksums(chunks: bytes, name: bytes) -> None:
    data = build(chunks=chunks, name=name)
    try:
        mlic = container.read(data)
    except BitstreamError:
        return
    assert container.read(container.write(mlic)) == mlic


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), NotMlicFileError, "not an .mlic.*begins with 89 50", id="png"),
        pytest.param(b"x", NotMlicFileError, "not an .mlic file", id="one byte"),
        pytest.param(b"", TruncatedFileError, "ends after 0 bytes", id="empty"),
        pytest.param(build(version=2), NotMlicFileError, "newer release.*version 2", id="version"),
        pytest.param(build(codes=bytes((3, 0, 0, 1, 2))), NotMlicFileError, "newer release.*guard is 2", id="guard"),
        pytest.param(build(codes=bytes((3, 0, 0, 2, 0))), NotMlicFileError, "newer.*coder layout is 2", id="layout"),
        pytest.param(build(codes=bytes((3, 0, 2, 1, 0))), NotMlicFileError, "newer.*padding rule is 2", id="padding"),
        pytest.param(build(codes=bytes((3, 255, 0, 1, 0))), NotMlicFileError, "newer.*model is 255", id="model"),
        pytest.param(build(codes=bytes((5, 0, 0, 1, 0))), NotMlicFileError, "newer.*picture mode is 5", id="mode"),
        pytest.param(
            build(chunks=b"\x05\x02\x00\x01" + BOTH),
            NotMlicFileError,
            "newer.*quantisation step, chunk 0x05",
            id="step",
        ),
        pytest.param(
            build(chunks=b"\x01\x01z\x02\x01y\x06\x01t"),
            NotMlicFileError,
            "newer.*needs chunk 0x06",
            id="critical chunk",
        ),
        pytest.param(build(chunks=b"\x03\x01g" + BOTH), BitstreamError, "guard none", id="guard not announced"),
        pytest.param(build(codes=bytes((3, 0, 0, 1, 1))), BitstreamError, "guard moved", id="no guard"),
        pytest.param(build(codes=bytes((4, 0, 0, 1, 0))), BitstreamError, "no alpha chunk", id="no alpha"),
        pytest.param(build(chunks=b"\x04\x01a" + BOTH), BitstreamError, "an alpha chunk", id="alpha not announced"),
        pytest.param(build(chunks=b"\x81\x01a\x81\x01b" + BOTH), BitstreamError, "two.*icc_profile", id="two ICC"),
        pytest.param(build(chunks=b"\xf0\x00" * 65 + BOTH), BitstreamError, "more than 64", id="65 chunks"),
        pytest.param(
            build(chunks=b"\x85\x81\x80\x04" + bytes(65537) + BOTH), BitstreamError, "65,537", id="large thumbnail"
        ),
        pytest.param(
            build(chunks=b"\x81\x81\x80\x80\x08" + bytes(2**24 + 1) + BOTH), LimitError, "16,777,217", id="large ICC"
        ),
        pytest.param(build(chunks=b"\x01\x01z"), BitstreamError, "no chunk y_stream", id="no y"),
        pytest.param(build(chunks=b"\x02\x01y"), BitstreamError, "no chunk z_stream", id="no z"),
        pytest.param(build(chunks=b"\x01\x01z\x01\x01z\x02\x01y"), BitstreamError, "two chunks z_stream", id="two z"),
        pytest.param(build(chunks=b"\x01\x01z\x02\x09y"), BitstreamError, "y_stream needs 9 bytes", id="chunk length"),
        pytest.param(build(chunks=b"\x01\x01z\x02"), BitstreamError, "length of chunk", id="no chunk length"),
        pytest.param(build(chunks=b"\x01\x81\x00z\x02\x01y"), BitstreamError, "no number", id="two spellings"),
        pytest.param(build(width=b"\xff\xff\xff\xff\x7f"), BitstreamError, "width is no number", id="over 32 bits"),
        pytest.param(build(width=b"\xff\xff\xff\xff\xff"), BitstreamError, "width is no number", id="endless number"),
        pytest.param(build(width=b"\x00"), BitstreamError, "width must be 1", id="no width"),
        pytest.param(build(name=b"\xff\xfe"), BitstreamError, "not UTF-8", id="name not UTF-8"),
        pytest.param(build(name=b"a\x1b[2J"), BitstreamError, "printable", id="name with escape sequence"),
        pytest.param(build(name=b"a" * 65), BitstreamError, "at most 64", id="long name"),
        pytest.param(SMALL_BYTES + b"\0", BitstreamError, "1 bytes follow", id="trailing byte"),
        pytest.param(build(body_length=b"\xff\xff\xff\xff\x0f"), TruncatedFileError, "body needs 429", id="4 GiB"),
        pytest.param(build(width=b"\x81\x80\x04"), LimitError, "side may have at most 65,536", id="wide"),
    ],
)
def test_refusals_say_why(data: bytes, error: type[MlicError], message: str) -> None:
    with pytest.raises(error, match=message):
        container.read(data)


def test_pixel_limit_is_pillows_and_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    large = container.write(dataclasses.replace(SMALL, width=9460, height=9460))
    with pytest.raises(LimitError, match="89,491,600 pixels; the limit is 89,478,485"):
        container.read(large)
    assert container.read(large, Limits(pixels=10**8)).width == 9460
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    assert container.read(large).width == 9460
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LimitError, match="limit is 100"):
        container.read(SMALL_BYTES)
    assert container.describe(large)["width"] == 9460


def test_a_chunk_of_a_later_release_that_may_be_skipped_is_kept() -> None:
    data = build(chunks=b"\xfe\x03new\x01\x01z\x81\x03icc\x02\x01y")
    mlic = container.read(data)
    assert mlic.metadata == (Metadata(0xFE, b"new"), Metadata(ChunkKind.ICC_PROFILE, b"icc"))
    assert (mlic.z, mlic.y) == (b"z", b"y")
    assert container.read(container.write(mlic)) == mlic


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": 2**32},
        {"fingerprint": bytes(32)},
        {"model_name": "a" * 65},
        {"model_name": "line\nbreak"},
        {"metadata": (Metadata(ChunkKind.Y_STREAM, b""),)},
        {"metadata": (Metadata(256, b""),)},
        {"metadata": (Metadata(ChunkKind.EXIF, b""),) * 2},
        {"metadata": (Metadata(0xF0, b""),) * 65},
        {"metadata": (Metadata(ChunkKind.THUMBNAIL, bytes(65537)),)},
        {"mode": "cmyk"},
        {"mode": "rgb-alpha"},
        {"alpha": b"\x80"},
        {"mode": "rgb-alpha", "alpha": b""},
        {"mode": "rgb-alpha", "alpha": b"\x80\x80"},
    ],
    ids=str,
)
def test_what_the_format_cannot_hold_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(BitstreamError):
        container.write(dataclasses.replace(SMALL, **change))  # type: ignore[arg-type]


def test_what_the_alpha_chunk_may_hold() -> None:
    for alpha in (b"\0", b"\xff", png()):
        mlic = dataclasses.replace(SMALL, mode="rgb-alpha", alpha=alpha)
        assert container.read(container.write(mlic)).alpha == alpha


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        pytest.param(b"", "neither one byte nor a PNG", id="empty"),
        pytest.param(b"GIF89a", "neither one byte nor a PNG", id="GIF"),
        pytest.param(png(601), "601 x 400 pixels, the picture 600 x 400", id="width"),
        pytest.param(png(600, 2**31), "the picture 600 x 400", id="height"),
        pytest.param(png(depth=16), "plain grey", id="16 bits"),
        pytest.param(png(colour=2), "plain grey", id="RGB"),
        pytest.param(png(interlace=1), "plain grey", id="interlaced"),
        pytest.param(SIGNATURE, "other parts", id="signature alone"),
        pytest.param(png()[:-1], "ends early", id="truncated"),
        pytest.param(png()[:-12], "other parts", id="no IEND"),
        pytest.param(png() + part(b"IEND", b""), "other parts", id="two IEND"),
        pytest.param(png() + b"\0", "ends early", id="trailing byte"),
        pytest.param(png()[:-12] + part(b"tEXt", b"a") + png()[-12:], "other parts", id="text"),
        pytest.param(png()[:33] + png()[-12:], "other parts", id="no pixels"),
        pytest.param(SIGNATURE + part(b"IDAT", b"") + png()[8:], "does not begin with a header", id="order"),
        pytest.param(png()[:-13] + b"\0" + png()[-12:], "checksum", id="crc"),
        pytest.param(SIGNATURE + b"\xff\xff\xff\xffIHDR" + bytes(20), "ends early", id="4 GiB"),
    ],
)
def test_other_alpha_chunks_are_refused(alpha: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        dataclasses.replace(SMALL, mode="rgb-alpha", alpha=alpha)


def test_the_metadata_limit_can_be_changed() -> None:
    large = container.write(dataclasses.replace(SMALL, metadata=(Metadata(ChunkKind.XMP, bytes(200)),)))
    with pytest.raises(LimitError, match=r"chunk xmp.*200 bytes.*199.*metadata_bytes"):
        container.read(large, Limits(metadata_bytes=199))
    assert container.read(large, Limits(metadata_bytes=200)).find(ChunkKind.XMP) == bytes(200)
    assert container.read(large).find(ChunkKind.EXIF) is None


@given(st.text(alphabet=st.characters(), max_size=100))
def test_fit_name_makes_any_name_storable(name: str) -> None:
    mlic = dataclasses.replace(SMALL, model_name=container.fit_name(name))
    assert container.read(container.write(mlic)) == mlic


def test_fit_name_does_not_cut_a_character_in_two() -> None:
    assert container.fit_name("é" * 40) == "é" * 32
    assert container.fit_name("a" + "é" * 40) == "a" + "é" * 31
    assert container.fit_name("bad\udc80name\u202e") == "badname"


@pytest.mark.parametrize(
    ("size", "shape"), [((1, 1), (1, 1)), ((64, 65), (2, 1)), ((65, 64), (1, 2)), ((128, 1), (1, 2))]
)
def test_z_shape(size: tuple[int, int], shape: tuple[int, int]) -> None:
    assert dataclasses.replace(SMALL, width=size[0], height=size[1]).z_shape == shape


def test_describe_is_json_and_needs_no_torch() -> None:
    mlic = dataclasses.replace(SMALL, metadata=(Metadata(0xFE, b"new"), Metadata(ChunkKind.EXIF, b"e")))
    code = (
        "import json, sys; from mlic_fast.bitstream import container; "
        f"print(json.dumps(container.describe({container.write(mlic)!r}))); assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    described = json.loads(run.stdout)
    assert described["model"] == {
        "name": "mlicpp-small",
        "fingerprint": "0001020304050607",
        "architecture": "mlicpp",
        "variant": "new",
    }
    assert described["metadata"] == [{"kind": "0xfe", "bytes": 3}, {"kind": "exif", "bytes": 1}]
    assert described["streams"] == {"z": 3, "y": 8}
    assert (described["width"], described["height"], described["mode"]) == (600, 400, "rgb")
