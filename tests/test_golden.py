# SPDX-License-Identifier: Apache-2.0
"""The model computes what the official code computed for the golden files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mlic_fast.compute.backend import use_backend

Golden = Callable[[str], dict[str, np.ndarray]]

# name, variant
ROWS = [
    pytest.param("small_128x192_b1", "new", id="128x192"),
    pytest.param("small_64x128_b2", "new", id="64x128-batch-2"),
    pytest.param("small_old_64x128_b1", "old", id="64x128-old"),
]

# Of a tensor's largest value. Two right float32 implementations differ by some 1e-6.
TOLERANCE = 1e-5


def assert_close(actual: torch.Tensor, expected: np.ndarray, name: str, tolerance: float = TOLERANCE) -> None:
    error = np.abs(actual.detach().numpy() - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_every_intermediate(name: str, variant: str, golden: Golden, small_models: dict[str, Any]) -> None:
    model, data = small_models[variant], golden(name)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: seen.__setitem__(path, output))
        for path, module in model.named_modules()
        if path in data
    ]
    try:
        # the plain path computes whole maps, as the official code does; tests/test_backends.py has the others
        with use_backend("torch"), torch.no_grad():
            result = model(torch.from_numpy(data["x"]))
    finally:
        for hook in hooks:
            hook.remove()
    seen |= {"x_hat": result["x_hat"], **result["likelihoods"]}
    coded = {"x", "decoded", "symbols", "indexes", "y_string", "shape"}
    assert set(seen) == {key for key in data if key not in coded and not key.startswith("z_string")}
    assert len(seen) >= 25
    for path, tensor in seen.items():
        assert tensor.shape == data[path].shape, path
        assert_close(tensor, data[path], path)


def _decoded_z(model: Any, data: dict[str, np.ndarray]) -> torch.Tensor:
    from mlic_fast.entropy.factorized import decode_hyper_latent

    strings = [data[f"z_string.{item}"].tobytes() for item in range(data["x"].shape[0])]
    with torch.no_grad():
        return decode_hyper_latent(model.entropy, strings, tuple(data["shape"]))


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_indexes_while_decoding_golden_symbols(
    name: str, variant: str, golden: Golden, small_models: dict[str, Any], given_symbols: Callable[..., Any]
) -> None:
    model, data = small_models[variant], golden(name)
    _, seen = given_symbols(model, _decoded_z(model, data), data["symbols"])
    indexes = torch.cat([index.flatten() for index in seen.indexes]).numpy()
    assert (indexes != data["indexes"]).sum() <= 1


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_golden_streams_decode_to_the_golden_picture(
    name: str, variant: str, golden: Golden, small_models: dict[str, Any]
) -> None:
    model, data = small_models[variant], golden(name)
    z_strings = [data[f"z_string.{item}"].tobytes() for item in range(data["x"].shape[0])]
    result = model.decompress([[data["y_string"].tobytes()], z_strings], data["shape"])
    assert_close(result["x_hat"], data["decoded"], "decoded")


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_golden_symbols_encode_to_the_golden_stream(
    name: str, variant: str, golden: Golden, small_models: dict[str, Any]
) -> None:
    from mlic_fast.entropy.range_coder import encode
    from mlic_fast.entropy.tables import coding_tables

    model, data = small_models[variant], golden(name)
    stream = encode(coding_tables(model.gaussian_conditional), data["symbols"], data["indexes"])
    assert stream == data["y_string"].tobytes()


@pytest.mark.parametrize("exact", [True, False], ids=["official operators", "engine"])
@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_free_running_encode(
    name: str, variant: str, golden: Golden, small_models: dict[str, Any], exact: bool
) -> None:
    model, data = small_models[variant], golden(name)
    result = model.compress(torch.from_numpy(data["x"]), exact=exact)
    assert tuple(result["shape"]) == tuple(data["shape"])
    assert result["strings"][1] == [data[f"z_string.{item}"].tobytes() for item in range(data["x"].shape[0])]
    assert abs(len(result["strings"][0][0]) - data["y_string"].size) <= 0.001 * data["y_string"].size + 4
