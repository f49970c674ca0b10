# SPDX-License-Identifier: Apache-2.0
"""Between pixels and what the model takes and gives: tensors in [0, 1], padding, rounding.

torch is imported only where tensors are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from mlic_fast.bitstream.container import Padding as Padding
from mlic_fast.config import PADDING_UNIT
from mlic_fast.errors import ImageError, NonFiniteError
from mlic_fast.pictures.picture import Mode, Picture, Pixels

if TYPE_CHECKING:
    import torch

Rounding = Literal["nearest", "truncate"]

FADE = 16  # pixels; 8 and 32 code about the same


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
