# SPDX-License-Identifier: Apache-2.0
"""The two optimisers, one for the model and one for the quantiles of the entropy bottleneck; the moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer


def parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the model, and those that the auxiliary loss trains."""
    main = [parameter for name, parameter in model.named_parameters() if not name.endswith(".quantiles")]
    auxiliary = [parameter for name, parameter in model.named_parameters() if name.endswith(".quantiles")]
    return main, auxiliary


def make_optimizers(model: nn.Module, lr: float, aux_lr: float) -> tuple[Optimizer, Optimizer]:
    """Adam for each group of parameters."""
    main, auxiliary = parameters(model)
    # fused: the same formula in one pass over memory
    return Adam(main, lr=lr, fused=True), Adam(auxiliary, lr=aux_lr)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """The rate of all of the optimiser's parameters from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MovingAverage:
    """Exponential moving average of a model's parameters.

    Over the first steps the decay is smaller, (1 + n) / (10 + n) after n steps, so that initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = list(model.parameters())
        self._decay = decay
        self.steps = 0
        self.values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are into the average."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the model has the averaged parameters."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._write(self.values)
        try:
            yield
        finally:
            self._write(trained)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([parameter.detach() for parameter in self._parameters], values)
