# SPDX-License-Identifier: Apache-2.0
"""What the Python fuzzers call: one function a reader of bytes that nobody vouches for.

Each takes any bytes and must return. An exception that the reader's contract allows is caught; any other one is the
finding. Nothing here needs torch, so that a minute is enough for many inputs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

import mlic_fast.pillow  # noqa: F401 - registers the format
from mlic_fast.bitstream import container, official, sniff
from mlic_fast.checkpoint.native import is_native, read_header
from mlic_fast.checkpoint.pickle_scan import ScanError, scan_pickle
from mlic_fast.entropy import guard
from mlic_fast.errors import BitstreamError, CheckpointError, GuardError, LimitError, MlicError
from mlic_fast.evaluate import strings_file
from mlic_fast.limits import Limits
from mlic_fast.pictures import description, metadata
from mlic_fast.pictures.image import open_image, unpack_alpha
from mlic_fast.pictures.thumbnail import MAX_THUMBNAIL_SIDE, open_thumbnail

# Small, so that no input costs more than milliseconds; `describe` has no limit on the picture.
LIMITS = Limits(pixels=2**16, side=2**12, metadata_bytes=2**16)


def repaired(data: bytes) -> bytes | None:
    """An .mlic file with both checksums made right; None for data that ends before them.

    Checksums stop a fuzzer as they stop accidents. They stop nobody who wants to do harm.
    """
    position = len(container.MAGIC) + 1
    numbers = []
    for _ in range(3):
        value = shift = 0
        while position < len(data):
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        numbers.append(value)
    position += 5 + container.FINGERPRINT_BYTES
    if position >= len(data):
        return None
    position += 1 + data[position]
    body = data[position + 4 : position + 4 + numbers[0]]
    end = position + 4 + len(body)
    if len(data) < end + 4:
        return None
    header = data[:position]
    return header + _crc(header) + body + _crc(body) + data[end + 4 :]


def fuzz_container(data: bytes) -> None:
    """Reading, describing and writing again; metadata and alpha as `decode` and `info` read them."""
    for candidate in (data, repaired(data)):
        if candidate is None:
            continue
        sniff(candidate)
        with contextlib.suppress(BitstreamError):
            facts = container.describe(candidate)
            assert facts["file_bytes"] == len(candidate)
        try:
            file = container.read(candidate, LIMITS)
        except (BitstreamError, LimitError):
            continue
        assert container.read(container.write(file), LIMITS) == file
        assert file.width * file.height <= 2**16
        metadata.info_of(file)
        for chunk in file.metadata:
            description.describe(chunk.kind, chunk.data)
        with contextlib.suppress(BitstreamError):
            alpha = unpack_alpha(file)
            assert alpha is None or alpha.shape == (file.height, file.width)
        thumbnail = file.find(container.ChunkKind.THUMBNAIL)
        if thumbnail is not None:
            with contextlib.suppress(BitstreamError):
                assert max(open_thumbnail(thumbnail).size) <= MAX_THUMBNAIL_SIDE


def fuzz_official(data: bytes) -> None:
    """The official test script's layout."""
    sniff(data)
    with contextlib.suppress(BitstreamError):
        official.describe(data)
    with contextlib.suppress(BitstreamError, LimitError):
        file = official.read(data, LIMITS)
        assert official.write(file) == data


def fuzz_guard(data: bytes) -> None:
    """The guard's chunk, described and read as a decoder reads it."""
    data = data[:300]
    with contextlib.suppress(GuardError):
        guard.describe(data)
    with contextlib.suppress(GuardError):
        reader = guard.MoveReader(data)
        for position in range(8 * len(data) + 1):  # each read takes a bit at least
            if position % 5 == 0:
                reader.checksum()
            reader.move()
        raise AssertionError("more moves were read than there are bits")
    with contextlib.suppress(GuardError):
        guard.MoveReader(data).finish()


def fuzz_alpha(data: bytes) -> None:
    """The alpha chunk of a picture of 9 × 5 pixels; the last byte chooses whether the PNG's checksums are repaired."""
    chunk = _png_repaired(data[:-1]) if data and data[-1] & 1 else data
    with contextlib.suppress(BitstreamError):
        file = container.Mlic(
            width=9,
            height=5,
            mode="grey-alpha",
            variant="new",
            model_name="",
            fingerprint=bytes(8),
            z=b"",
            y=b"",
            alpha=chunk,
        )
        alpha = unpack_alpha(file)
        assert alpha is not None
        assert (alpha.shape, alpha.dtype) == ((5, 9), np.uint8)


def fuzz_native(data: bytes) -> None:
    """The header of a native weights file."""
    path = Path(_folder().name) / "weights.safetensors"
    path.write_bytes(data)
    is_native(path)
    with contextlib.suppress(CheckpointError):
        read_header(path)


def fuzz_pickle(data: bytes) -> None:
    """Following a pickle's opcodes without building anything."""
    with contextlib.suppress(ScanError):
        scan_pickle(io.BytesIO(data))


def fuzz_pillow(data: bytes) -> None:
    """`Image.open` of an .mlic file by the plugin: size, mode and metadata, not the pixels."""
    for candidate in (data, repaired(data)):
        if candidate is None:
            continue
        try:
            with Image.open(io.BytesIO(candidate), formats=["MLIC"]) as image:
                assert image.width * image.height <= 2 * 2**16
                assert image.mode in {"L", "LA", "RGB", "RGBA"}
                image.draft(None, (1, 1))
                image.get_child_images()
        except (UnidentifiedImageError, Image.DecompressionBombError):
            continue


def fuzz_picture(data: bytes) -> None:
    """A picture to be encoded, in any format that Pillow reads."""
    with contextlib.suppress(MlicError):
        picture = open_image(data, LIMITS)
        assert picture.width * picture.height <= 2**16


def fuzz_strings(data: bytes) -> None:
    """Strings of CompressAI's models, as `eval` reads them back."""
    with contextlib.suppress(BitstreamError):
        content = strings_file.read(data)
        assert strings_file.write(content) == data
        assert content.string_bytes < len(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "container": fuzz_container,
    "official": fuzz_official,
    "guard": fuzz_guard,
    "alpha": fuzz_alpha,
    "native": fuzz_native,
    "pickle": fuzz_pickle,
    "pillow": fuzz_pillow,
    "picture": fuzz_picture,
    "strings": fuzz_strings,
}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed when the process ends


def _png_repaired(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are right, as far as there are chunks."""
    out = data[:8]
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        content = data[position + 4 : position + 8 + length]
        if len(content) < 4 + length:
            break
        out += data[position : position + 4] + content + zlib.crc32(content).to_bytes(4, "big")
        position += 12 + length
    return out + data[position:]


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
