# SPDX-License-Identifier: Apache-2.0
"""The .mlic container: header, chunks and checksums around the coded streams.

docs/bitstream.md says what every byte means. In short: magic, version, a header with its
own CRC-32, then chunks, then the CRC-32 of the chunks. Fields and chunks that this release
does not know are refused if a picture cannot be decoded without them and skipped otherwise.
This module knows bytes only: no torch, no model, no pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NoReturn, TypeVar

from mlic_fast.bitstream import alpha_plane
from mlic_fast.contexts import Architecture, Variant
from mlic_fast.errors import BitstreamError, LimitError, MlicError, NotMlicFileError, TruncatedFileError
from mlic_fast.limits import Limits

MAGIC = b"\x8dMLIC"  # the first byte is no ASCII and no UTF-8: no text file starts like this
VERSION = 1
FINGERPRINT_BYTES = 8  # leading bytes of the SHA-256 over weights and tables
MAX_NAME_BYTES = 64
CRC_BYTES = 4
MAX_METADATA_CHUNKS = 64  # so that a file of empty chunks does not unpack into many times its size
MAX_THUMBNAIL_BYTES = 64 * 1024
_MAX_VARINT = 2**32 - 1
_ANCILLARY = 0x80  # chunk kinds with this bit may be skipped by a reader that does not know them

Mode = Literal["grey", "grey-alpha", "rgb", "rgb-alpha"]
Padding = Literal["zero", "fade"]
CoderLayout = Literal["rans64"]
Guard = Literal["none", "moved-boundaries"]

# Each header field that holds a code: its name in messages, and what the codes mean.
_MODES: dict[int, Mode] = {1: "grey", 2: "grey-alpha", 3: "rgb", 4: "rgb-alpha"}  # the number of channels
_MODELS: dict[int, tuple[Architecture, Variant]] = {
    0: ("mlicpp", "new"),
    1: ("mlicpp", "old"),
    2: ("mlic", "new"),
    3: ("mlic+", "new"),
    4: ("mlicv2", "new"),
    5: ("mlicv2", "guided"),
}
_PADDINGS: dict[int, Padding] = {0: "zero", 1: "fade"}
_LAYOUTS: dict[int, CoderLayout] = {1: "rans64"}
_GUARDS: dict[int, Guard] = {0: "none", 1: "moved-boundaries"}

_Meaning = TypeVar("_Meaning")
_T = TypeVar("_T", bound=str)

_TOO_MANY = f"the .mlic file has more than {MAX_METADATA_CHUNKS} chunks of metadata: it is damaged, or made to do harm"


# For describing a file, which allocates nothing that its data does not.
NO_LIMITS = Limits(pixels=None, side=_MAX_VARINT, metadata_bytes=_MAX_VARINT)


class ChunkKind(IntEnum):
    """Chunks that this release knows. With bit 7 set a chunk may be skipped, without it not."""

    Z_STREAM = 0x01
    Y_STREAM = 0x02
    GUARD = 0x03
    ALPHA = 0x04
    STEP = 0x05  # of y's quantisation, 1 without the chunk; no release writes it yet
    ICC_PROFILE = 0x81
    EXIF = 0x82
    XMP = 0x83
    COMMENT = 0x84
    THUMBNAIL = 0x85
    RESOLUTION = 0x86


_NEEDED = (ChunkKind.Z_STREAM, ChunkKind.Y_STREAM, ChunkKind.GUARD, ChunkKind.ALPHA)


@dataclass(frozen=True)
class Metadata:
    """A chunk that decoding does not need; `kind` (0x80 to 0xFF) may be one we do not know.

    What the contents must be, kind by kind, is written in docs/bitstream.md; they are not judged here.
    """

    kind: int
    data: bytes


@dataclass(frozen=True)
class Mlic:
    """Contents of an .mlic file. Raises BitstreamError for values that the format cannot hold.

    width, height: size of the picture in pixels, before padding, at least 1.
    mode: "grey", "grey-alpha", "rgb" or "rgb-alpha", 8 bits a sample. Colours and grey are
        coded as three channels, alpha apart and without loss.
    architecture, variant, model_name, fingerprint: the weights; the name is for people (printable, at most
        64 bytes of UTF-8, may be empty), the fingerprint (8 bytes) decides.
    z, y: the two entropy-coded streams, as the coder layout says.
    padding: how the picture was filled up to multiples of 64; always right and bottom, so
        a decoder crops the same way whatever the rule.
    coder_layout: "rans64": y is one rANS stream in coding order, z another, as CompressAI
        1.2.8 writes them for a batch of one.
    guard: contents of the guard chunk ("moved-boundaries", owned by mlic_fast/entropy/guard.py), which
        protects against rounding differences between machines; None: no guard.
    alpha: contents of the alpha chunk, there if and only if the mode has alpha: one byte, which all
        pixels have, or a PNG, see mlic_fast/bitstream/alpha_plane.py.
    metadata: chunks that decoding does not need, in file order, each kind that this release knows at most once.
    """

    width: int
    height: int
    mode: Mode
    variant: Variant
    model_name: str
    fingerprint: bytes
    z: bytes
    y: bytes
    padding: Padding = "zero"
    coder_layout: CoderLayout = "rans64"
    guard: bytes | None = None
    alpha: bytes | None = None
    metadata: tuple[Metadata, ...] = ()
    architecture: Architecture = "mlicpp"

    def __post_init__(self) -> None:
        for side in ("width", "height"):
            if not 1 <= getattr(self, side) <= _MAX_VARINT:
                raise BitstreamError(f"{side} must be 1 to {_MAX_VARINT}, not {getattr(self, side)}")
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise BitstreamError(f"the fingerprint has {len(self.fingerprint)} bytes instead of {FINGERPRINT_BYTES}")
        if self.model_name != fit_name(self.model_name):
            raise BitstreamError(
                f"the model name {self.model_name[:80]!r} must be printable and at most {MAX_NAME_BYTES} bytes"
            )
        if has_alpha(self.mode) != (self.alpha is not None):
            which = "no alpha chunk, which it needs" if self.alpha is None else "an alpha chunk, which it cannot have"
            raise BitstreamError(f"a picture of mode {self.mode} has {which}")
        if self.alpha is not None:
            alpha_plane.check(self.alpha, self.width, self.height)
        _check_metadata(self.metadata)

    def find(self, kind: ChunkKind) -> bytes | None:
        """Contents of the metadata chunk of this kind, or None."""
        return next((chunk.data for chunk in self.metadata if chunk.kind == kind), None)

    @property
    def z_shape(self) -> tuple[int, int]:
        """Height and width of z: one position for each 64 x 64 pixels, rounded up."""
        return -(-self.height // 64), -(-self.width // 64)


def has_alpha(mode: Mode) -> bool:
    """Say whether pictures of this mode have an alpha channel."""
    return mode in ("grey-alpha", "rgb-alpha")


def fit_name(name: str) -> str:
    """Make any model name one that the header can hold: printable, at most 64 bytes of UTF-8."""
    # UTF-8 cannot hold lone surrogates (file names have them); str.isprintable is False for
    # these as it is for control and bidirectional characters, which would garble a terminal.
    printable = "".join(char for char in name if char.isprintable())
    return printable.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def write(mlic: Mlic) -> bytes:
    """Put the contents together as an .mlic file.

    Raises BitstreamError if the streams are too long for the format (4 GiB in all).
    """
    chunks = [*((chunk.kind, chunk.data) for chunk in mlic.metadata)]
    for kind, content in ((ChunkKind.ALPHA, mlic.alpha), (ChunkKind.GUARD, mlic.guard)):
        if content is not None:
            chunks.append((int(kind), content))
    chunks += [(int(ChunkKind.Z_STREAM), mlic.z), (int(ChunkKind.Y_STREAM), mlic.y)]
    body = b"".join(bytes([kind]) + _varint(len(data)) + data for kind, data in chunks)
    name = mlic.model_name.encode()
    header = b"".join(
        (
            MAGIC,
            bytes([VERSION]),
            _varint(len(body)),
            _varint(mlic.width),
            _varint(mlic.height),
            bytes(
                (
                    _code(_MODES, mlic.mode, "mode"),
                    _model_code(mlic),
                    _code(_PADDINGS, mlic.padding, "padding"),
                    _code(_LAYOUTS, mlic.coder_layout, "coder layout"),
                    _code(_GUARDS, _guard_name(mlic), "guard"),
                )
            ),
            mlic.fingerprint,
            bytes([len(name)]),
            name,
        )
    )
    return header + _crc(header) + body + _crc(body)


def read(data: bytes | bytearray | memoryview, limits: Limits | None = None) -> Mlic:
    """Take an .mlic file apart, believing nothing.

    limits: what the picture and each metadata chunk may measure; default: `Limits()`, Pillow's pixel limit.
    Nothing larger than the data itself is allocated. Raises NotMlicFileError (other data, or
    written by a newer release), TruncatedFileError (every proper prefix of a file),
    LimitError, or BitstreamError (damaged, or with something left over).
    """
    data = bytes(data)
    reader = _Reader(data)
    _check_magic(data)
    reader.skip(len(MAGIC) + 1)
    body_length = reader.varint("body length")
    width = reader.varint("width")
    height = reader.varint("height")
    codes = reader.take(5, "header")
    fingerprint = reader.take(FINGERPRINT_BYTES, "fingerprint")
    raw_name = reader.take(reader.take(1, "name length")[0], "model name")
    header_end = reader.position
    # The checksum comes before any judgement of values: a flipped bit is to be called damage,
    # not a huge picture or a newer release.
    if reader.take(CRC_BYTES, "header checksum") != _crc(data[:header_end]):
        raise BitstreamError("the header of the .mlic file is damaged (its checksum differs): get the file again")

    mode = _meaning(_MODES, codes[0], "picture mode")
    architecture, variant = _meaning(_MODELS, codes[1], "model")
    padding = _meaning(_PADDINGS, codes[2], "padding rule")
    layout = _meaning(_LAYOUTS, codes[3], "coder layout")
    guard = _meaning(_GUARDS, codes[4], "guard")
    limits = Limits.of(limits)
    limits.check(width, height, "the picture in the .mlic file")

    body = reader.take(body_length, "body")
    if reader.take(CRC_BYTES, "body checksum") != _crc(body):
        raise BitstreamError("the body of the .mlic file is damaged (its checksum differs): get the file again")
    if reader.position != len(data):
        raise BitstreamError(
            f"{len(data) - reader.position} bytes follow the end of the .mlic file: not one whole file"
        )
    chunks, metadata = _read_chunks(body, limits)
    if (guard == "none") != (ChunkKind.GUARD not in chunks):
        raise BitstreamError(f"the header of the .mlic file says guard {guard}, which its chunks do not fit")
    try:
        name = raw_name.decode()
    except UnicodeDecodeError as error:
        raise BitstreamError(f"the model name in the .mlic file is not UTF-8: {error}") from None
    return Mlic(
        width=width,
        height=height,
        mode=mode,
        variant=variant,
        model_name=name,
        fingerprint=fingerprint,
        z=chunks[ChunkKind.Z_STREAM],
        y=chunks[ChunkKind.Y_STREAM],
        padding=padding,
        coder_layout=layout,
        guard=chunks.get(ChunkKind.GUARD),
        alpha=chunks.get(ChunkKind.ALPHA),
        metadata=metadata,
        architecture=architecture,
    )


def describe(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Say what an .mlic file holds, as a dictionary that JSON can hold; for `mlic-fast info`.

    Errors are those of `read`, but no picture is too large to be described.
    """
    mlic = read(data, NO_LIMITS)
    size = len(data)
    guard, alpha = mlic.guard, mlic.alpha
    contents = [mlic.z, mlic.y, guard or b"", alpha or b"", *(chunk.data for chunk in mlic.metadata)]
    return {
        "format": "mlic",
        "version": VERSION,
        "file_bytes": size,
        "width": mlic.width,
        "height": mlic.height,
        "mode": mlic.mode,
        "bits_per_pixel": 8 * size / (mlic.width * mlic.height),
        "model": {
            "name": mlic.model_name,
            "fingerprint": mlic.fingerprint.hex(),
            "architecture": mlic.architecture,
            "variant": mlic.variant,
        },
        "padding": mlic.padding,
        "coder_layout": mlic.coder_layout,
        "guard": {"kind": _guard_name(mlic), **({} if guard is None else {"bytes": len(guard)})},
        "streams": {"z": len(mlic.z), "y": len(mlic.y)},
        "alpha": None if alpha is None else {"bytes": len(alpha), "constant": alpha[0] if len(alpha) == 1 else None},
        "metadata": [{"kind": _kind_name(chunk.kind), "bytes": len(chunk.data)} for chunk in mlic.metadata],
        "overhead_bytes": size - sum(map(len, contents)),
    }


