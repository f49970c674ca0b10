# SPDX-License-Identifier: Apache-2.0
"""The optimisers: of the model, of the quantiles of the entropy bottleneck; the moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from mlic_fast.compute.private_torch import copy_each_, lerp_each_
from mlic_fast.errors import RecipeError
from mlic_fast.train.recipe import Recipe

# Name in checkpoints of the optimiser that trains the quantiles alone, at a learning rate of its own.
AUXILIARY = "aux_optimizer"


def parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the model, and those that the auxiliary loss trains."""
    main = [parameter for name, parameter in model.named_parameters() if not name.endswith(".quantiles")]
    auxiliary = [parameter for name, parameter in model.named_parameters() if name.endswith(".quantiles")]
    return main, auxiliary


def make_optimizers(model: nn.Module, recipe: Recipe) -> dict[str, Optimizer]:
    """The optimisers by the names that they have in checkpoints.

    "optimizer": Adam for the model; "aux_optimizer": Adam for the quantiles; with `optimizer="muon"` or "soap" also
    "matrix_optimizer", which takes `matrix_weights` from the first.
    Raises RecipeError if PyTorch has no Muon, or pytorch_optimizer with SOAP is missing.
    """
    main, auxiliary = parameters(model)
    found: dict[str, Optimizer] = {}
    if recipe.optimizer != "adam":
        matrices = matrix_weights(model)
        found["matrix_optimizer"] = MatrixOptimizer(matrices, recipe.lr, muon if recipe.optimizer == "muon" else soap)
        taken = {id(weight) for weight in matrices}
        main = [parameter for parameter in main if id(parameter) not in taken]
    # fused: the same formula in one pass over memory
    return {"optimizer": Adam(main, lr=recipe.lr, fused=True), AUXILIARY: Adam(auxiliary, lr=recipe.aux_lr)} | found


def matrix_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the convolutions of g_a, g_s and h_a.

    Not those of h_s and the entropy model: they learn fast enough with Adam, and making their wide matrices
    orthogonal would cost up to half of a small model's step.
    """
    transforms = (model.get_submodule(name) for name in ("g_a", "g_s", "h_a"))
    return [
        module.get_parameter("weight")
        for transform in transforms
        for module in transform.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1  # a depth-wise one's weight is no matrix
    ]


def muon(matrices: list[nn.Parameter], lr: float) -> Optimizer:
    """PyTorch's Muon (Jordan et al. 2024): along the momentum with all singular values made about equal.

    Steps are scaled to the size of Adam's, so that both take one learning rate. No weight decay.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(f"PyTorch {torch.__version__} has no Muon: take PyTorch 2.9 or newer, or the optimizer adam")
    return torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


def soap(matrices: list[nn.Parameter], lr: float) -> Optimizer:
    """SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.

    The bases are refreshed every 10 steps by a step of power iteration and QR. Sides longer than 640 have no basis.
    The first step only begins the statistics. No weight decay.
    """
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        raise RecipeError(
            "the optimizer soap needs pytorch_optimizer: pip install 'mlic-fast[soap]', or take the optimizer adam"
        ) from None
    found: Optimizer = SOAP(
        matrices, lr=lr, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10, max_precondition_dim=640
    )
    return found


class MatrixOptimizer(Optimizer):
    """An optimiser of matrices for convolutions: each weight is taken as a matrix [outputs, inputs · kernel].

    make: makes the optimiser, of the matrices and a learning rate: `muon` or `soap`.
    """

    def __init__(
        self, weights: list[nn.Parameter], lr: float, make: Callable[[list[nn.Parameter], float], Optimizer]
    ) -> None:
        super().__init__(weights, {"lr": lr})
        self._weights = [(weight, not weight.is_contiguous()) for weight in weights]
        # share their memory with the weights
        self._matrices = [nn.Parameter(_matrix(weight.detach(), last)) for weight, last in self._weights]
        self._inner = make(self._matrices, lr)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights that have gradients."""
        for (weight, last), matrix in zip(self._weights, self._matrices, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, last)
        for group in self._inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimiser of matrices."""
        return dict(self._inner.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a state that `state_dict` returned."""
        self._inner.load_state_dict(state_dict)


def _matrix(weight: Tensor, last: bool) -> Tensor:
    """A weight [out, in, height, width] as [out, rest], in the order of channels-last memory if `last`."""
    rows = weight.permute(0, 2, 3, 1) if last else weight
    # of a weight a view, since it lies in memory like that; a gradient may lie in another order
    return rows.reshape(len(rows), -1)


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
        lerp_each_(self.values, [parameter.detach() for parameter in self._parameters], 1 - decay)

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
        copy_each_([parameter.detach() for parameter in self._parameters], values)
