# SPDX-License-Identifier: Apache-2.0
"""Reading pictures: files, PIL images, arrays and tensors to 8-bit pixels and what comes with them.

A picture is grey or RGB, with or without alpha, with 8 bits a sample. What converts without
loss of anything that a viewer would see is converted (palette, 1-bit, CMYK, YCbCr, HSV,
transparent colours); what would lose something is refused: float samples, and 16-bit ones
unless they are to be reduced. No torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mlic_fast.errors import ImageError, LimitError, MlicError
from mlic_fast.limits import Limits
from mlic_fast.pictures import metadata
from mlic_fast.pictures.picture import Picture, Pixels, planes

# EPS and WMF, because Pillow reads them by running another program (Ghostscript) or the system's renderer;
# icons, because what they hold may be far larger than what their heads say, and is decoded before it shows.
_REFUSED_FORMATS = {"EPS", "WMF", "ICO", "ICNS"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_MAX_16_BIT = 65_535
_CONVERTED_MODES = {"P", "CMYK", "YCbCr", "HSV", "RGBX"}

_DEPTH_ADVICE = (
    "has more than 8 bits a sample: have it reduced to 8 bits (reduce_depth=True, --reduce-depth), "
    "or do so before, for instance `magick IN -depth 8 OUT.png`"
)


def open_image(source: Any, limits: Limits | None = None, reduce_depth: bool = False) -> Picture:
    """Read a picture from almost anything.

    source: path; bytes of an image file; binary file object; PIL image; uint8 array or
        tensor [H, W] (grey), [H, W, 2] (grey and alpha), [H, W, 3] (RGB) or [H, W, 4] (RGB and
        alpha), values 0 to 255; or a Picture, which is returned as it is.
        EXIF orientation is applied. Of an animation or a document the first picture is taken.
    limits: what the picture may measure; default: `Limits()`, Pillow's pixel limit. Checked
        before pixels are decoded.
    reduce_depth: 16-bit samples become 8-bit ones instead of being refused: round(x / 257) for grey
        pictures and uint16 arrays; of colour pictures Pillow gives the higher byte alone.

    Raises FileNotFoundError for a path that does not exist, LimitError for a picture that is
    too large, ImageError for everything else: no picture, damaged, more than 8 bits a
    sample (as far as Pillow tells: it reduces AVIF and JPEG 2000 to 8 bits by itself),
    arrays of another type or shape.
    """
    limits = Limits.of(limits)
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, "the picture", limits, reduce_depth)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), str(source), limits, reduce_depth)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), "the picture", limits, reduce_depth)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ImageError(f"the file object gave {type(content).__name__}, not bytes: open it in binary mode")
        name = str(getattr(source, "name", "the picture"))
        return _from_file(io.BytesIO(content), name, limits, reduce_depth)
    return _from_array(source, limits, reduce_depth)


def read_head(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Pillow's name of a picture's format, width and height before orientation; pixels are not decoded.

    Raises FileNotFoundError, and ImageError for what is no picture.
    """
    with _errors_of_ours(str(path)), _opened(Path(path)) as image:
        return image.format or "", image.width, image.height


def _from_file(source: Path | io.BytesIO, name: str, limits: Limits, reduce_depth: bool) -> Picture:
    if isinstance(source, Path) and source.is_dir():
        raise ImageError(f"{name} is a folder: give the name of a picture in it")
    with _errors_of_ours(name), _opened(source) as image:
        return _from_pil(image, name, limits, reduce_depth)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """The picture with its head read, if it is of a kind that may be read."""
    Image.init()
    formats = [key for key in Image.OPEN if key not in _REFUSED_FORMATS]
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
        raise ImageError(f"{name} is not a picture of a kind that can be read: convert it to PNG first") from error
    except Exception as error:
        # Pillow's plugins raise nearly anything on damaged files, from SyntaxError to KeyError.
        raise ImageError(f"{name} cannot be read as a picture: {type(error).__name__}: {error}") from error