def _check_magic(data: bytes) -> None:
    if MAGIC.startswith(data[: len(MAGIC)]) and len(data) <= len(MAGIC):
        raise TruncatedFileError(f"the .mlic file ends after {len(data)} bytes, before its header: get the file again")
    if not data.startswith(MAGIC):
        raise NotMlicFileError(f"not an .mlic file: it begins with {data[:8].hex(' ')}, not {MAGIC.hex(' ')}")
    if data[len(MAGIC)] != VERSION:
        _raise_newer(f"it has format version {data[len(MAGIC)]}, this release reads version {VERSION}")


def _read_chunks(body: bytes, limits: Limits) -> tuple[dict[int, bytes], tuple[Metadata, ...]]:
    """Split the body into the chunks that a decoder needs and the metadata that may be there."""
    needed: dict[int, bytes] = {}
    metadata: list[Metadata] = []
    reader = _Reader(body, whole=True)
    while reader.position < len(body):
        kind = reader.take(1, "chunk kind")[0]
        length = reader.varint(f"length of chunk {kind:#04x}")
        if kind & _ANCILLARY:
            # a chunk that says more than is there is damage, not a large one
            if limits.metadata_bytes < length <= len(body) - reader.position:
                raise LimitError(
                    f"chunk {_kind_name(kind)} of the .mlic file has {length:,} bytes; the limit for metadata is "
                    f"{limits.metadata_bytes:,}. If you trust where it comes from, raise Limits.metadata_bytes"
                )
            metadata.append(Metadata(kind, reader.take(length, f"chunk {_kind_name(kind)}")))
            if len(metadata) > MAX_METADATA_CHUNKS:
                raise BitstreamError(_TOO_MANY)
            continue
        content = reader.take(length, f"chunk {_kind_name(kind)}")
        if kind == ChunkKind.STEP:
            _raise_newer(f"it was coded with a quantisation step, chunk {kind:#04x}, which this release cannot apply")
        if kind not in _NEEDED:
            _raise_newer(f"it needs chunk {kind:#04x}, which this release does not know")
        if kind in needed:
            raise BitstreamError(f"the .mlic file has two chunks {_kind_name(kind)}; only one can be meant")
        needed[kind] = content
    for kind in (ChunkKind.Z_STREAM, ChunkKind.Y_STREAM):
        if kind not in needed:
            raise BitstreamError(f"the .mlic file has no chunk {_kind_name(kind)}: it was not written whole")
    return needed, tuple(metadata)


