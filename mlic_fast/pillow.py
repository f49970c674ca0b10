# SPDX-License-Identifier: Apache-2.0
"""Pillow plugin: after `import mlic_fast.pillow` Pillow opens and saves .mlic files.

    import mlic_fast.pillow
    from PIL import Image

    with Image.open("photo.mlic") as image:  # size, mode and metadata; nothing is decoded yet
        image.thumbnail((200, 200))  # made of the thumbnail in the file, where that is large enough
    Image.open("photo.png").save("photo.mlic", quality=60, thumbnail=256)

Opening reads the file and checks its checksums. torch is imported and the picture decoded when
its pixels are first needed. The weights are found by the file's fingerprint; to name weights, a
device or limits, call `mlic_fast.decode`.

Pillow's limit (`Image.MAX_IMAGE_PIXELS`) applies on opening, with Pillow's warning and error.
A file that cannot be opened raises `PIL.UnidentifiedImageError`; a picture that cannot be decoded
or encoded raises `OSError`, an option that makes no sense `ValueError`. The text is this package's.

Options for `Image.save`:

quality: 0 to 100: of the models at hand the one whose λ is nearest to what
    `mlic_fast.rate_control.choose_by_quality` takes it to mean. One model alone serves every quality.
model: name or path of a model, or a loaded one; not together with quality.
device, guard, metadata, thumbnail, reduce_depth: as for `mlic_fast.encode`.
icc_profile, exif, xmp, dpi: instead of what the image carries in `info`, which is kept otherwise;
    None or empty: left out.

Pillow empties an existing file before a plugin begins to encode. To keep the old file when
encoding fails, save to an `io.BytesIO` first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import IO, Any, cast

from PIL import Image, ImageFile, UnidentifiedImageError

from mlic_fast.bitstream import container
from mlic_fast.errors import BitstreamError, MlicError, TargetError
from mlic_fast.limits import Limits
from mlic_fast.pictures import resolution
from mlic_fast.pictures.image import PILLOW_MODES, Picture, open_image
from mlic_fast.pictures.metadata import from_pillow, info_of
from mlic_fast.pictures.thumbnail import open_thumbnail

FORMAT = "MLIC"
EXTENSION = ".mlic"
MIME_TYPE = "image/x-mlic"

# On opening nothing is allocated, and Pillow itself judges the number of pixels.
_ANY_SIZE = Limits(pixels=None, side=2**32 - 1)

_METADATA_OPTIONS = ("icc_profile", "exif", "xmp")
_ENCODE_OPTIONS = ("device", "guard", "metadata", "thumbnail")


class MlicImageFile(ImageFile.ImageFile):
    """An .mlic file as `Image.open` gives it: mode "L", "LA", "RGB" or "RGBA", decoded on load.

    The file's bytes are kept until then, so that nothing else need stay open.
    """

    format = FORMAT
    format_description = "MLIC learned image compression"

    # Of the class, since copies and pickles are made without `_open`: they are loaded already.
    _data: bytes | None = None  # the file, until it is decoded
    _thumbnail: bytes | None = None  # the file's thumbnail chunk
    _small: Image.Image | None = None  # the thumbnail, once it was chosen in place of the picture
    _box: tuple[float, float] | None = None  # into which `thumbnail` wants the picture to fit

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        try:
            file = container.read(data, _ANY_SIZE)
        except MlicError as error:
            # Pillow would hide the reason behind a SyntaxError, its word for "not my format".
            raise UnidentifiedImageError(str(error)) from error
        self._size = file.width, file.height
        self._mode = PILLOW_MODES[file.mode]
        self.info.update(info_of(file))
        self._thumbnail = file.find(container.ChunkKind.THUMBNAIL)
        self._data = data

    def load(self) -> Any:
        """Decode the picture unless that is done. Raises OSError."""
        data = self._data
        if data is not None:
            image = self._small or _decode(data)
            if (image.mode, image.size) != (self.mode, self.size):
                raise OSError(f"the picture was decoded as {image.mode} {image.size}, not {self.mode} {self.size}")
            self.im = image.im
            self.readonly = image.readonly  # Pillow may share memory with an array
            self._data = None
            if self.fp is not None and getattr(self, "_exclusive_fp", False):
                self.fp.close()
            self.fp = None
        return Image.Image.load(self)

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Take the file's thumbnail in place of the picture, if it is at least as wide and as high as `size`.

        The mode stays: decoding has no cheaper way to another one. Returns mode and box of what is
        loaded now, or None if nothing changed.
        """
        if self._data is None or self._small is not None or size is None:
            return None
        small = self._open_thumbnail()
        if small is None:
            return None
        # Pillow's `thumbnail` asks for more than it needs, and for a box, not for the picture's shape.
        covers = any if self._box is not None else all
        if not covers(have >= int(want) for have, want in zip(small.size, self._box or size, strict=True)):
            return None
        self._small = small
        self._size = small.size
        return self.mode, (0, 0, *small.size)

    def thumbnail(
        self,
        size: tuple[float, float],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        reducing_gap: float | None = 2.0,
    ) -> None:
        """As Pillow's, made of the file's thumbnail where that is at least as large as the result.

        reducing_gap: None decodes the picture even so.
        """
        self._box = size
        try:
            super().thumbnail(size, resample, reducing_gap)
        finally:
            self._box = None

    def get_child_images(self) -> list[ImageFile.ImageFile]:
        """The file's thumbnail, if it has one."""
        small = self._open_thumbnail()
        return [] if small is None else [cast(ImageFile.ImageFile, small)]

    def close(self) -> None:
        """Close the image: its pixels cannot be used any more, decoded or not."""
        self._data = self._thumbnail = self._small = None
        super().close()

    def _open_thumbnail(self) -> Image.Image | None:
        """The file's thumbnail in the picture's mode; None: there is none that shows this picture."""
        if self._thumbnail is None:
            return None
        try:
            small = open_thumbnail(self._thumbnail)
        except BitstreamError:  # the picture itself may be whole
            return None
        (width, height), (across, down) = self.size, small.size
        # The same shape, one pixel of rounding apart, and no larger.
        if abs(across * height - down * width) > max(width, height) or across > width or down > height:
            return None
        return small if small.mode == self.mode else small.convert(self.mode)


