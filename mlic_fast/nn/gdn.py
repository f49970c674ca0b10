# SPDX-License-Identifier: Apache-2.0
"""Parameters of generalised divisive normalisation (GDN), under the names that CompressAI's layer gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlic_fast.ops.gdn import gdn

# What beta is kept above, and the offset that keeps gradients alive near zero: CompressAI's.
_BETA_MIN, _OFFSET, _GAMMA = 1e-6, 2**-18, 0.1


class _LowerBoundFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.max(x, bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, bound = ctx.saved_tensors
        return ((x >= bound) | (grad < 0)) * grad, None


class _LowerBound(nn.Module):
    """max(x, bound), whose gradient also lets pass what moves x up to the bound."""

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _LowerBoundFunction.apply(x, self.bound)  # type: ignore[no-untyped-call]
        return out


class _Positive(nn.Module):
    """Parameters that are trained as the square root of what they stand for: max(x, bound)² − pedestal."""

    pedestal: Tensor

    def __init__(self, minimum: float) -> None:
        super().__init__()
        self.register_buffer("pedestal", torch.tensor([_OFFSET**2], dtype=torch.float32))
        self.lower_bound = _LowerBound((minimum + _OFFSET**2) ** 0.5)

    def initial(self, x: Tensor) -> Tensor:
        """What is trained, for parameters that are to begin as x."""
        return torch.sqrt(torch.max(x + self.pedestal, self.pedestal))

    def forward(self, x: Tensor) -> Tensor:
        bounded: Tensor = self.lower_bound(x)
        return bounded**2 - self.pedestal


class GDN(nn.Module):
    """x [B, C, H, W] → x / sqrt(beta + gamma·x²), or x · sqrt(…) if `inverse` (Ballé et al., arXiv 1511.06281)."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_reparam, self.gamma_reparam = _Positive(_BETA_MIN), _Positive(0.0)
        self.beta = nn.Parameter(self.beta_reparam.initial(torch.ones(channels, dtype=torch.float32)))
        self.gamma = nn.Parameter(self.gamma_reparam.initial(_GAMMA * torch.eye(channels, dtype=torch.float32)))

    def weights(self) -> tuple[Tensor, Tensor]:
        """beta [C] and gamma [C, C], positive."""
        return self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """With a residual [B, C, H, W] that is added, in one operation."""
        return gdn(x, *self.weights(), residual, inverse=self.inverse)