def _check_metadata(chunks: tuple[Metadata, ...]) -> None:
    """Refuse metadata that no file can hold."""
    if len(chunks) > MAX_METADATA_CHUNKS:
        raise BitstreamError(_TOO_MANY)
    seen = set()
    for chunk in chunks:
        if not _ANCILLARY <= chunk.kind <= 0xFF:
            raise BitstreamError(f"metadata chunks have kinds 0x80 to 0xFF, not {chunk.kind:#x}")
        if chunk.kind == ChunkKind.THUMBNAIL and len(chunk.data) > MAX_THUMBNAIL_BYTES:
            raise BitstreamError(
                f"the thumbnail has {len(chunk.data):,} bytes; an .mlic file's may have {MAX_THUMBNAIL_BYTES:,}"
            )
        if chunk.kind in seen and chunk.kind in set(ChunkKind):
            raise BitstreamError(f"the .mlic file has two chunks {_kind_name(chunk.kind)}; only one can be meant")
        seen.add(chunk.kind)


def _guard_name(mlic: Mlic) -> Guard:
    return "none" if mlic.guard is None else "moved-boundaries"


def _raise_newer(why: str) -> NoReturn:
    raise NotMlicFileError(f"the .mlic file was written by a newer release of mlic_fast ({why}): update mlic_fast")


