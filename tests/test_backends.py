# SPDX-License-Identifier: Apache-2.0
"""The whole model on every backend: golden data, the same decisions, and the way back to the plain path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute import backend
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.estimator import Estimator
from mlic_fast.entropy.factorized import decode_hyper_latent
from mlic_fast.errors import BackendError, BitstreamError
from mlic_fast.ops import local_attention

Golden = Callable[[str], dict[str, np.ndarray]]
ROWS = [
    pytest.param("small_128x192_b1", "new", id="128x192"),
    pytest.param("small_64x128_b2", "new", id="64x128-batch-2"),
    pytest.param("small_old_64x128_b1", "old", id="64x128-old"),
]


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are looked at one by one here; the engine has tests of its own."""
    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")


@pytest.fixture(params=["torch", "cpu", pytest.param("triton", marks=[pytest.mark.cuda, CUDA])])
def on_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    # g_a, h_a and g_s may run in TF32; golden numbers are float32's
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with backend.use_backend(request.param):
        yield request.param
    torch.backends.cudnn.allow_tf32 = tf32


def placed(model: Any, backend_name: str) -> tuple[Any, torch.device]:
    """The model on the device that the backend works on."""
    if backend_name == "triton":
        return copy.deepcopy(model).cuda(), torch.device("cuda")
    return model, torch.device("cpu")


def _decoded_z(model: Any, data: dict[str, np.ndarray]) -> torch.Tensor:
    strings = [data[f"z_string.{item}"].tobytes() for item in range(data["x"].shape[0])]
    with torch.no_grad():
        return decode_hyper_latent(model.entropy, strings, tuple(data["shape"]))


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_golden_files(
    on_backend: str, name: str, variant: str, golden: Golden, small_models: dict[str, Any], given_symbols: Any
) -> None:
    data = golden(name)
    model, device = placed(small_models[variant], on_backend)
    _, seen = given_symbols(model, _decoded_z(model, data), data["symbols"])
    indexes = torch.cat([index.flatten() for index in seen.indexes]).cpu().numpy()
    assert (indexes != data["indexes"]).sum() <= 1
    z_strings = [data[f"z_string.{item}"].tobytes() for item in range(data["x"].shape[0])]
    decoded = model.decompress([[data["y_string"].tobytes()], z_strings], data["shape"])["x_hat"].cpu().numpy()
    assert np.abs(decoded - data["decoded"]).max() <= 1e-5 * np.abs(data["decoded"]).max()
    with torch.no_grad():
        estimated = model(torch.from_numpy(data["x"]).to(device))["x_hat"].cpu().numpy()
    assert np.abs(estimated - data["x_hat"]).max() <= 1e-5 * np.abs(data["x_hat"]).max()


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_golden_contexts_where_they_are_used(
    on_backend: str, name: str, variant: str, golden: Golden, small_models: dict[str, Any]
) -> None:
    data = golden(name)
    model, device = placed(small_models[variant], on_backend)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: seen.__setitem__(path, output))
        for path, module in model.named_modules()
        if path in data
    ]
    with torch.no_grad():
        model(torch.from_numpy(data["x"]).to(device))
    for hook in hooks:
        hook.remove()
    parities = {"local_context": Parity.NONANCHOR, "nonanchor": Parity.NONANCHOR, "anchor": Parity.ANCHOR}
    checked = 0
    for path, output in seen.items():
        stem = path.split(".")[0]
        parity = next((parity for word, parity in parities.items() if stem.endswith(word)), None)
        output, expected = output.cpu(), torch.from_numpy(data[path])
        if parity is not None:
            output, expected = keep(output, parity), keep(expected, parity)
        assert (output - expected).abs().max() <= 1e-5 * expected.abs().max(), path
        checked += 1
    assert checked >= 18


@pytest.mark.parametrize("writer", ["torch", "cpu"])
@pytest.mark.parametrize("reader", ["torch", "cpu"])
def test_one_backend_reads_what_another_wrote(
    small_model: Any, test_image: Callable[..., torch.Tensor], writer: str, reader: str
) -> None:
    with backend.use_backend(writer):
        coded = small_model.compress(test_image(128, 64, 40))
    with backend.use_backend(reader):
        x_hat = small_model.decompress(coded["strings"], coded["shape"])["x_hat"]
    with backend.use_backend("torch"):
        expected = small_model.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert (x_hat - expected).abs().max() < 1e-5 * expected.abs().max()


