# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several tests share: golden data, and models filled with its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from golden_samples import GOLDEN, golden_weights


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


def build_model(config: Any, gains: str, salt: str = "") -> Any:
    """A model in evaluation mode, filled with the golden weights of these factors, tables computed."""
    from mlic_fast import MLICPlusPlus

    model = MLICPlusPlus(config)
    golden_weights.fill(model, json.loads((GOLDEN / f"{gains}.json").read_text()), salt)
    model.update(force=True)
    return model.eval()


@pytest.fixture(scope="session")
def small_models() -> dict[str, Any]:
    """Small models (N=64, M=96, 3 slices) of both variants, as the golden files were made with."""
    from mlic_fast import ModelConfig

    return {
        variant: build_model(ModelConfig(N=64, M=96, slice_num=3, variant=variant), gains)
        for variant, gains in (("new", "gains_small"), ("old", "gains_small_old"))
    }


@pytest.fixture(scope="session")
def small_model(small_models: dict[str, Any]) -> Any:
    return small_models["new"]


@pytest.fixture(scope="session")
def full_model() -> Any:
    """The full-size model with weights that give realistic latents and rates."""
    return build_model(None, "gains_full")


@pytest.fixture(scope="session")
def test_image() -> Callable[..., torch.Tensor]:
    """(height, width, seed, batch) → smooth random picture [batch, 3, height, width] in [0, 1]."""
    return golden_weights.test_image


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Name → arrays of one golden file."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return read


class GivenSymbols:
    """A way to code a pass that takes the symbols as given and remembers scales and indexes.

    So two implementations can be compared position by position: one flipped index does not
    change everything after it.
    """

    def __init__(self, model: Any, symbols: np.ndarray, batch: int) -> None:
        self.scales: list[torch.Tensor] = []
        self.indexes: list[torch.Tensor] = []
        self._gaussian = model.gaussian_conditional
        self._symbols = torch.from_numpy(symbols.astype(np.int32))
        self._batch = batch
        self._position = 0

    def begin(self, scales: torch.Tensor) -> None:
        self.scales.append(scales)
        self.indexes.append(self._gaussian.build_indexes(scales.float()))

    def finish(self, means: torch.Tensor) -> torch.Tensor:
        end = self._position + means.numel()
        symbols = self._symbols[self._position : end].view(means.shape).to(means.device)
        self._position = end
        return symbols + means


@torch.no_grad()
def run_given_symbols(model: Any, z_hat: torch.Tensor, symbols: np.ndarray) -> tuple[torch.Tensor, GivenSymbols]:
    """Walk over the slices with these decoded z and symbols; returns ŷ and what was seen on the way."""
    from mlic_fast.entropy.coders import code

    seen = GivenSymbols(model, symbols, z_hat.shape[0])
    y_hat = code(model.walk(z_hat), seen)
    assert seen._position == symbols.size
    return y_hat, seen


@pytest.fixture(scope="session")
def given_symbols() -> Callable[..., Any]:
    return run_given_symbols
