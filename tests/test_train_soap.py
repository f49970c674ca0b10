# SPDX-License-Identifier: Apache-2.0
"""SOAP for the convolutions: its steps are those of the paper's algorithm, computed anew in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from training_samples import SHORT, TINY, assert_same, contents, losses, one_thread, pictures

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.errors import RecipeError
from mlic_fast.train.loop import train
from mlic_fast.train.optimizers import MatrixOptimizer, make_optimizers, matrix_weights, soap
from mlic_fast.train.recipe import recipe_from

__all__ = ["one_thread"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

Matrix = npt.NDArray[np.float64]

BETA, EPSILON, REFRESH = 0.95, 1e-8, 10


class Reference:
    """Algorithm 3 of Vyas et al. 2024 (arXiv 2409.11321) for one matrix, with Adam's bias corrections.

    The first gradient only begins the statistics and the bases; after that, bases are refreshed after every tenth
    step by algorithm 4: one step of power iteration and QR, sorted by the eigenvalues that the old basis estimates.
    """

    def __init__(self, weight: Matrix, bases: tuple[bool, bool]) -> None:
        self.weight = weight.copy()
        self.mean, self.square = np.zeros_like(weight), np.zeros_like(weight)
        rows, columns = weight.shape
        self.statistics = [np.zeros((rows, rows)), np.zeros((columns, columns))]
        self.bases = [np.eye(rows), np.eye(columns)]
        self.with_basis = bases
        self.count = -1

    def step(self, gradient: Matrix, rate: float) -> None:
        self.count += 1
        if self.count:
            left, right = self.bases
            self.mean = BETA * self.mean + (1 - BETA) * gradient
            self.square = BETA * self.square + (1 - BETA) * (left.T @ gradient @ right) ** 2
            rotated = left.T @ self.mean @ right
            correction = np.sqrt(1 - BETA**self.count) / (1 - BETA**self.count)
            direction = left @ (rotated / (np.sqrt(self.square) + EPSILON)) @ right.T
            self.weight -= rate * correction * direction
        outer = gradient @ gradient.T, gradient.T @ gradient
        for side in range(2):
            self.statistics[side] = BETA * self.statistics[side] + (1 - BETA) * outer[side]
        for side in (0, 1):
            if not self.with_basis[side]:
                continue
            if self.count == 0:
                self.bases[side] = np.linalg.eigh(self.statistics[side])[1][:, ::-1]
            elif self.count % REFRESH == 0:
                product = self.statistics[side] @ self.bases[side]
                order = np.argsort(-(self.bases[side] * product).sum(0), kind="stable")
                self.square = self.square.take(order, side)
                self.bases[side] = np.linalg.qr(product[:, order])[0]


@pytest.mark.parametrize(
    ("shape", "bases"),
    [((18, 2, 3, 3), (True, True)), ((4, 80, 3, 3), (True, False))],
    ids=["both sides", "a side too long"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_steps_are_the_papers(shape: tuple[int, ...], bases: tuple[bool, bool], layout: torch.memory_format) -> None:
    pytest.importorskip("pytorch_optimizer")
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random, dtype=torch.float64)
    weight = nn.Parameter(start.clone(memory_format=layout))
    optimizer = MatrixOptimizer([weight], 1e-2, soap)
    last = layout == torch.channels_last

    def matrix(value: torch.Tensor) -> Matrix:
        found: Matrix = (value.permute(0, 2, 3, 1) if last else value).reshape(len(value), -1).numpy()
        return found

    reference = Reference(matrix(start), bases)
    # square where both sides have bases, and of distinct eigenvalues: so the bases are certain
    stretch = torch.linspace(0.5, 3, shape[1] * 9, dtype=torch.float64).reshape(shape[1:])
    for step in range(26):
        gradient = torch.randn(shape, generator=random, dtype=torch.float64) * stretch
        weight.grad = gradient
        rate = 1e-2 / (1 + step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        reference.step(matrix(gradient), rate)
        np.testing.assert_allclose(matrix(weight.detach()), reference.weight, rtol=1e-4, atol=1e-6)
    assert not np.allclose(reference.weight, matrix(start), atol=1e-2)


def test_it_takes_the_convolutions_of_the_transforms() -> None:
    pytest.importorskip("pytorch_optimizer")
    model = MLICPlusPlus(ModelConfig(**TINY))
    optimizers = make_optimizers(model, recipe_from({"optimizer": "soap"}))
    assert optimizers["matrix_optimizer"].param_groups[0]["params"] == matrix_weights(model)
    trained = [parameter for one in optimizers.values() for group in one.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.parameters()}
    assert len(trained) == len(list(model.parameters()))


def test_learns_and_goes_on_exactly(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    data = pictures(tmp_path / "data", count=2, side=192)
    settings = SHORT | {"optimizer": "soap", "lr": 3e-3, "lambda": 0.01, "validation_images": 0, "log_steps": 1}
    train(data, tmp_path / "whole", settings | {"steps": 14}, device="cpu")
    found = losses(tmp_path / "whole")
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])
    train(data, tmp_path / "parts", settings | {"steps": 12}, device="cpu")
    train(data, tmp_path / "parts", {"steps": 14}, device="cpu", resume=True)
    assert losses(tmp_path / "parts") == found
    whole, parts = (contents(tmp_path / run) for run in ("whole", "parts"))
    assert_same(parts["state_dict"], whole["state_dict"])
    assert_same(parts["matrix_optimizer"]["state"], whole["matrix_optimizer"]["state"])


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(RecipeError, match=r"pip install 'mlic-fast\[soap\]'"):
        make_optimizers(MLICPlusPlus(ModelConfig(**TINY)), recipe_from({"optimizer": "soap"}))
