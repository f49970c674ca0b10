# SPDX-License-Identifier: Apache-2.0
"""One step of training: forward, losses, backward, clipping, and both optimisers, unless something is not finite."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mlic_fast.errors import RecipeError
from mlic_fast.model import CodecModel
from mlic_fast.train.distributed import Processes
from mlic_fast.train.layers import install
from mlic_fast.train.losses import ranged_rate_distortion, rate_distortion
from mlic_fast.train.noise import uniform_noise
from mlic_fast.train.optimizers import AUXILIARY, MovingAverage, make_optimizers, parameters, set_learning_rate
from mlic_fast.train.rates import sample_rates
from mlic_fast.train.recipe import Recipe


@dataclass(frozen=True)
class StepResult:
    """What a step found, over the batch of all processes; distortion and rates as in `losses.Losses`.

    norm: of the gradient, before clipping. taken: False where it was skipped, since loss or gradient were not finite.
    """

    loss: float
    distortion: float
    y_bpp: float
    z_bpp: float
    aux_loss: float
    norm: float
    taken: bool


class Trainee:
    """A model in training: on its device and in its layout, with its optimisers."""

    def __init__(self, model: CodecModel, recipe: Recipe, group: Processes) -> None:
        self.recipe, self.group = recipe, group
        on_cuda = group.device.type == "cuda"
        if recipe.channels_last == "yes" and recipe.precision == "bf16" and not on_cuda:
            raise RecipeError(
                "channels-last with bf16 on the CPU is not supported, since PyTorch has crashed at it: leave one out"
            )
        if recipe.batch // group.world % (recipe.micro_batch or 1):
            raise RecipeError(
                f"micro_batch={recipe.micro_batch} does not divide a process's {recipe.batch // group.world} patches"
            )
        channels_last = recipe.channels_last == "yes" or (recipe.channels_last == "auto" and on_cuda)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(group.device).train()
        install(self.model)
        if channels_last:
            for transform in self._transforms():
                transform.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.main, self.auxiliary = parameters(self.model)
        # by the names that they have in checkpoints
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = MovingAverage(self.model, recipe.ema) if recipe.ema else None
        if recipe.compile:
            for transform in self._transforms():
                transform.compile()
        self._forward: Any = self.model
        if group.world > 1:
            self._forward = DistributedDataParallel(
                self.model,
                device_ids=[group.device] if on_cuda else None,
                # tables, which training does not touch
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def _transforms(self) -> list[torch.nn.Module]:
        return [self.model.g_a, self.model.h_a, self.model.g_s]

    def step(self, number: int, patches: Tensor, learning_rate: float) -> StepResult:
        """Train on this process's part of the batch of step `number`: uint8 [b, 3, side, side] on the CPU."""
        self.model.train()
        for name, optimizer in self.optimizers.items():
            if name != AUXILIARY:
                set_learning_rate(optimizer, learning_rate)
        self._clear()
        samples = self.group.part(self.recipe.batch)
        size = self.recipe.micro_batch or len(samples)
        parts = [slice(first, first + size) for first in range(0, len(samples), size)]
        sums = torch.zeros(4, device=self.group.device)
        for part in parts:
            # gradients are exchanged once, with the last part
            with self._forward.no_sync() if self.group.world > 1 and part is not parts[-1] else nullcontext():
                sums += self._backward(number, patches[part], samples[part]) / len(parts)
        aux_loss = self._train_quantiles()
        # Of the exchanged gradients, so that all processes agree on it.
        norm = float(torch.nn.utils.clip_grad_norm_(self.main, self.recipe.clip or math.inf))
        means = [value / self.group.world for value in self.group.summed(sums.tolist())]
        loss, distortion, y_bpp, z_bpp = means
        taken = all(map(math.isfinite, (*means, norm, aux_loss)))
        if taken:
            for optimizer in self.optimizers.values():
                optimizer.step()
            if self.average is not None:
                self.average.update()
        self._clear()
        return StepResult(loss, distortion, y_bpp, z_bpp, aux_loss, norm, taken)

    def _backward(self, number: int, patches: Tensor, samples: range) -> Tensor:
        """Add a part's gradients to the parameters'; returns its loss, distortion and rates [4]."""
        recipe, device = self.recipe, self.group.device
        height, width = patches.shape[2:]
        noise = uniform_noise(self.model.config, recipe.seed, number, samples, height, width)
        x = (patches.to(device, non_blocking=True).float() / 255).contiguous(memory_format=self.layout)
        y_noise, z_noise = (values.to(device, non_blocking=True) for values in noise)
        if recipe.rates is None:
            with self._autocast():
                out = self._forward(x, (y_noise, z_noise))
            losses = rate_distortion(out, x, recipe.single_lambda, recipe.metric)
        else:
            lambdas = recipe.rates.draw(recipe.seed, number, samples, recipe.batch)
            own = sample_rates(recipe.rates, lambdas, device)
            with self._autocast():
                out = self._forward(x, (y_noise, z_noise), own.steps)
            losses = ranged_rate_distortion(out, x, own, recipe.metric)
        share = len(samples) * self.group.world / recipe.batch
        (losses.total * share).backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.total, losses.distortion, losses.y_bpp, losses.z_bpp]).detach()

    def _train_quantiles(self) -> float:
        """Put the auxiliary loss's gradients in the place of what the main loss left in the quantiles; the loss."""
        with torch.enable_grad():
            loss = self.model.aux_loss()
        # not backward(): DistributedDataParallel would take it for a second pass
        gradients = torch.autograd.grad(loss, self.auxiliary)
        for parameter, gradient in zip(self.auxiliary, gradients, strict=True):
            parameter.grad = gradient
        return float(loss.detach())

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.group.device.type, torch.bfloat16)

    def _clear(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