def _from_pil(image: Image.Image, name: str, limits: Limits, reduce_depth: bool) -> Picture:
    # What can be told from the header is told before the pixels are decoded, and again after,
    # since some formats (GIF) change mode or size only then.
    _check(image, name, limits, reduce_depth)
    bits = _bits(image)
    if bits > 8 and not reduce_depth:
        raise ImageError(f"{name} {_DEPTH_ADVICE}")
    if bits == 12:  # Pillow does not scale them, and after decoding does not tell them from 16 bits
        raise ImageError(f"{name} has 12 bits a sample, which cannot be read: make it 8 or 16 bits first")
    with _errors_of_ours(name):
        image.load()
    _check(image, name, limits, reduce_depth)
    extras = metadata.from_pillow(image)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # viewers show a picture with damaged EXIF data as it is stored; so do we
        image = image.copy()
    with _errors_of_ours(name):
        if image.mode in _DEEP_MODES:
            samples = _reduced_grey(image, name)
        elif _has_alpha(image):
            if bits > 8 and "transparency" in image.info:
                raise ImageError(f"{name} names a transparent colour with 16 bits a sample: give it an alpha channel")
            samples = np.array(image.convert("LA" if image.mode in {"1", "L", "La", "LA"} else "RGBA"))
        else:
            samples = np.array(image.convert("L" if image.mode in {"1", "L"} else "RGB"))
    return Picture(*planes(samples), **extras)


def _check(image: Image.Image, name: str, limits: Limits, reduce_depth: bool) -> None:
    """Refuse what is too large, empty, or of another sample type."""
    width, height = image.size
    limits.check(width, height, name)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if image.mode == "F":
        raise ImageError(f"{name} has float samples, whose range it does not say: make 8-bit samples of them first")
    if image.mode in _DEEP_MODES and not reduce_depth:
        raise ImageError(f"{name} (mode {image.mode}) {_DEPTH_ADVICE}")
    if image.mode not in {"1", "L", "RGB", *_ALPHA_MODES, *_CONVERTED_MODES, *_DEEP_MODES}:
        raise ImageError(f"{name} has pixels of mode {image.mode}, which is not supported: convert it to RGB first")


def _has_alpha(image: Image.Image) -> bool:
    palette = image.palette.mode if image.palette is not None else ""
    return (
        image.mode in _ALPHA_MODES
        or (image.mode in {"1", "L", "RGB", "P"} and "transparency" in image.info)
        or (image.mode == "P" and palette.endswith("A"))
    )


def _bits(image: Image.Image) -> int:
    """Bits a sample in the file: 8, 12 or 16, from how Pillow means to decode it.

    Of 16-bit colour it takes the higher byte without a word, and calls the mode RGB.
    """
    for tile in getattr(image, "tile", None) or []:
        decoder, args = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        deep_ppm = decoder in {"ppm", "ppm_plain"} and len(args) > 1 and isinstance(args[1], int) and args[1] > 255
        raw = [arg for arg in args if isinstance(arg, str)]
        if any(";12" in arg for arg in raw):
            return 12
        if deep_ppm or any(";16" in arg for arg in raw):
            return 16
    return 8


def _reduced_grey(image: Image.Image, name: str) -> Pixels:
    """8-bit samples of a grey picture with more: [H, W], or [H, W, 2] where one value is transparent."""
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > _MAX_16_BIT:
        raise ImageError(f"{name} has samples outside 0 to {_MAX_16_BIT}: bring them into 16 bits first")
    transparent = image.info.get("transparency")
    samples = _reduced(deep)
    if not isinstance(transparent, int):
        return samples
    return np.dstack((samples, np.where(deep == transparent, 0, 255).astype(np.uint8)))


def _reduced(deep: npt.NDArray[Any]) -> Pixels:
    """16-bit samples as 8-bit ones: round(x / 257), which has no ties."""
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


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
    return Picture(*planes(_reduced(source) if kind == "uint16" else np.array(source)))
