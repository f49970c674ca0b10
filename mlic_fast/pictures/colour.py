# SPDX-License-Identifier: Apache-2.0
"""What says how a picture's colours are meant, as a colour profile: the file's own, or one made of what else it says.

In the order in which they count: PNG's cICP, a profile, PNG's sRGB, PNG's gAMA and cHRM (BMP's calibration, AVIF's
numbers), and EXIF data that name Adobe RGB or primaries. What amounts to sRGB needs no profile. CMYK is converted to
sRGB through its profile.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mlic_fast.pictures import boxes, exif, icc
from mlic_fast.pictures.exif import Read

_SRGB_GAMMA = 2.2
_GAMMA_TOLERANCE = 0.05  # relative; PNG readers call such files sRGB
_UNSPECIFIED = 2  # ITU-T H.273
_LIKE_SRGB = (1, 6, 13, 14, 15)  # transfer functions that viewers show as sRGB's
_EXIF_IFD, _INTEROPERABILITY_IFD = 0x8769, 0xA005
_COLOUR_SPACE, _INTEROPERABILITY, _WHITE, _PRIMARIES = 0xA001, 0x0001, 318, 319
_TRANSFER_NAMES = {16: "PQ (HDR)", 18: "HLG (HDR)"}


@dataclass(frozen=True)
class Meaning:
    """profile: for the pixels; None: sRGB, or nothing is said. notes: what was said and could not be kept.

    settled: whether something was said, so that what counts less is not asked.
    """

    profile: bytes | None = None
    notes: tuple[str, ...] = ()
    settled: bool = False


def before_decoding(image: Image.Image, read: Read | None) -> Meaning:
    """What the file says beside what Pillow puts into `info`. To be asked before the file is closed."""
    if read is None:
        return Meaning()
    kind = image.format
    if kind == "PNG":
        coded = next((content for name, content in boxes.png_chunks(read) if name == b"cICP"), b"")
        return _coded(coded[0], coded[1], grey=image.mode in _GREY) if len(coded) == 4 else Meaning()
    if image.info.get("icc_profile"):
        return Meaning()
    if kind == "AVIF":
        numbers = boxes.avif_coding(read)
        return _coded(*numbers, grey=image.mode in _GREY) if numbers else Meaning()
    if kind == "JPEG2000":
        return Meaning(boxes.jpeg_2000_profile(read))
    if kind == "QOI" and read(13, 1) == b"\1":
        return _calibrated(icc.SRGB, 1.0, grey=False, name="QOI")
    if kind == "BMP":
        profile = boxes.bmp_profile(read)
        calibrated = boxes.bmp_calibration(read)
        if profile or calibrated is None:
            return Meaning(profile)
        return _calibrated(icc.Primaries(*calibrated[0]), calibrated[1], grey=image.mode in _GREY, name="BMP")
    return Meaning()


_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}


def of_image(image: Image.Image, found: Meaning, exif_data: bytes | None) -> Meaning:
    """How the colours of a decoded image are meant; found: what `before_decoding` gave.

    A CMYK profile is the caller's to apply: it describes inks, not the RGB values that are coded.
    """
    info = image.info
    grey = image.mode in _GREY
    if found.profile or found.notes or found.settled:
        return found
    own = info.get("icc_profile")
    if isinstance(own, bytes) and own:
        return Meaning(own if image.mode != "CMYK" else None)
    if image.mode == "CMYK" or "srgb" in info:
        return Meaning()
    gamma, points = info.get("gamma"), info.get("chromaticity")
    if image.format in {None, "PNG"} and (gamma or points):
        try:
            primaries = icc.SRGB if not points else icc.Primaries(*zip(points[::2], points[1::2], strict=True))
            return _calibrated(primaries, 1 / gamma if gamma else None, grey=grey, name="PNG")
        except (TypeError, ValueError, ZeroDivisionError):
            return Meaning(notes=("gamma and primaries that make no sense left out",))
    return _of_exif(exif_data) if exif_data and not grey else Meaning()


def _coded(primaries: int, transfer: int, *, grey: bool) -> Meaning:
    """Colours by the numbers of ITU-T H.273."""
    usual_primaries = primaries in (0, 1, _UNSPECIFIED)
    if usual_primaries and transfer in (0, _UNSPECIFIED, *_LIKE_SRGB):
        return Meaning(settled=(primaries, transfer) not in ((0, 0), (_UNSPECIFIED, _UNSPECIFIED)))
    curve = icc.CODED_CURVES.get(13 if transfer in (0, _UNSPECIFIED) else transfer)
    points = icc.CODED_PRIMARIES.get(1 if usual_primaries else primaries)
    if curve is None or points is None:
        named = _TRANSFER_NAMES.get(transfer, f"transfer function {transfer}, primaries {primaries} of ITU-T H.273")
        return Meaning(notes=(f"colours coded as {named}: no profile says so, shown as if they were sRGB",))
    name = f"Primaries {primaries}, transfer {transfer} (ITU-T H.273)"
    return Meaning(icc.grey_profile(name, curve) if grey else icc.rgb_profile(name, points, curve))


def _calibrated(primaries: icc.Primaries, gamma: float | None, *, grey: bool, name: str) -> Meaning:
    """Colours by primaries and gamma; gamma: None: that of sRGB."""
    usual = gamma is None or abs(gamma / _SRGB_GAMMA - 1) <= _GAMMA_TOLERANCE
    if usual and (grey or primaries.is_near(icc.SRGB)):
        return Meaning()
    curve = icc.SRGB_CURVE if gamma is None else icc.Curve.power(gamma)
    told = f"Gamma {gamma:.4g} of the {name} file" if gamma is not None else f"Primaries of the {name} file"
    try:
        if not 0.05 < (gamma or 1) < 20:
            raise ValueError("no gamma")
        return Meaning(icc.grey_profile(told, curve) if grey else icc.rgb_profile(told, primaries, curve))
    except ValueError:
        return Meaning(notes=("gamma and primaries that make no sense left out",))


def _of_exif(data: bytes) -> Meaning:
    """Adobe RGB, as cameras name it, or primaries."""
    try:
        tiff = exif.tiff_of(data)
        space = tiff.find(_EXIF_IFD, _COLOUR_SPACE)
        number = None if space is None else tiff.number(space)
        told = tiff.find(_EXIF_IFD, _INTEROPERABILITY_IFD, _INTEROPERABILITY) if number != 2 else None
        if number == 2 or (number != 1 and told is not None and told.value[:3] == b"R03"):
            return Meaning(icc.rgb_profile("Adobe RGB (1998), as EXIF says", icc.ADOBE_RGB, icc.ADOBE_RGB_CURVE))
        points = tiff.fractions(tiff.find(_PRIMARIES))
        white = tiff.fractions(tiff.find(_WHITE)) or list(icc.D65)
    except ValueError:
        return Meaning()
    if number == 1 or len(points) != 6 or len(white) != 2:
        return Meaning()
    primaries = icc.Primaries((white[0], white[1]), *zip(points[::2], points[1::2], strict=True))
    return _calibrated(primaries, None, grey=False, name="EXIF")


def from_cmyk(image: Image.Image) -> tuple[Image.Image, str]:
    """A CMYK image as RGB, and a note on how: through its profile to sRGB, or by the plain formula."""
    profile: Any = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB"), "CMYK without a profile converted to RGB by a plain formula"
    try:
        from PIL import ImageCms

        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(inks))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, inks, srgb, intent, outputMode="RGB")
        name = ImageCms.getProfileDescription(inks).strip()
    except Exception as error:  # not in this Pillow, damaged, or of another kind of colours
        told = f"{type(error).__name__}: {error}"
        return image.convert("RGB"), f"CMYK converted to RGB by a plain formula: its profile cannot be applied ({told})"
    assert converted is not None  # for the type checker: not in place
    return converted, f"CMYK converted to sRGB through its profile ({name or 'without a name'})"
