# SPDX-License-Identifier: Apache-2.0
"""Reading pictures: files, PIL images, arrays and tensors to 8-bit pixels and what comes with them.

A picture is grey or RGB, with or without alpha, with 8 bits a sample. What converts without
loss of anything that a viewer would see is converted (palette, 1-bit, CMYK, YCbCr, HSV,
transparent colours). What would lose something is refused (float samples, and 16-bit ones
unless they are to be reduced) or said in `Picture.notes`. No torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mlic_fast.errors import ImageError, LimitError, MlicError, NotKeptWarning
from mlic_fast.limits import Limits
from mlic_fast.pictures import colour, frames, metadata, transparency
from mlic_fast.pictures.depth import DEEP_MODES, depth_of, mend_planes, reduced, reduced_grey
from mlic_fast.pictures.exif import Read
from mlic_fast.pictures.picture import Picture, Pixels, planes

# EPS and WMF, because Pillow reads them by running another program (Ghostscript) or the system's renderer;
# icons, because what they hold may be far larger than what their heads say, and is decoded before it shows.
REFUSED_FORMATS = {"EPS", "WMF", "ICO", "ICNS"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_CONVERTED_MODES = {"P", "CMYK", "YCbCr", "HSV", "RGBX"}

_DEPTH_ADVICE = (
    "has more than 8 bits a sample: have it reduced to 8 bits (reduce_depth=True, --reduce-depth), "
    "or do so before, for instance `magick IN -depth 8 OUT.png`"
)

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class _Wishes:
    """How a picture is to be read: the arguments of `open_image`."""

    limits: Limits
    reduce_depth: bool
    frame: int | None
    strict: bool


def open_image(
    source: Any,
    limits: Limits | None = None,
    reduce_depth: bool = False,
    *,
    frame: int | None = None,
    strict: bool = False,
) -> Picture:
    """Read a picture from almost anything. What of it cannot be kept is said with a NotKeptWarning.

    source: path; bytes of an image file; binary file object; PIL image; uint8 array or
        tensor [H, W] (grey), [H, W, 2] (grey and alpha), [H, W, 3] (RGB) or [H, W, 4] (RGB and
        alpha), values 0 to 255; or a Picture, which is returned as it is.
        Orientation (EXIF, XMP) is applied.
    limits: what the picture may measure; default: `Limits()`, Pillow's pixel limit. Checked
        before pixels are decoded.
    reduce_depth: 16-bit samples become 8-bit ones instead of being refused: round(x / 257) for grey
        pictures and uint16 arrays; of colour pictures Pillow gives the higher byte alone.
    frame: which picture of an animation or a document, from 1; None: the first, with a warning about the others.
    strict: refuse a picture of which something cannot be kept.

    Raises FileNotFoundError for a path that does not exist, LimitError for a picture that is
    too large, ImageError for everything else: no picture, damaged, more than 8 bits a sample, arrays of another type
    or shape. Formats that Pillow reduces to 8 bits by itself (SGI, DDS, AVIF, JPEG 2000 in colour) are taken, with a
    warning.
    """
    picture = read_picture(source, limits, reduce_depth, frame=frame, strict=strict)
    if picture is not source:
        for note in picture.notes:
            warnings.warn(f"{_name_of(source)}: {note}", NotKeptWarning, stacklevel=2)
    return picture


def read_picture(
    source: Any,
    limits: Limits | None = None,
    reduce_depth: bool = False,
    *,
    frame: int | None = None,
    strict: bool = False,
) -> Picture:
    """As `open_image`, for callers that report `Picture.notes` themselves: without warnings."""
    limits = Limits.of(limits)
    if isinstance(source, Picture):
        return source
    wishes = _Wishes(limits, reduce_depth, frame, strict)
    name = _name_of(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, name, wishes, None)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), name, wishes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), name, wishes)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ImageError(f"the file object gave {type(content).__name__}, not bytes: open it in binary mode")
        return _from_file(io.BytesIO(content), name, wishes)
    return _from_array(source, limits, reduce_depth)


def read_head(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Pillow's name of a picture's format, width and height before orientation; pixels are not decoded.

    Raises FileNotFoundError, and ImageError for what is no picture.
    """
    with _errors_of_ours(str(path)), _opened(Path(path)) as image:
        return image.format or "", image.width, image.height


