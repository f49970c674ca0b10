# SPDX-License-Identifier: Apache-2.0
"""The official test script's file layout: bytes, round trips, hostile data."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.bitstream import container, official, sniff
from mlic_fast.bitstream.official import OfficialFile
from mlic_fast.errors import BitstreamError, LimitError, MlicError, TruncatedFileError
from mlic_fast.limits import Limits

# Put together by hand from the layout: 400 x 600 pixels, z 7 x 10, two strings.
BYTES = struct.pack(">5I", 400, 600, 7, 10, 2) + b"\0\0\0\x03yyy" + b"\0\0\0\x02zz"
FILE = OfficialFile(height=400, width=600, y=b"yyy", z=b"zz")

files = st.builds(
    OfficialFile,
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    y=st.binary(max_size=300),
    z=st.binary(max_size=300),
)


def test_bytes() -> None:
    assert official.write(FILE) == BYTES
    assert official.read(BYTES) == FILE
    assert FILE.z_shape == (7, 10)


@given(files)
def test_round_trip(file: OfficialFile) -> None:
    data = official.write(file)
    assert official.read(data) == official.read(memoryview(data)) == file
    assert sniff(data) == "official"


@pytest.mark.parametrize("length", range(len(BYTES)))
def test_every_prefix_is_called_truncated(length: int) -> None:
    with pytest.raises(TruncatedFileError):
        official.read(BYTES[:length])
    assert sniff(BYTES[:length]) == ("official" if length >= 20 else "unknown")


def test_every_altered_byte_gives_an_error_or_another_whole_file() -> None:
    for position in range(len(BYTES)):
        for change in range(1, 256):
            data = bytearray(BYTES)
            data[position] ^= change
            try:
                file = official.read(data)
            except MlicError:
                continue
            # without a checksum a changed size or stream byte can pass, but only as what it says
            assert official.write(file) == data


@settings(max_examples=300)
@given(st.binary(max_size=80), st.booleans())
def test_random_bytes(data: bytes, with_head: bool) -> None:
    data = BYTES[:20] + data if with_head else data
    try:
        file = official.read(data)
    except MlicError:
        return
    assert official.write(file) == data


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        pytest.param(b"", TruncatedFileError, "head of 20 bytes", id="empty"),
        pytest.param(struct.pack(">5I", 400, 600, 7, 11, 2), BitstreamError, "z 7 x 11", id="wrong z shape"),
        pytest.param(struct.pack(">5I", 400, 600, 7, 10, 3), BitstreamError, "3 strings", id="three strings"),
        pytest.param(struct.pack(">5I", 0, 600, 0, 10, 2), BitstreamError, "picture 0 x 600", id="no height"),
        pytest.param(struct.pack(">5I", 400, 65537, 7, 1025, 2), LimitError, "65,536", id="wide"),
        pytest.param(struct.pack(">5I", 60000, 60000, 938, 938, 2), LimitError, "3,600,000,000 pixels", id="large"),
        pytest.param(BYTES[:20] + b"\xff\xff\xff\xff", TruncatedFileError, "y stream has 4294967295", id="4 GiB"),
        pytest.param(BYTES + b"\0", BitstreamError, "1 bytes follow", id="trailing byte"),
        pytest.param(b"\x8dMLIC" + bytes(30), BitstreamError, "not a file in the official layout", id="an .mlic file"),
    ],
)
def test_refusals_say_why(data: bytes, error: type[MlicError], message: str) -> None:
    with pytest.raises(error, match=message):
        official.read(data)


def test_limits_can_be_changed() -> None:
    with pytest.raises(LimitError):
        official.read(BYTES, Limits(pixels=100))


@pytest.mark.parametrize("change", [{"height": 0}, {"width": 2**32}], ids=str)
def test_what_the_layout_cannot_hold_is_not_written(change: dict[str, int]) -> None:
    with pytest.raises(BitstreamError):
        OfficialFile(**{"height": 1, "width": 1, "y": b"", "z": b"", **change})  # type: ignore[arg-type]


def test_describe() -> None:
    assert official.describe(BYTES) == {
        "format": "official",
        "file_bytes": 33,
        "width": 600,
        "height": 400,
        "bits_per_pixel": 8 * 33 / 240000,
        "streams": {"z": 2, "y": 3},
        "overhead_bytes": 28,
    }


def test_sniff_tells_formats_apart() -> None:
    assert sniff(container.MAGIC) == "mlic"
    assert sniff(b"\x89PNG\r\n\x1a\n" + bytes(100)) == "unknown"
    assert sniff(b"") == "unknown"
