# SPDX-License-Identifier: Apache-2.0
"""What training minimises: rate and distortion, in float32 whatever the model computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute.precision import no_autocast
from mlic_fast.config import LossMetric
from mlic_fast.train.rates import SampleRates

# Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment".
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2

# A scale's similarity may be negative at the beginning, where its power has no derivative.
_LEAST_SIMILARITY = 1e-4


@dataclass(frozen=True)
class Losses:
    """Scalars, float32, of one batch. distortion: MSE of values in [0, 1], or 1 − MS-SSIM; rates in bits per pixel."""

    total: Tensor
    distortion: Tensor
    y_bpp: Tensor
    z_bpp: Tensor


def rate_distortion(out: Mapping[str, Any], x: Tensor, lmbda: float, metric: LossMetric) -> Losses:
    """Losses of what the model's forward returned for x, float32 [B, 3, H, W] in [0, 1]."""
    with no_autocast(x.device):
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        rates = {name: -likelihoods.float().log2().sum() / pixels for name, likelihoods in out["likelihoods"].items()}
        x_hat = out["x_hat"].float()
        if metric == "mse":
            distortion = F.mse_loss(x_hat, x)
            weighted = lmbda * 255**2 * distortion
        else:
            distortion = 1 - ms_ssim(x_hat, x).mean()
            weighted = lmbda * distortion
        y_bpp, z_bpp = rates["y_likelihoods"], rates["z_likelihoods"]
        return Losses(weighted + y_bpp + z_bpp, distortion, y_bpp, z_bpp)


def ranged_rate_distortion(out: Mapping[str, Any], x: Tensor, rates: SampleRates, metric: LossMetric) -> Losses:
    """Losses where each sample has a λ of its own.

    total: mean over the samples of their weight · (λ · distortion + rate); distortion and rates: means without weights.
    """
    with no_autocast(x.device):
        pixels = x.shape[2] * x.shape[3]
        bits = {name: -likelihoods.float().log2().flatten(1).sum(1) for name, likelihoods in out["likelihoods"].items()}
        y_bpp, z_bpp = bits["y_likelihoods"] / pixels, bits["z_likelihoods"] / pixels
        x_hat = out["x_hat"].float()
        if metric == "mse":
            distortion = (x_hat - x).square().flatten(1).mean(1)
            weighted = rates.lambdas * 255**2 * distortion
        else:
            distortion = 1 - ms_ssim(x_hat, x)
            weighted = rates.lambdas * distortion
        total = (rates.weights * (weighted + y_bpp + z_bpp)).mean()
        return Losses(total, distortion.mean(), y_bpp.mean(), z_bpp.mean())


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity [B] of pictures [B, C, H, W] in [0, 1], sides of at least 161.

    Equal to pytorch_msssim's where all scales are similar at all; where one is not, values and gradients stay finite.
    """
    channels = a.shape[1]
    offsets = torch.arange(_WINDOW, dtype=a.dtype, device=a.device) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(channels, 1, _WINDOW)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window[..., None], groups=channels), window[..., None, :], groups=channels)

    result = torch.ones(a.shape[:2], dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            padding = [side % 2 for side in a.shape[2:]]
            a, b = F.avg_pool2d(a, 2, padding=padding), F.avg_pool2d(b, 2, padding=padding)
        mean_a, mean_b = blur(a), blur(b)
        products = mean_a * mean_b
        squares = mean_a**2 + mean_b**2
        variances = blur(a * a) + blur(b * b) - squares
        similarity = (2 * (blur(a * b) - products) + _C2) / (variances + _C2)
        if scale == len(_SCALE_WEIGHTS) - 1:
            similarity = similarity * (2 * products + _C1) / (squares + _C1)
        result = result * similarity.mean((2, 3)).clamp(min=_LEAST_SIMILARITY) ** weight
    return result.mean(1)
