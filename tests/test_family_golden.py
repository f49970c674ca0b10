# SPDX-License-Identifier: Apache-2.0
"""MLIC and MLIC+ compute what CompressAI's implementation of them computes.

The arrays were made by running its pull request 357 (merged 2026-06-23) with seeded weights in float32 on a CPU. They
prove equality with that implementation, which follows the papers, and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from family_samples import golden_model, peer_name

from mlic_fast.compute.backend import use_backend
from mlic_fast.contexts import Architecture
from mlic_fast.engine import Options, engine_for
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.factorized import decode_hyper_latent

Golden = Callable[[str], dict[str, np.ndarray]]

# file, architecture, picture: height, width, seed, batch
ROWS = [
    pytest.param("family_mlic_64x128_b1", "mlic", (64, 128, 10, 1), id="MLIC"),
    pytest.param("family_mlicplus_64x128_b1", "mlic+", (64, 128, 11, 1), id="MLIC+"),
    # 4 × 4 positions: some queries have all keys within the exclusion radius
    pytest.param("family_mlicplus_64x64_b2", "mlic+", (64, 64, 12, 2), id="MLIC+, batch 2"),
]

# Of a tensor's largest value. Two right float32 implementations differ by some 1e-6.
TOLERANCE = 1e-5


def assert_close(actual: torch.Tensor, expected: np.ndarray, name: str) -> None:
    assert actual.shape == expected.shape, name
    error = np.abs(actual.detach().numpy() - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{name}: {error:.2e}"


@pytest.mark.parametrize(("name", "architecture", "picture"), ROWS)
def test_every_intermediate(
    name: str, architecture: Architecture, picture: tuple[int, ...], golden: Golden, test_image: Any
) -> None:
    model, data = golden_model(architecture), golden(name)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: seen.__setitem__(peer_name(path), output))
        for path, module in model.named_modules()
        if peer_name(path) in data
    ]
    hooks.append(model.g_s.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("y_hat", inputs[0])))
    try:
        with use_backend("torch"), torch.no_grad():
            result = model(test_image(*picture))
    finally:
        for hook in hooks:
            hook.remove()
    seen |= {"x_hat": result["x_hat"], **result["likelihoods"]}
    coded = {"symbols", "indexes", "y_string", "shape"}
    assert set(seen) == {key for key in data if key not in coded and not key.startswith("z_string")}
    assert len(seen) >= 28 - 2 * (architecture == "mlic")
    for path, tensor in seen.items():
        assert_close(tensor, data[path], path)


@torch.no_grad()
@pytest.mark.parametrize("way", ["plain", "kernels", "engine"])
@pytest.mark.parametrize(("name", "architecture", "picture"), ROWS)
def test_indexes_while_decoding_golden_symbols(
    name: str, architecture: Architecture, picture: tuple[int, ...], way: str, golden: Golden, given_symbols: Any
) -> None:
    model, data = golden_model(architecture), golden(name)
    strings = [data[f"z_string.{item}"].tobytes() for item in range(picture[3])]
    z_hat = decode_hyper_latent(model.entropy, strings, tuple(data["shape"]))
    with use_backend("torch" if way == "plain" else "auto"):
        y_hat, seen = given_symbols(model, z_hat, data["symbols"])
        if way == "engine":
            engine = engine_for(model, Options("float32"))
            assert engine is not None
            seen = type(seen)(model, data["symbols"], picture[3])
            y_hat = code(engine.walk(z_hat), seen)
    indexes = torch.cat([index.flatten() for index in seen.indexes]).numpy()
    assert (indexes != data["indexes"]).sum() <= 1
    assert_close(y_hat, data["y_hat"], "y_hat")


@pytest.mark.parametrize(("name", "architecture", "picture"), ROWS)
def test_golden_streams_decode_to_the_golden_picture(
    name: str, architecture: Architecture, picture: tuple[int, ...], golden: Golden
) -> None:
    model, data = golden_model(architecture), golden(name)
    strings = [data[f"z_string.{item}"].tobytes() for item in range(picture[3])]
    result = model.decompress([[data["y_string"].tobytes()], strings], data["shape"])
    assert_close(result["x_hat"], data["x_hat"], "decoded")


@pytest.mark.parametrize("exact", [True, False], ids=["plain", "engine"])
@pytest.mark.parametrize(("name", "architecture", "picture"), ROWS)
def test_free_running_encode(
    name: str, architecture: Architecture, picture: tuple[int, ...], exact: bool, golden: Golden, test_image: Any
) -> None:
    model, data = golden_model(architecture), golden(name)
    result = model.compress(test_image(*picture), exact=exact)
    assert tuple(result["shape"]) == tuple(data["shape"])
    assert result["strings"][1] == [data[f"z_string.{item}"].tobytes() for item in range(picture[3])]
    assert abs(len(result["strings"][0][0]) - data["y_string"].size) <= 0.001 * data["y_string"].size + 4
