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


def default_pixel_limit() -> int | None:
    """Pillow's limit as it is set now (`PIL.Image.MAX_IMAGE_PIXELS`); None: no limit."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a picture may measure.

    pixels: width x height at most; None: as many as the sides allow. Default: Pillow's limit.
    side: width and height at most.
    """

    pixels: int | None = field(default_factory=default_pixel_limit)
    side: int = MAX_SIDE

    @classmethod
    def of(cls, limits: Limits | None) -> Limits:
        """`limits`, or the default ones for None. Raises LimitError for anything else."""
        if limits is None:
            return cls()
        if not isinstance(limits, cls):
            raise LimitError(f"limits must be a mlic_fast.limits.Limits, not {limits!r}")
        return limits

    def check(self, width: int, height: int, what: str) -> None:
        """Raise LimitError if a picture of width x height is too large; `what` names it."""
        if max(width, height) > self.side:
            raise LimitError(
                f"{what} is {width} x {height}; a side may have at most {self.side:,} pixels: split the picture"
            )
        if self.pixels is not None and width * height > self.pixels:
            raise LimitError(
                f"{what} is {width} x {height}, {width * height:,} pixels; the limit is {self.pixels:,}. "
                "If you trust where it comes from, raise PIL.Image.MAX_IMAGE_PIXELS (None: no limit) in Python"
            )