def _meaning(table: dict[int, _Meaning], code: int, field: str) -> _Meaning:
    if code not in table:
        _raise_newer(f"its {field} is {code}, this release knows {', '.join(map(str, table))}")
    return table[code]


def _code(table: dict[int, _T], value: str, field: str) -> int:
    for code, meaning in table.items():
        if meaning == value:
            return code
    raise BitstreamError(f"{field} must be one of {', '.join(table.values())}, not {value!r}")


def _model_code(mlic: Mlic) -> int:
    for code, meaning in _MODELS.items():
        if meaning == (mlic.architecture, mlic.variant):
            return code
    raise BitstreamError(f"no file can say that its model is {mlic.architecture!r:.80}, variant {mlic.variant!r:.80}")


def _kind_name(kind: int) -> str:
    try:
        return ChunkKind(kind).name.lower()
    except ValueError:
        return f"{kind:#04x}"


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def _varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, lowest first, bit 7 set on all bytes but the last."""
    if not 0 <= value <= _MAX_VARINT:
        raise BitstreamError(f"{value} does not fit the .mlic format: lengths and sizes go to {_MAX_VARINT}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Takes fields off the front of the data; running out is an error that names the field.

    whole: the data is known to be complete, so that running out means damage, not truncation.
    """

    def __init__(self, data: bytes, whole: bool = False) -> None:
        self._data = data
        self._error: type[MlicError] = BitstreamError if whole else TruncatedFileError
        self.position = 0

    def skip(self, count: int) -> None:
        self.position += count

    def take(self, count: int, what: str) -> bytes:
        left = len(self._data) - self.position
        if count > left:
            raise self._error(
                f"the .mlic file ends early: its {what} needs {count} bytes at offset {self.position}, "
                f"{max(left, 0)} are left. Get the file again"
            )
        self.position += count
        return self._data[self.position - count : self.position]

    def varint(self, what: str) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                # one value, one spelling: a file has exactly one form
                if value > _MAX_VARINT or (byte == 0 and shift):
                    break
                return value
        raise BitstreamError(f"the .mlic file is damaged: its {what} is no number of the format")
