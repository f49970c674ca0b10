# SPDX-License-Identifier: Apache-2.0
"""Limits on the size of a picture: what a file or an image may ask us to allocate.

One rule for both directions, so that whatever can be encoded can be decoded again. Pillow
has two thresholds (a warning above MAX_IMAGE_PIXELS, an error above twice that); here the
first one is the limit, since a warning does not stop an allocation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlic_fast.errors import LimitError

# Pictures are padded to multiples of 64, so a thin one grows: without a limit on the sides,
# 1 x 89,000,000 pixels would pass the pixel limit and be 64 times as large when coded.
MAX_SIDE = 65_536

# The largest colour profiles in use are a few MB, EXIF data that fits a JPEG 64 KB.
MAX_METADATA_BYTES = 16 * 2**20


def default_pixel_limit() -> int | None:
    """Pillow's limit as it is set now (`PIL.Image.MAX_IMAGE_PIXELS`); None: no limit."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a picture and what comes with it may measure.

    pixels: width x height at most; None: as many as the sides allow. Default: Pillow's limit.
    side: width and height at most.
    metadata_bytes: of each piece of metadata (colour profile, EXIF, XMP, comment) at most.
    """

    pixels: int | None = field(default_factory=default_pixel_limit)
    side: int = MAX_SIDE
    metadata_bytes: int = MAX_METADATA_BYTES

    @classmethod
    def of(cls, limits: Limits | None) -> Limits:
        """`limits`, or the default ones for None. Raises LimitError for anything else."""
        if limits is None:
            return cls()
        if not isinstance(limits, cls):
            raise LimitError(f"limits must be a mlic_fast.limits.Limits, not {limits!r}")
        return limits

    def check(self, width: int, height: int, what: str, count: int = 1) -> None:
        """Raise LimitError if `count` pictures of width x height are too large together; `what` names them."""
        if max(width, height) > self.side:
            raise LimitError(
                f"{what} is {width} x {height}; a side may have at most {self.side:,} pixels: split the "
                "picture, or allow more (limits=, --max-side)"
            )
        total = width * height * count
        if self.pixels is not None and total > self.pixels:
            times = f"{count} times " if count > 1 else ""
            raise LimitError(
                f"{what} is {times}{width} x {height}, {total:,} pixels; the limit is {self.pixels:,}. "
                "If you trust where it comes from, give a larger one (limits=, --max-pixels), or raise "
                "PIL.Image.MAX_IMAGE_PIXELS (None: no limit) in Python"
            )
