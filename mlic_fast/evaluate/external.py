# SPDX-License-Identifier: Apache-2.0
"""External codecs as contestants: an encoder's and a decoder's program, run on files.

The encoder gets a file with the picture's colours, in a folder of its own; its compressed file alone goes on, into the
decoder's folder. So the decoder sees nothing else, and whatever either leaves behind is removed. No name comes from the
user's pictures.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mlic_fast.errors import CodecRunError, ImageError, LimitError
from mlic_fast.evaluate.dataset import Coded, Contestant
from mlic_fast.evaluate.metrics import Quality, measure
from mlic_fast.evaluate.programs import run_program
from mlic_fast.evaluate.recipes import PICTURE_FILES, ExternalCodec, filled
from mlic_fast.evaluate.yuv import YuvFormat, from_yuv, to_yuv
from mlic_fast.limits import Limits
from mlic_fast.output import write_whole
from mlic_fast.pictures.image import Picture, Pixels, read_head, read_picture

# What a program may write in all: so many bytes a pixel, and some that do not depend on the picture.
_BYTES_A_PIXEL = 64
_OTHER_BYTES = 2**28


@dataclass(frozen=True)
class Run:
    """What came of one picture.

    data: the compressed file. pixels: decoded, in the picture's mode. encode_seconds, decode_seconds: of the programs.
    """

    data: bytes
    pixels: Pixels
    encode_seconds: float
    decode_seconds: float


def contestants_of(codec: ExternalCodec, keep: Path | None = None, limits: Limits | None = None) -> list[Contestant]:
    """A codec's qualities as contestants. keep: where compressed files are kept, in a folder for each quality.

    Times are those of the whole programs, with their start and with reading and writing files.
    """
    return [_of_quality(codec, quality, keep, limits) for quality in codec.qualities]


def code(codec: ExternalCodec, picture: Picture, quality: str, limits: Limits | None = None) -> Run:
    """Encode and decode a picture's colours.

    Raises CodecRunError, naming the program, if one cannot be started, fails, takes too long, writes too much, nothing,
    or a picture of another size.
    """
    values = {"quality": quality, "width": str(picture.width), "height": str(picture.height)}
    largest = _OTHER_BYTES + _BYTES_A_PIXEL * picture.width * picture.height

    def run(role: str, words: tuple[str, ...], source: Path, target: Path) -> float:
        what = f"the {role} of {codec.title}"
        command = filled(words, {**values, "input": str(source), "output": str(target)})
        seconds = run_program(command, target.parent, what=what, timeout=codec.timeout, largest=largest)
        if target.is_symlink() or not target.is_file() or not target.stat().st_size:
            raise CodecRunError(f"{what} ended well, but wrote no file or an empty one where {{output}} says")
        return seconds

    with tempfile.TemporaryDirectory(prefix="mlic-fast-external-", ignore_cleanup_errors=True) as temporary:
        encoding, decoding = Path(temporary, "encoder"), Path(temporary, "decoder")
        for folder in (encoding, decoding):
            folder.mkdir()
        source = encoding / f"picture{PICTURE_FILES[codec.encoder_reads][0]}"
        compressed = encoding / f"compressed{codec.suffix}"
        _write_picture(picture, source, codec.yuv_in)
        encode_seconds = run("encoder", codec.encode, source, compressed)
        data = compressed.read_bytes()

        received = decoding / compressed.name
        received.write_bytes(data)
        decoded = decoding / f"decoded{PICTURE_FILES[codec.decoder_writes][0]}"
        decode_seconds = run("decoder", codec.decode, received, decoded)
        try:
            pixels = _read_pixels(decoded, picture, codec.yuv_out, limits)
        except (CodecRunError, ImageError, LimitError) as error:
            raise CodecRunError(
                f"the decoder of {codec.title} wrote something else than the picture: {error}"
            ) from error
    return Run(data, pixels, encode_seconds, decode_seconds)


def _of_quality(codec: ExternalCodec, quality: str, keep: Path | None, limits: Limits | None) -> Contestant:
    def coded(picture: Picture, name: Path) -> Coded:
        run = code(codec, picture, quality, limits)
        if keep is not None:
            file = keep / codec.label(quality).replace("/", "-") / name.with_name(f"{name.name}{codec.suffix}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, run.data)
        # decoders of these give integers, so there is nothing to truncate
        result = measure(picture.pixels, run.pixels)
        return Coded(len(run.data), None, Quality(*result, *result), run.encode_seconds, run.decode_seconds)

    return Contestant(codec.title, codec.label(quality), coded)


def _write_picture(picture: Picture, path: Path, yuv: YuvFormat | None) -> None:
    """The colours, as the path's ending says; grey as such in PNG, and with three channels elsewhere."""
    if yuv is not None:
        path.write_bytes(to_yuv(picture.pixels, yuv))
        return
    image = Image.fromarray(picture.pixels)
    if path.suffix == ".ppm":
        image.convert("RGB").save(path, "PPM")
    else:
        image.save(path, "PNG", compress_level=1)


def _read_pixels(path: Path, picture: Picture, yuv: YuvFormat | None, limits: Limits | None) -> Pixels:
    """What a decoder wrote, in the picture's mode. Raises CodecRunError for another size, ImageError, LimitError."""
    width, height = picture.width, picture.height
    if yuv is not None:
        if path.stat().st_size != yuv.size(width, height):
            raise CodecRunError(
                f"{path.stat().st_size:,} bytes, where {width} x {height} in 4:4:4 with {yuv.depth} bits a sample take "
                f"{yuv.size(width, height):,}"
            )
        pixels = from_yuv(path.read_bytes(), width, height, yuv)
    else:
        _, *size = read_head(path)
        if size != [width, height]:
            raise CodecRunError(f"{size[0]} x {size[1]} pixels, where the picture has {width} x {height}")
        # of samples of more bits, what a user of 8 bits would get
        pixels = read_picture(path, limits, reduce_depth=True).pixels
    if pixels.ndim == picture.pixels.ndim:
        return pixels
    return np.asarray(Image.fromarray(pixels).convert("L" if picture.pixels.ndim == 2 else "RGB"))
