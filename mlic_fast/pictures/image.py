# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out: files, PIL images, arrays and tensors to 8-bit pixels, and back.

A picture is grey or RGB, with or without alpha, with 8 bits a sample. What converts without
loss of anything that a viewer would see is converted (palette, 1-bit, CMYK, YCbCr, HSV,
transparent colours); what would lose something is refused: float samples, and 16-bit ones
unless they are to be reduced. torch is imported only where tensors are made.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from mlic_fast.bitstream.container import Mlic
from mlic_fast.bitstream.container import Mode as Mode
from mlic_fast.bitstream.container import Padding as Padding
from mlic_fast.config import PADDING_UNIT
from mlic_fast.errors import BitstreamError, ImageError, LimitError, MlicError, NonFiniteError
from mlic_fast.limits import Limits
from mlic_fast.pictures import metadata

if TYPE_CHECKING:
    import torch

Rounding = Literal["nearest", "truncate"]
Pixels = npt.NDArray[np.uint8]

FADE = 16  # pixels; 8 and 32 code about the same

# EPS and WMF, because Pillow reads them by running another program (Ghostscript) or the system's renderer;
# icons, because what they hold may be far larger than what their heads say, and is decoded before it shows.
_REFUSED_FORMATS = {"EPS", "WMF", "ICO", "ICNS"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_MAX_16_BIT = 65_535
_CONVERTED_MODES = {"P", "CMYK", "YCbCr", "HSV", "RGBX"}

# PIL's mode of the decoded picture.
PILLOW_MODES: dict[Mode, str] = {"grey": "L", "grey-alpha": "LA", "rgb": "RGB", "rgb-alpha": "RGBA"}

_DEPTH_ADVICE = (
    "has more than 8 bits a sample: have it reduced to 8 bits (reduce_depth=True, --reduce-depth), "
    "or do so before, for instance `magick IN -depth 8 OUT.png`"
)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is coded: upright, 8 bits a sample, and what came with it.

    pixels: uint8 [H, W, 3] for "rgb" and "rgb-alpha", [H, W] for "grey" and "grey-alpha"; read-only.
    alpha: uint8 [H, W], 0 transparent to 255 opaque, colours not multiplied by it; read-only.
        There if and only if the mode has alpha.
    icc_profile: colour profile, if it applies to the pixels.
    exif: EXIF data as a TIFF file, without the "Exif\\0\\0" in front and without orientation.
    xmp: XMP packet, UTF-8, without orientation.
    comment: as JPEG and GIF files have them.
    """

    pixels: Pixels
    mode: Mode
    alpha: Pixels | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    comment: str | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


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


def to_tensor(picture: Picture) -> torch.Tensor:
    """Pixels as the model takes them: float32 [1, 3, H, W] in [0, 1]; grey is repeated."""
    import torch

    planes = np.atleast_3d(picture.pixels).transpose(2, 0, 1)[None]  # [1, 1 or 3, H, W]
    # the copy also makes it writable, which torch insists on
    tensor = torch.from_numpy(planes.copy()).to(torch.float32).div_(255)
    return tensor.expand(-1, 3, -1, -1).contiguous()


def pad_to_64(x: torch.Tensor, padding: Padding = "zero") -> torch.Tensor:
    """Fill up on the right and bottom to multiples of 64: [B, C, H, W] to [B, C, H', W'].

    padding: "zero", as the official test script does, or "fade": the last row and column
        repeated, fading over 16 pixels into the mean colour. A step to black at the edge costs
        bits and rings inwards: with the small model, averaged over six photographs, fading was
        smaller and closer at each of six sizes (1 to 33 % fewer bytes and 0.2 to 5 dB more, most
        for the smallest). Decoding does not depend on it.
    """
    import torch
    from torch.nn.functional import pad

    height, width = x.shape[-2:]
    missing = (0, -width % PADDING_UNIT, 0, -height % PADDING_UNIT)
    if padding == "zero" or not any(missing):
        return pad(x, missing)
    repeated = pad(x, missing, mode="replicate")
    outside = [
        torch.arange(1 - side, 1 - side + padded, device=x.device).clamp(min=0)
        for side, padded in zip((height, width), repeated.shape[-2:], strict=True)
    ]
    distance = torch.maximum(outside[0][:, None], outside[1])  # [H', W'], 0 inside the picture
    mean = x.mean(dim=(-2, -1), keepdim=True)
    faded = torch.lerp(repeated, mean.expand_as(repeated), (distance / FADE).clamp(max=1).to(x.dtype))
    return torch.where(distance > 0, faded, repeated)


def crop(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Take padding off again: the top left [B, C, height, width] of a larger tensor."""
    return x[..., :height, :width]


def to_pixels(x_hat: torch.Tensor, mode: Mode = "rgb", rounding: Rounding = "nearest") -> Pixels:
    """Turn the model's output [1, 3, H, W] into pixels without alpha: uint8 [H, W, 3], or [H, W] for grey.

    Values are clamped to [0, 1]; grey is the mean of the three clamped channels, before rounding.
    rounding: "nearest" (halves to even) for pictures; "truncate" as the official test script does,
    for comparing numbers with published ones. Raises NonFiniteError.
    """
    import torch

    if x_hat.ndim != 4 or x_hat.shape[:2] != (1, 3):
        raise ImageError(f"expected one picture [1, 3, H, W], not {list(x_hat.shape)}")
    x = x_hat.detach()[0].to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("the decoded picture has values that are not finite: are the weights damaged?")
    x = x.clamp(0, 1)
    grey = mode in ("grey", "grey-alpha")
    if grey:
        x = x.mean(dim=0, keepdim=True)
    x = x.mul(255)
    if rounding == "nearest":
        x = x.round()
    pixels: Pixels = x.to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
    return pixels[..., 0] if grey else pixels


def to_pillow(pixels: Pixels, alpha: Pixels | None = None) -> Image.Image:
    """Pixels [H, W, 3] or [H, W] and alpha [H, W] as a PIL image: mode "L", "LA", "RGB" or "RGBA"."""
    return Image.fromarray(pixels if alpha is None else np.dstack((pixels, alpha)))


def pack_alpha(alpha: Pixels) -> bytes:
    """The alpha chunk for this alpha [H, W]: one byte if all pixels have the same, otherwise a PNG."""
    if (alpha == alpha.flat[0]).all():
        return bytes([alpha.flat[0]])
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def unpack_alpha(file: Mlic) -> Pixels | None:
    """The file's alpha [H, W], or None. Raises BitstreamError if the chunk's PNG is damaged."""
    if file.alpha is None:
        return None
    if len(file.alpha) == 1:
        return np.full((file.height, file.width), file.alpha[0], np.uint8)
    # What the PNG measures was checked when the file was taken apart, so Pillow's own limit, which
    # `Image.open` asks for and this class does not, has no say.
    try:
        with PngImageFile(io.BytesIO(file.alpha)) as image:
            return np.array(image)
    except MemoryError:
        raise
    except Exception as error:
        raise BitstreamError(
            f"the alpha chunk of the .mlic file is damaged ({type(error).__name__}: {error}): get the file again"
        ) from error


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
    return Picture(*_planes(samples), **extras)


def _planes(samples: Pixels) -> tuple[Pixels, Mode, Pixels | None]:
    """Split [H, W], [H, W, 2], [H, W, 3] or [H, W, 4] into pixels, their mode and alpha."""
    if samples.ndim == 2:
        return _frozen(samples), "grey", None
    channels = samples.shape[2]
    if channels == 3:
        return _frozen(samples), "rgb", None
    alpha = _frozen(np.ascontiguousarray(samples[..., -1]))
    if channels == 2:
        return _frozen(np.ascontiguousarray(samples[..., 0])), "grey-alpha", alpha
    return _frozen(np.ascontiguousarray(samples[..., :3])), "rgb-alpha", alpha


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
    return Picture(*_planes(_reduced(source) if kind == "uint16" else np.array(source)))


def _frozen(pixels: Pixels) -> Pixels:
    pixels.flags.writeable = False
    return pixels