def register() -> None:
    """Make Pillow know .mlic files; importing this module does it. Doing it again changes nothing."""
    Image.register_open(FORMAT, MlicImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_save_all(FORMAT, _save_all)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME_TYPE)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _decode(data: bytes) -> Image.Image:
    from mlic_fast.codec import decode

    try:
        # Pillow has judged the number of pixels on opening; the side still counts.
        return decode(data, limits=Limits(pixels=None))
    except MlicError as error:
        raise OSError(f"the .mlic file cannot be decoded: {error}") from error


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Encode and write in one piece, so that an error leaves nothing behind."""
    from mlic_fast.codec import encode

    options = dict(image.encoderinfo)
    if options.get("lossless"):
        raise ValueError("MLIC cannot save losslessly: it is a lossy format. Save PNG or lossless WebP instead")
    try:
        picture = _picture(image, options)
        model = _model(options)
        given = {name: options[name] for name in _ENCODE_OPTIONS if name in options}
        data = encode(picture, model, **given)
    except TargetError:  # a ValueError already, about an option
        raise
    except MlicError as error:
        raise OSError(f"cannot save a picture of mode {image.mode} as {FORMAT}: {error}") from error
    fp.write(data)


def _save_all(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    raise ValueError("an .mlic file holds one picture: save each frame to a file of its own, without save_all")


def _model(options: dict[str, Any]) -> Any:
    """The model that model= or quality= names; None: neither does."""
    quality, model = options.get("quality"), options.get("model")
    if quality is None:
        return model
    if model is not None:
        raise ValueError("give quality or model, not both: quality chooses among the models at hand")
    from mlic_fast.rate_control import choose_by_quality

    return choose_by_quality(quality).path


def _picture(image: Image.Image, options: dict[str, Any]) -> Picture:
    """The picture with the metadata that the options name in place of its own."""
    given = {name: _bytes_of(name, options[name]) for name in _METADATA_OPTIONS if name in options}
    source = image
    if given.get("exif"):
        # its orientation counts instead of the image's, and is applied to the pixels as that would be
        source = image.copy()
        source.info["exif"] = given["exif"]
    picture = open_image(source, Limits(pixels=None), reduce_depth=bool(options.get("reduce_depth")))
    if "dpi" in options:
        picture = replace(picture, resolution=resolution.of_pair(options["dpi"]))
    if not given:
        return picture
    carrier = Image.new(image.mode, (1, 1))
    carrier.info.update(given)
    found = from_pillow(carrier)
    if given.get("xmp") and not found["xmp"]:
        raise ValueError("xmp is not UTF-8 text, which XMP has to be")
    return replace(picture, **{name: found[name] for name in given})


def _bytes_of(name: str, value: Any) -> bytes:
    """A metadata option's value as bytes; empty: leave it out. Raises ValueError."""
    if isinstance(value, Image.Exif):
        return value.tobytes() if len(value) else b""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, (bytes, bytearray, memoryview, type(None))):
        raise ValueError(f"{name} must be bytes, not {type(value).__name__}")
    data = bytes(value or b"")
    if name == "exif" and data:
        try:
            Image.Exif().load(data)
        except Exception as error:  # Pillow raises nearly anything on damaged data
            raise ValueError(f"exif is no EXIF data: {error}") from error
    return data


register()
