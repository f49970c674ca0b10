# SPDX-License-Identifier: Apache-2.0
"""One model for all rates: the λ and the quantisation step that each sample of a batch is trained with.

A model trained with one λ serves others if y is quantised with another step Δ: at high resolution the squared
error is Δ²/12, so that λ·MSE + bpp has its minimum at a Δ in proportion to λ^(-1/2). λ₀, where Δ is 1, is the
geometric middle of the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Tells these draws from others of the same seed.
_PURPOSE = 0x72617465


@dataclass(frozen=True)
class RateRange:
    """A range of λ, in which samples are trained. low < high."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """λ₀, whose quantisation step is 1."""
        return math.sqrt(self.low * self.high)

    def step(self, lmbda: float) -> float:
        """Quantisation step Δ of y for a λ."""
        return math.sqrt(self.middle / lmbda)

    def weight(self, lmbda: float) -> float:
        """Factor of a sample's loss, so that both ends of the range have about the same say: see docs/training.md."""
        return math.sqrt(self.middle / lmbda)

    def ladder(self, count: int) -> list[float]:
        """`count` λ (at least 2) from low to high, evenly spaced in their logarithm."""
        return [self.low * (self.high / self.low) ** (index / (count - 1)) for index in range(count)]

    def draw(self, seed: int, step: int, samples: Sequence[int], batch: int) -> list[float]:
        """λ of each of `samples`, numbers in the whole batch of a training step, uniform in its logarithm.

        Of a batch, one λ falls into each of `batch` equal parts of the range, which takes noise from the gradient.
        They depend on the arguments only, as the noise does.
        """
        source = np.random.Philox(np.random.SeedSequence((_PURPOSE, seed, step)))
        shift = float(np.random.Generator(source).random())
        places = [(shift + sample / batch) % 1.0 for sample in samples]
        return [self.low * (self.high / self.low) ** place for place in places]


@dataclass(frozen=True)
class SampleRates:
    """What a batch's samples are trained with: λ, quantisation steps and factors of the losses, float32 [B] each."""

    lambdas: Tensor
    steps: Tensor
    weights: Tensor


def sample_rates(rates: RateRange, lambdas: Sequence[float], device: torch.device) -> SampleRates:
    """Steps and factors for these λ."""
    columns = lambdas, [rates.step(value) for value in lambdas], [rates.weight(value) for value in lambdas]
    return SampleRates(*(torch.tensor(column, dtype=torch.float32, device=device) for column in columns))
