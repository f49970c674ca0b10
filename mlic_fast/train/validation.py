# SPDX-License-Identifier: Apache-2.0
"""Validation: pictures go to files and back; with a range of λ, to rounded symbols, whose likelihoods tell the size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mlic_fast.codec import decode, encode
from mlic_fast.compute.nonfinite import check_finite
from mlic_fast.errors import MlicError
from mlic_fast.evaluate.metrics import bits_per_pixel, measure
from mlic_fast.limits import Limits
from mlic_fast.pictures.folder import find_pictures
from mlic_fast.pictures.image import crop, open_image, pad_to_64, to_pixels, to_tensor
from mlic_fast.train.distributed import Processes
from mlic_fast.train.recipe import Recipe
from mlic_fast.train.step import Trainee

# Of training pictures, which may be large and many, a part in the middle is enough.
_TRAINING_SIDE = 512

# λ of a range that are validated at, evenly spaced in their logarithm, both ends and the middle among them.
RATES = 5


@dataclass(frozen=True)
class Validation:
    """Means over the pictures that were coded; ms_ssim is None if all are too small for it.

    loss: λ · distortion + rate of files and rounded pictures; infinite if pictures failed. failed: how many could not
    be coded; reason: why one of them, if it was this process's. lmbda, step: of a range, the λ and the quantisation
    step that this is about; weight: what the loss counts for among those of other λ.
    """

    loss: float
    bpp: float
    psnr: float
    ms_ssim: float | None
    images: int
    failed: int
    seconds: float
    reason: str = ""
    lmbda: float | None = None
    step: float = 1.0
    weight: float = 1.0


class Validator:
    """Codes the same few pictures each time.

    folder: of pictures to validate on, coded whole; None: pictures of the training data, of which the middle is taken.
    limits: what a picture may measure.
    Raises NoPicturesError.
    """

    def __init__(self, recipe: Recipe, data: Path, folder: Path | None, group: Processes, limits: Limits) -> None:
        self._recipe, self._group, self._limits = recipe, group, limits
        found = find_pictures(data if folder is None else folder)
        count = min(recipe.validation_images, len(found))
        chosen = [found[index * len(found) // count] for index in range(count)]
        self._own: Sequence[Path] = chosen[group.rank :: group.world]
        self._side = _TRAINING_SIDE if folder is None else 0
        self.count = count

    def run(self, trainee: Trainee) -> list[Validation]:
        """Validate the weights that are for use, at the recipe's λ or five of its range. Tables are computed anew."""
        rates = self._recipe.rates
        if rates is None:
            return [self._run(trainee, None)]
        return [self._run(trainee, lmbda) for lmbda in rates.ladder(RATES)]

    def _run(self, trainee: Trainee, lmbda: float | None) -> Validation:
        start = time.monotonic()
        model, average = trainee.model, trainee.average
        sums, reason = np.zeros(7), ""
        with average.in_place() if average else nullcontext():
            model.update(force=True)
            model.eval()
            try:
                for path in self._own:
                    try:
                        sums += self._one(trainee, path, lmbda)
                    except MlicError as error:
                        sums[6] += 1
                        reason = f"{path}: {error}"
            finally:
                model.train()
                # compiled from weights that are about to change
                model.refresh()
        loss, bpp, psnr, similarity, similar, coded, failed = self._group.summed(sums.tolist())
        images = max(coded, 1)
        rates = self._recipe.rates
        return Validation(
            lmbda=lmbda,
            step=1.0 if rates is None or lmbda is None else rates.step(lmbda),
            weight=1.0 if rates is None or lmbda is None else rates.weight(lmbda),
            loss=loss / images if coded and not failed else float("inf"),
            bpp=bpp / images,
            psnr=psnr / images,
            ms_ssim=similarity / similar if similar else None,
            images=int(coded),
            failed=int(failed),
            seconds=time.monotonic() - start,
            reason=reason,
        )

    def _one(self, trainee: Trainee, path: Path, lmbda: float | None) -> npt.NDArray[np.float64]:
        """Loss, bpp, PSNR, MS-SSIM or 0, whether it is defined, 1, 0."""
        picture = open_image(path, self._limits, reduce_depth=True).pixels
        pixels = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
        if self._side:
            top, left = (max(0, (size - self._side) // 2) for size in pixels.shape[:2])
            pixels = np.ascontiguousarray(pixels[top : top + self._side, left : left + self._side])
        if lmbda is None:
            lmbda = self._recipe.single_lambda
            data = encode(pixels, trainee.model, limits=self._limits)
            decoded = np.asarray(decode(data, trainee.model, limits=self._limits).convert("RGB"))
            bpp = bits_per_pixel(len(data), *pixels.shape[:2])
        else:
            decoded, bpp = self._estimated(trainee, pixels, lmbda)
        psnr, similarity = measure(pixels, decoded)
        if self._recipe.metric == "mse":
            distortion = float(np.square(pixels.astype(np.float64) - decoded).mean())
        else:
            # small pictures have no MS-SSIM; they count by their rate alone
            distortion = 0.0 if similarity is None else 1 - similarity
        loss = lmbda * distortion + bpp
        return np.array(
            [loss, bpp, min(psnr, 100.0), similarity or 0.0, similarity is not None, 1, 0], dtype=np.float64
        )

    @torch.no_grad()
    def _estimated(
        self, trainee: Trainee, pixels: npt.NDArray[np.uint8], lmbda: float
    ) -> tuple[npt.NDArray[np.uint8], float]:
        """The picture [H, W, 3] from symbols rounded at the λ's quantisation step, and its bits per pixel."""
        rates = self._recipe.rates
        assert rates is not None
        height, width = pixels.shape[:2]
        device = self._group.device
        x = to_tensor(open_image(pixels, self._limits)).to(device)
        step = torch.tensor([rates.step(lmbda)], device=device)
        out = trainee.model(pad_to_64(x, "fade").contiguous(memory_format=trainee.layout), step=step)
        bits = sum(-likelihoods.double().log2().sum() for likelihoods in out["likelihoods"].values())
        check_finite("bits", torch.as_tensor(bits))
        return to_pixels(crop(out["x_hat"], height, width)), float(bits) / (height * width)
