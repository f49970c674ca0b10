# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out: files, PIL images, arrays and tensors to 8-bit pixels, and back.

A picture is grey or RGB with 8 bits a sample. What converts without loss of anything that a
viewer would see is converted (palette, 1-bit, CMYK, YCbCr, HSV); what would lose something
is refused (alpha, 16-bit and float samples). torch is imported only where tensors are made.
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

from mlic_fast.bitstream.container import Mode as Mode
from mlic_fast.bitstream.container import Padding as Padding
from mlic_fast.config import PADDING_UNIT
from mlic_fast.errors import ImageError, LimitError, MlicError, NonFiniteError
from mlic_fast.limits import Limits

if TYPE_CHECKING:
    import torch

Rounding = Literal["nearest", "truncate"]
Pixels = npt.NDArray[np.uint8]

FADE = 16  # pixels; 8 and 32 code about the same

# Pillow reads these by running another program (Ghostscript) or the system's renderer.
_REFUSED_FORMATS = {"EPS", "WMF"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_CONVERTED_MODES = {"P", "CMYK", "YCbCr", "HSV", "RGBX"}

_ALPHA_ADVICE = (
    "has transparency, which is not supported: put it on a background first, for instance "
    "`Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB')`"
)
_DEPTH_ADVICE = (
    "has more than 8 bits a sample, which is not supported: reduce it to 8 bits first, "
    "for instance `magick IN -depth 8 OUT.png`"
)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is coded: upright, 8 bits a sample, no alpha.

    pixels: uint8 [H, W, 3] for "rgb", [H, W] for "grey"; read-only.
    icc_profile: colour profile found in the file, if it still applies to the pixels.
    """

    pixels: Pixels
    mode: Mode
    icc_profile: bytes | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


def open_image(source: Any, limits: Limits | None = None) -> Picture:
    """Read a picture from almost anything.

    source: path; bytes of an image file; binary file object; PIL image; uint8 array or
        tensor [H, W, 3] or [H, W] (values 0 to 255); or a Picture, which is returned as it is.
        EXIF orientation is applied. Of an animation or a document the first picture is taken.
    limits: what the picture may measure; default: `Limits()`, Pillow's pixel limit. Checked
        before pixels are decoded.

    Raises FileNotFoundError for a path that does not exist, LimitError for a picture that is
    too large, ImageError for everything else: no picture, damaged, alpha, more than 8 bits a
    sample (as far as Pillow tells: it reduces AVIF and JPEG 2000 to 8 bits by itself),
    arrays of another type or shape.
    """
    limits = Limits.of(limits)
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, "the picture", limits)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), str(source), limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), "the picture", limits)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ImageError(f"the file object gave {type(content).__name__}, not bytes: open it in binary mode")
        return _from_file(io.BytesIO(content), str(getattr(source, "name", "the picture")), limits)
    return _from_array(source, limits)


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
    """Turn the model's output [1, 3, H, W] into pixels: uint8 [H, W, 3], or [H, W] for grey.

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
    if mode == "grey":
        x = x.mean(dim=0, keepdim=True)
    x = x.mul(255)
    if rounding == "nearest":
        x = x.round()
    pixels: Pixels = x.to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
    return pixels[..., 0] if mode == "grey" else pixels


def to_picture(x_hat: torch.Tensor, mode: Mode = "rgb", icc_profile: bytes | None = None) -> Image.Image:
    """Turn the model's output [1, 3, H, W] into a PIL image, mode "L" or "RGB", rounded.

    icc_profile: stored with the image, so that saving keeps it. Raises NonFiniteError.
    """
    image = Image.fromarray(to_pixels(x_hat, mode))
    if icc_profile is not None:
        image.info["icc_profile"] = icc_profile
    return image


def _from_file(source: Path | io.BytesIO, name: str, limits: Limits) -> Picture:
    if isinstance(source, Path) and source.is_dir():
        raise ImageError(f"{name} is a folder: give the name of a picture in it")
    Image.init()
    formats = [key for key in Image.OPEN if key not in _REFUSED_FORMATS]
    with warnings.catch_warnings(), _errors_of_ours(name):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limits` decides, and says so
        with Image.open(source, formats=formats) as image:
            return _from_pil(image, name, limits)


@contextlib.contextmanager
def _errors_of_ours(name: str) -> Iterator[None]:
    """Turn what Pillow raises into this package's exceptions."""
    try:
        yield
    except (MlicError, FileNotFoundError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture of a kind that can be read: convert it to PNG first") from error
    except Exception as error:
        # Pillow's plugins raise nearly anything on damaged files, from SyntaxError to KeyError.
        raise ImageError(f"{name} cannot be read as a picture: {type(error).__name__}: {error}") from error


def _from_pil(image: Image.Image, name: str, limits: Limits) -> Picture:
    # What can be told from the header is told before the pixels are decoded, and again after,
    # since some formats (GIF, ICO) change mode or size only then.
    _check(image, name, limits)
    _check_depth(image, name)
    with _errors_of_ours(name):
        image.load()
    _check(image, name, limits)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # viewers show a picture with damaged EXIF data as it is stored; so do we
        image = image.copy()
    profile = image.info.get("icc_profile")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in _CONVERTED_MODES:
        if image.mode == "CMYK":
            profile = None  # it describes inks, not the RGB values that are coded
        image = image.convert("RGB")
    mode: Mode = "grey" if image.mode == "L" else "rgb"
    return Picture(_frozen(np.array(image)), mode, profile if isinstance(profile, bytes) and profile else None)


def _check(image: Image.Image, name: str, limits: Limits) -> None:
    """Refuse what is too large, empty, transparent or of another sample type."""
    width, height = image.size
    limits.check(width, height, name)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    palette = image.palette.mode if image.palette is not None else ""
    if image.mode in _ALPHA_MODES or "transparency" in image.info or (image.mode == "P" and palette.endswith("A")):
        raise ImageError(f"{name} {_ALPHA_ADVICE}")
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        raise ImageError(f"{name} (mode {image.mode}) {_DEPTH_ADVICE}")
    if image.mode not in {"1", "L", "RGB", *_CONVERTED_MODES}:
        raise ImageError(f"{name} has pixels of mode {image.mode}, which is not supported: convert it to RGB first")


def _check_depth(image: Image.Image, name: str) -> None:
    """Refuse 16-bit colour, which Pillow cuts to 8 bits without a word, from how it means to decode it."""
    for tile in getattr(image, "tile", None) or []:
        decoder, args = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        deep_ppm = decoder in {"ppm", "ppm_plain"} and len(args) > 1 and isinstance(args[1], int) and args[1] > 255
        if deep_ppm or any(isinstance(arg, str) and ";16" in arg for arg in args):
            raise ImageError(f"{name} {_DEPTH_ADVICE}")


def _from_array(source: Any, limits: Limits) -> Picture:
    """Arrays and tensors; tensors are known by their methods, so that torch is not imported."""
    if all(hasattr(source, method) for method in ("detach", "cpu", "numpy")):
        kind = str(source.dtype).removeprefix("torch.")
        if kind == "uint8":
            source = source.detach().cpu().numpy()
    elif hasattr(source, "__array__"):
        source = np.asarray(source)
        kind = str(source.dtype)
    else:
        raise ImageError(
            f"cannot read a picture from {type(source).__name__}: give a path, bytes, a PIL image or a uint8 array"
        )
    if kind != "uint8":
        raise ImageError(
            f"an array of {kind} is no picture: give uint8 values from 0 to 255 (from [0, 1]: x * 255, rounded)"
        )
    shape = tuple(source.shape)
    if len(shape) == 3 and shape[2] in (2, 4) and shape[0] not in (1, 3):  # those look like channels first
        raise ImageError(f"an array {list(shape)} has an alpha channel, which is not supported: give [H, W, 3]")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        raise ImageError(f"an array {list(shape)} is no picture: give [H, W, 3] or [H, W], channels last, no batch")
    if 0 in shape:
        raise ImageError(f"an array {list(shape)} is an empty picture")
    limits.check(shape[1], shape[0], "the array")
    # copied, so that the caller may go on writing to it
    return Picture(_frozen(np.array(source)), "rgb" if len(shape) == 3 else "grey")


def _frozen(pixels: Pixels) -> Pixels:
    pixels.flags.writeable = False
    return pixels