def _spoil_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels of the local context compute something else; the plain path takes none."""
    right = local_attention.local_attention
    monkeypatch.setattr(local_attention, "local_attention", lambda *arguments: right(*arguments) * 1.01)


def test_a_stream_that_kernels_cannot_follow_is_read_on_the_plain_path(
    small_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend.use_backend("torch"):
        coded = small_model.compress(test_image(128, 128, 41))
        expected = small_model.decompress(coded["strings"], coded["shape"])["x_hat"]
    _spoil_kernels(monkeypatch)
    with backend.use_backend("cpu"):
        x_hat = small_model.decompress(coded["strings"], coded["shape"])["x_hat"]
        assert (x_hat - expected).abs().max() < 1e-5 * expected.abs().max()
        (y,), z = coded["strings"]
        with pytest.raises(BitstreamError):
            small_model.decompress([[y[:-4]], z], coded["shape"])
        assert backend.choose(expected) == "cpu"  # the way back is over


def test_a_backend_that_cannot_run_is_an_error(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "abacus")
    with pytest.raises(BackendError, match="abacus"):
        small_model.compress(torch.zeros(1, 3, 64, 64))
    monkeypatch.setenv(backend.VARIABLE, "torch")
    assert backend.choose(torch.zeros(1)) == "torch"


@pytest.mark.parametrize("exact", [True, False])
def test_repetition_changes_no_bit(small_model: Any, test_image: Callable[..., torch.Tensor], exact: bool) -> None:
    x = test_image(128, 128, 42)
    first = small_model.compress(x, exact=exact)
    assert small_model.compress(x, exact=exact)["strings"] == first["strings"]
    pictures = [small_model.decompress(first["strings"], first["shape"], exact=exact)["x_hat"] for _ in range(2)]
    assert torch.equal(*pictures)


def test_exact_strings_are_the_plain_path_s(
    small_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = test_image(128, 128, 44)
    with backend.use_backend("torch"):
        expected = small_model.compress(x)["strings"]
        x_hat = small_model.decompress(expected, (2, 2))["x_hat"]
    taken: list[str] = []
    choose = backend.choose

    def spy(tensor: torch.Tensor) -> Any:
        taken.append(choose(tensor))
        return taken[-1]

    monkeypatch.setattr(backend, "choose", spy)
    small_model.compress(x)
    assert set(taken) == {choose(x)}
    for exact, variable in ((True, "0"), (None, "1")):
        taken.clear()
        monkeypatch.setenv("MLIC_FAST_EXACT", variable)
        assert small_model.compress(x, exact=exact)["strings"] == expected
        assert torch.equal(small_model.decompress(expected, (2, 2), exact=exact)["x_hat"], x_hat)
        assert set(taken) == {"torch"}
    taken.clear()
    small_model.compress(x, exact=False)
    assert set(taken) == {choose(x)}


@pytest.mark.parametrize("exact", [None, True])
def test_strings_of_kernels_are_read_whatever_is_expected(
    small_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch, exact: bool | None
) -> None:
    _spoil_kernels(monkeypatch)
    coded = small_model.compress(test_image(128, 128, 45), exact=False)
    # the plain path cannot follow these, the kernels can
    assert torch.isfinite(small_model.decompress(coded["strings"], coded["shape"], exact=exact)["x_hat"]).all()
    with backend.use_backend("torch"), pytest.raises(BitstreamError):
        small_model.decompress(coded["strings"], coded["shape"])


def test_transforms_and_walk_compile_as_one_graph(on_backend: str, test_image: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    untrained = MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2)).eval()
    untrained.update()
    model, device = placed(untrained, on_backend)
    x, z_hat = test_image(64, 64, 43).to(device), torch.randn(1, 16, 1, 1).to(device)

    def through(x: torch.Tensor, z_hat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        estimator = Estimator(model.gaussian_conditional, model.analyse(x)[0], model.slice_num)
        y_hat = code(model.walk(z_hat), estimator)
        return model.synthesise(y_hat), estimator.likelihoods()

    torch.compiler.reset()
    compiled = torch.compile(through, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for actual, expected in zip(compiled(x, z_hat), through(x, z_hat), strict=True):
            assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    x_hat, likelihoods = compiled(x, z_hat)
    (x_hat.sum() + likelihoods.log().sum()).backward()
    assert torch.isfinite(model.g_a.analysis_transform[0].conv1.weight.grad).all()
