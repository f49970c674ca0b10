# SPDX-License-Identifier: Apache-2.0
"""What makes training faster does not change it: loss and gradients are the plain model's, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.config import ModelConfig, Variant
from mlic_fast.model import MLICPlusPlus
from mlic_fast.ops import winograd
from mlic_fast.train.layers import install
from mlic_fast.train.losses import rate_distortion

pytestmark = pytest.mark.skipif(backend.report()["cpu"] is not None, reason="the C++ kernels are not built")


def smooth(batch: int, side: int) -> Tensor:
    coarse = torch.rand(batch, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)


def gradients(model: MLICPlusPlus, x: Tensor, noise: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The loss, ŷ's picture, and what backward() leaves in the parameters."""
    model.zero_grad()
    out = model(x, noise)
    loss = rate_distortion(out, x, 0.013, "mse").total
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, "loss": loss.detach(), "x_hat": out["x_hat"].detach()}


@pytest.mark.parametrize("variant", ["new", "old"])
def test_loss_and_all_gradients_are_the_plain_models(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_POSITIONS", 1)
    taken = _count_calls(monkeypatch)
    torch.manual_seed(0)
    config = ModelConfig(N=32, M=64, slice_num=2, variant=variant)
    model = MLICPlusPlus(config).train()
    install(model)
    x = smooth(2, 64)
    random = torch.Generator().manual_seed(4)
    noise = torch.rand(2, 64, 4, 4, generator=random) - 0.5, torch.rand(2, 32, 1, 1, generator=random) - 0.5

    with use_backend("torch"):
        plain = gradients(model, x, noise)
        assert not taken
        exact = gradients(model.double(), x.double(), (noise[0].double(), noise[1].double()))
    model.float()
    with use_backend("cpu"):
        ours = gradients(model, x, noise)
    assert len(taken) >= 18  # convolutions of the transforms, by Winograd's method
    assert ours.keys() == plain.keys() == exact.keys()
    for name, wanted in exact.items():
        norm = float(wanted.norm())
        error = float((ours[name] - wanted).norm())
        error_of_plain = float((plain[name] - wanted).norm())
        assert error <= 3 * error_of_plain + 1e-5 * norm + 1e-12, name


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    before = winograd.convolve

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return before(*arguments)

    monkeypatch.setattr(winograd, "convolve", counted)
    return calls


def test_evaluation_keeps_pytorchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_POSITIONS", 1)
    taken = _count_calls(monkeypatch)
    model = MLICPlusPlus(ModelConfig(N=32, M=64, slice_num=2)).eval()
    install(model)
    with torch.no_grad(), use_backend("cpu"):
        model(smooth(1, 64))
    assert not taken