def _name_of(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return str(getattr(source, "name", "the picture")) if hasattr(source, "read") else "the picture"


def _from_file(source: Path | io.BytesIO, name: str, wishes: _Wishes) -> Picture:
    if isinstance(source, Path):
        if source.is_dir():
            raise ImageError(f"{name} is a folder: give the name of a picture in it")
        if source.is_fifo():  # Pillow goes back and forth in a file
            source = io.BytesIO(source.read_bytes())
    with _errors_of_ours(name), _opened(source) as image:
        return _from_pil(image, name, wishes, source)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """The picture with its head read, if it is of a kind that may be read."""
    Image.init()
    formats = [key for key in Image.OPEN if key not in REFUSED_FORMATS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limits` decides, and says so
        with Image.open(source, formats=formats) as image:
            yield image


@contextlib.contextmanager
def _errors_of_ours(name: str) -> Iterator[None]:
    """Turn what Pillow raises into this package's exceptions."""
    try:
        yield
    except (MlicError, FileNotFoundError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(
            f"{name} is too large: {error} If you trust where it comes from, raise the limit (--max-pixels, or "
            "PIL.Image.MAX_IMAGE_PIXELS in Python)"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture of a kind that can be read (icons, EPS and WMF are not): convert it to PNG first"
        ) from error
    except Exception as error:
        # Pillow's plugins raise nearly anything on damaged files, from SyntaxError to KeyError.
        raise ImageError(f"{name} cannot be read as a picture: {type(error).__name__}: {error}") from error


def _from_pil(image: Image.Image, name: str, wishes: _Wishes, source: Path | io.BytesIO | None) -> Picture:
    # What can be told from the header is told before the pixels are decoded, and again after,
    # since some formats (GIF) change mode or size only then.
    _check(image, name, wishes)
    place = image.tell() if source is None else 0
    notes = frames.choose(image, wishes.frame, frames.count(image, source), name)
    try:
        _check(image, name, wishes)
        return _decoded(image, name, wishes, source, notes)
    finally:
        if source is None and wishes.frame is not None and image.tell() != place:
            image.seek(place)  # the caller's


def _decoded(
    image: Image.Image, name: str, wishes: _Wishes, source: Path | io.BytesIO | None, notes: tuple[str, ...]
) -> Picture:
    read = _reader(image)
    depth = depth_of(image, read)
    if depth.bits > 8 and not wishes.reduce_depth:
        if not depth.cut:
            raise ImageError(f"{name} {_DEPTH_ADVICE}")
        notes += (f"{depth.bits} bits a sample became 8",)
    value = transparency.png_value(image, read)
    before = metadata.before_decoding(image, read)
    with _errors_of_ours(name):
        mend_planes(image)
        image.load()
    _check(image, name, wishes)
    carried = metadata.from_pillow(image, before)
    notes += carried.pop("notes")
    orientation = metadata.orientation_of(image, before)
    with _errors_of_ours(name):
        if image.mode == "CMYK":
            image, note = colour.from_cmyk(image)
            notes += (note,)
        elif image.mode == "RGB" and isinstance(value, tuple) and (depth.bits > 8 or max(value) > 255):
            alpha = transparency.deep_colours(source, image)
            if alpha is None:
                notes += (
                    "transparent colour of 16 bits a sample left out: the lower bytes of the pixels are not there",
                )
            image, value = _with_alpha(image, alpha), None
        method = _TRANSPOSED.get(orientation)
        # a copy in any case: the caller's image is left alone
        image = image.copy() if method is None else image.transpose(method)
        if value is not None and "transparency" in image.info:
            image.info["transparency"] = value
        if image.mode in DEEP_MODES:
            samples = reduced_grey(image, depth, name)
        elif transparency.has_alpha(image):
            samples = np.array(image.convert("LA" if image.mode in {"1", "L", "La", "LA"} else "RGBA"))
        else:
            samples = np.array(image.convert("L" if image.mode in {"1", "L"} else "RGB"))
    if notes and wishes.strict:
        raise ImageError(f"{name} cannot be kept as it is (--strict, strict=True): {'; '.join(notes)}")
    if orientation in _QUARTER_TURNS or before.orientation in _QUARTER_TURNS:
        carried["resolution"] = carried["resolution"] and carried["resolution"].turned
    return Picture(*planes(samples), **carried, notes=notes)


def _reader(image: Image.Image) -> Read | None:
    """Reads the image's file, as long as it is open; leaves the place in it as it was."""
    file: Any = getattr(image, "fp", None)
    if file is None or getattr(file, "closed", False) or not getattr(image, "tile", None):
        return None

    def read(offset: int, count: int) -> bytes:
        place = file.tell()
        try:
            file.seek(offset)
            return bytes(file.read(count))
        finally:
            file.seek(place)

    return read


def _with_alpha(image: Image.Image, alpha: Pixels | None) -> Image.Image:
    pixels = np.asarray(image)
    return Image.fromarray(pixels if alpha is None else np.dstack((pixels, alpha)))


def _check(image: Image.Image, name: str, wishes: _Wishes) -> None:
    """Refuse what is too large, empty, or of another sample type."""
    width, height = image.size
    wishes.limits.check(width, height, name)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if image.mode == "F":
        raise ImageError(f"{name} has float samples, whose range it does not say: make 8-bit samples of them first")
    if image.mode in DEEP_MODES and not wishes.reduce_depth:
        raise ImageError(f"{name} (mode {image.mode}) {_DEPTH_ADVICE}")
    if image.mode not in {"1", "L", "RGB", *_ALPHA_MODES, *_CONVERTED_MODES, *DEEP_MODES}:
        raise ImageError(f"{name} has pixels of mode {image.mode}, which is not supported: convert it to RGB first")


def _from_array(source: Any, limits: Limits, reduce_depth: bool) -> Picture:
    """Arrays and tensors; tensors are known by their methods, so that torch is not imported."""
    if all(hasattr(source, method) for method in ("detach", "cpu", "numpy")):
        kind = str(source.dtype).removeprefix("torch.")
        if kind in {"uint8", "uint16"}:
            source = source.detach().cpu().numpy()
    elif hasattr(source, "__array__"):
        source = np.asarray(source)
        kind = str(source.dtype)
    else:
        raise ImageError(
            f"cannot read a picture from {type(source).__name__}: give a path, bytes, a PIL image or a uint8 array"
        )
    if kind == "uint16" and not reduce_depth:
        raise ImageError(f"an array of uint16 {_DEPTH_ADVICE}")
    if kind not in {"uint8", "uint16"}:
        raise ImageError(
            f"an array of {kind} is no picture: give uint8 values from 0 to 255 (from [0, 1]: x * 255, rounded)"
        )
    shape = tuple(source.shape)
    if len(shape) == 3 and shape[2] in (2, 4) and shape[0] in (1, 3):
        raise ImageError(f"an array {list(shape)} may have its channels first or last: give a PIL image instead")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (2, 3, 4))):
        raise ImageError(
            f"an array {list(shape)} is no picture: give [H, W], or [H, W, 3] with channels last and no batch "
            "(2 or 4 channels: the last is alpha)"
        )
    if 0 in shape:
        raise ImageError(f"an array {list(shape)} is an empty picture")
    limits.check(shape[1], shape[0], "the array")
    # copied, so that the caller may go on writing to it
    return Picture(*planes(reduced(source) if kind == "uint16" else np.array(source)))
