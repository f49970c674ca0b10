# SPDX-License-Identifier: Apache-2.0
"""The noise of training, drawn for each sample on its own.

Sample i of a step gets the same noise whichever process computes it, and in whatever company: it
depends on the seed, the step and i only. So one process or many, whole batches or parts, and a
training that was interrupted all have the same losses, and no generator's state is to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlic_fast.config import ModelConfig

# Tells these draws from others of the same seed.
_PURPOSE = 0x6E6F697365


def uniform_noise(
    config: ModelConfig, seed: int, step: int, samples: Sequence[int], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Noise for y [B, M, H/16, W/16] and z [B, N, H/64, W/64], float32 from -1/2 to 1/2, on the CPU.

    samples: B numbers of samples in the whole batch of the step; height, width: of the patches, multiples of 64.
    """
    y_shape = config.M, height // 16, width // 16
    z_shape = config.N, height // 64, width // 64
    y_noise, z_noise = torch.empty(len(samples), *y_shape), torch.empty(len(samples), *z_shape)
    for y, z, sample in zip(y_noise.numpy(), z_noise.numpy(), samples, strict=True):
        source = np.random.Philox(np.random.SeedSequence((_PURPOSE, seed, step, sample)))
        generator = np.random.Generator(source)
        for values in (y, z):
            generator.random(out=values, dtype=np.float32)
            values -= 0.5
    return y_noise, z_noise
