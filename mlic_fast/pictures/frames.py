# SPDX-License-Identifier: Apache-2.0
"""Files of several pictures: how many there are, and taking one of them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from mlic_fast.errors import ImageError


def count(image: Image.Image, source: Path | io.BytesIO | None) -> int:
    """How many pictures the file holds that this image was opened from; 1 where that cannot be told.

    source: the file, which is opened once more where counting would move the image's place in it.
    """
    known = vars(image).get("n_frames")
    if isinstance(known, int):
        return known
    if vars(image).get("is_animated") is False or not hasattr(type(image), "n_frames"):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if source is not None:
                content = source if isinstance(source, Path) else io.BytesIO(source.getbuffer())
                with Image.open(content, formats=(str(image.format),)) as again:
                    return int(getattr(again, "n_frames", 1))
            # counting may decode anew, so an image is asked only as long as nothing was decoded and drawn on
            return int(getattr(image, "n_frames", 1)) if getattr(image, "tile", None) else 1
    except Exception:  # what follows the first picture is damaged
        return 1


def choose(image: Image.Image, frame: int | None, total: int, name: str) -> tuple[str, ...]:
    """Go to a picture of the file, counted from 1; None: the first. Returns notes on what is left out.

    Raises ImageError for one that is not there.
    """
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 1):
        raise ImageError(f"pictures in a file are counted from 1, so there is none with number {frame!r}")
    if image.format == "PSD":  # what is decoded is all layers together
        if frame not in (None, 1):
            raise ImageError(f"{name} has layers, of which none can be taken alone: save it as a picture of its own")
        return (f"{total} layers: their sum is taken",) if total > 1 else ()
    if frame is not None and frame > total:
        raise ImageError(f"{name} holds {total} picture{'s' * (total > 1)}, so there is none with number {frame}")
    if frame is None:
        if total == 1:
            return ()
        return (f"{total} pictures in the file: the first is taken, {total - 1:,} left out (--frame N takes another)",)
    if frame - 1 != image.tell():
        try:
            image.seek(frame - 1)
        except Exception as error:
            raise ImageError(f"picture {frame} of {name} cannot be read: {type(error).__name__}: {error}") from error
    return ()
