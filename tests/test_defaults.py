# SPDX-License-Identifier: Apache-2.0
"""Loading, building and coding do not depend on torch.set_default_dtype and torch.set_default_device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlic_fast
from mlic_fast import MLICPlusPlus, ModelConfig, codec
from mlic_fast.checkpoint import read_checkpoint
from mlic_fast.compute.defaults import float32_on_cpu
from mlic_fast.registry import resolve

PICTURE = np.random.default_rng(4).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


# "meta" stands for a device that the CPU's tensors do not go together with
CASES = {
    "float64": (torch.float64, "cpu"),
    "float16": (torch.float16, "cpu"),
    "bfloat16": (torch.bfloat16, "cpu"),
    "another device": (torch.float32, "meta"),
    "both": (torch.float64, "meta"),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def unusual(request: pytest.FixtureRequest) -> Any:
    return request.param


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_building(unusual: Any) -> None:
    config = ModelConfig(N=16, M=64, slice_num=2)

    def build() -> Any:
        torch.manual_seed(1)
        model = MLICPlusPlus(config)
        model.update()
        return model

    expected = _tensors(build())
    with defaults(*unusual):
        found = _tensors(build())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("engine", ["on", "off"])
def test_loading_and_coding(unusual: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_FAST_ENGINE", engine)
    usual = mlic_fast.load("mlicpp-s-0.0067")
    expected = [mlic_fast.encode(PICTURE, usual, format=layout) for layout in ("mlic", "official")]
    pixels = [np.asarray(mlic_fast.decode(data, usual)) for data in expected]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        forward = usual(x)
    with defaults(*unusual):
        model = mlic_fast.load("mlicpp-s-0.0067")
        assert codec.model_fingerprint(model) == codec.model_fingerprint(usual)
        for data, image in zip(expected, pixels, strict=True):
            layout: Any = "official" if data is expected[1] else "mlic"
            assert mlic_fast.encode(PICTURE, model, format=layout) == data
            assert np.array_equal(mlic_fast.decode(data, model), image)
        assert list(mlic_fast.encode_many([PICTURE], model)) == expected[:1]
        with torch.no_grad():
            again = model(x)
    assert torch.equal(again["x_hat"], forward["x_hat"])
    for name, likelihoods in forward["likelihoods"].items():
        assert torch.equal(again["likelihoods"][name], likelihoods)


def test_tables_are_computed_the_same(unusual: Any, tmp_path: Path) -> None:
    state = read_checkpoint(resolve("mlicpp-s-0.0067")).state_dict
    without = {name: tensor for name, tensor in state.items() if not name.endswith(("_cdf", "_offset", "_cdf_length"))}
    path = tmp_path / "weights.pth"
    torch.save(without, path)
    expected = read_checkpoint(path)
    with defaults(*unusual):
        found = read_checkpoint(path)
        assert codec.model_fingerprint(MLICPlusPlus.from_state_dict(without)) == expected.fingerprint
    assert found.fingerprint == expected.fingerprint


def test_defaults_are_the_callers_again() -> None:
    with defaults(torch.float64, "cpu"):
        with float32_on_cpu():
            assert torch.get_default_dtype() == torch.float32
        threads = [threading.Thread(target=MLICPlusPlus, args=(ModelConfig(N=16, M=64, slice_num=2),)) for _ in "1234"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
