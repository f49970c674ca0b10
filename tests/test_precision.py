# SPDX-License-Identifier: Apache-2.0
"""The entropy path stays float32-class whatever the caller has set for everything else."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from precision_switches import SWITCHES, ObedientHardware, switched

from mlic_fast import MLICPlusPlus, load
from mlic_fast.compute import precision
from mlic_fast.compute.backend import plain_path
from mlic_fast.entropy.factorized import decode_hyper_latent
from mlic_fast.evaluate import calibration

Image = Callable[..., torch.Tensor]

# In log-scale: the most that right float32 implementations were seen to differ by, with room.
LOG_SCALE_TOLERANCE = 2e-5

TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")


def largest_log_scale_difference(a: Any, b: Any) -> float:
    pairs = zip(a.scales, b.scales, strict=True)
    return max((x.clamp_min(0.11).log() - y.clamp_min(0.11).log()).abs().max().item() for x, y in pairs)


@pytest.fixture(scope="module")
def symbols(golden: Callable[[str], Any]) -> Any:
    return golden("small_128x192_b1")["symbols"]


@pytest.fixture(scope="module")
def decoded_z(small_model: Any, golden: Callable[[str], Any]) -> torch.Tensor:
    data = golden("small_128x192_b1")
    strings = [data["z_string.0"].tobytes()]
    with torch.no_grad():
        return decode_hyper_latent(small_model.entropy, strings, tuple(data["shape"]))


@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_reaches_the_plain_walk(
    small_model: Any, decoded_z: torch.Tensor, symbols: Any, given_symbols: Any, name: str
) -> None:
    with plain_path():
        _, reference = given_symbols(small_model, decoded_z, symbols)
    with plain_path(), switched(name), ObedientHardware() as hardware:
        ones = torch.full((2, 2), 1.001)
        assert not torch.allclose(ones @ ones, torch.full((2, 2), 2 * 1.001**2), rtol=1e-4)  # it does obey
        hardware.shortened = 0
        _, seen = given_symbols(small_model, decoded_z, symbols)
        assert hardware.shortened == 0
    assert largest_log_scale_difference(seen, reference) < LOG_SCALE_TOLERANCE


@pytest.fixture(scope="module")
def coded_picture(small_model: Any, test_image: Image) -> tuple[calibration.GivenSymbols, list[torch.Tensor]]:
    """A picture's symbols, and the logarithms of the scales that the engine computes from them."""
    picture = (test_image(64, 128, 27)[0] * 255).byte().permute(1, 2, 0).numpy()
    given = calibration.given_symbols(small_model, picture)
    return given, calibration.log_scales(small_model, given, engine=True)


@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_reaches_the_engines_walk(small_model: Any, coded_picture: Any, name: str) -> None:
    given, expected = coded_picture
    with switched(name), ObedientHardware() as hardware:
        found = calibration.log_scales(small_model, given, engine=True)
        assert hardware.shortened == 0
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < LOG_SCALE_TOLERANCE


@pytest.mark.parametrize("name", ["medium", "oneDNN convolutions"])
def test_no_switch_reaches_a_file(
    small_model: Any, test_image: Image, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is written under a switch, by either way of computing, decodes without it; and the other way round."""
    x = test_image(64, 64, 26)
    for engine in ("on", "off"):
        monkeypatch.setenv("MLIC_FAST_ENGINE", engine)
        for exact in (True, False):
            usual = small_model.compress(x, exact=exact, guard=2e-5)
            with switched(name), ObedientHardware():
                written = small_model.compress(x, exact=exact, guard=2e-5)
                small_model.decompress(usual["strings"], usual["shape"], exact=exact, guard=usual["guard"])
            small_model.decompress(written["strings"], written["shape"], exact=exact, guard=written["guard"])


@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_reaches_coding_tables(name: str) -> None:
    model = load("mlicpp-s-0.0067")
    expected = model.entropy_bottleneck._quantized_cdf
    without = {key: value for key, value in model.state_dict().items() if not key.endswith(TABLES)}
    with switched(name), ObedientHardware():
        own = copy.deepcopy(model)
        own.update(force=True)
        loaded = MLICPlusPlus.from_state_dict(without)
    for computed in (own, loaded):
        assert (computed.entropy_bottleneck._quantized_cdf - expected).abs().max() <= 1  # as on another machine


@pytest.mark.parametrize("name", SWITCHES)
def test_operations_are_float32_class(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4, 64, 64, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with switched(name), ObedientHardware():
        assert precision.is_lowered(a.device)
        assert (precision.matmul(a, b) - exact).abs().max() < 1e-4
        assert (precision.linear(a, b[0], None) - a.double() @ b[0].double().T).abs().max() < 1e-4
        for groups in (1, 4):
            weight = b.reshape(-1, 4 // groups, 8, 8)[:8, :, :3, :3].contiguous()
            found = precision.conv2d(a[None], weight, None, [1, 1], [1, 1], groups)
            wide = torch.nn.functional.conv2d(a[None].double(), weight.double(), None, 1, 1, 1, groups)
            assert (found - wide).abs().max() < 1e-4
        with precision.sums_for_products(a.device):
            assert (torch.matmul(a, b) - exact).abs().max() < 1e-4
    assert not precision.is_lowered(a.device)


def test_defaults_count_as_full_precision() -> None:
    assert not precision.is_lowered(torch.device("cpu"))
    assert not precision.is_lowered(torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(small_model: Any, test_image: Image, dtype: torch.dtype) -> None:
    x = test_image(64, 128, 21)
    coded = small_model.compress(x, exact=True)
    latents: list[torch.Tensor] = []
    hook = small_model.g_s.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    try:
        plain = small_model.decompress(coded["strings"], coded["shape"], exact=True)["x_hat"]
        with torch.autocast("cpu", dtype=dtype):
            cast = small_model.decompress(coded["strings"], coded["shape"], exact=True)["x_hat"]
            again = small_model.compress(x, exact=True)
        assert torch.equal(latents[0], latents[1])  # to the bit: the entropy path was not cast
        assert cast.dtype == dtype  # while the synthesis was
        assert (cast.float() - plain).abs().max() < 0.2
        # a picture analysed in 16 bits decodes without autocast, and the other way round
        small_model.decompress(again["strings"], again["shape"], exact=True)
    finally:
        hook.remove()


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_16_bit_weights(small_model: Any, test_image: Image, convert: str) -> None:
    x = test_image(64, 64, 22)
    coded = small_model.compress(x, exact=True)
    short = getattr(copy.deepcopy(small_model), convert)()
    kinds = {name.split(".")[0]: parameter.dtype for name, parameter in short.named_parameters()}
    assert kinds["g_a"] == kinds["g_s"] == kinds["h_a"] == (torch.half if convert == "half" else torch.bfloat16)
    assert {kind for name, kind in kinds.items() if name not in ("g_a", "g_s", "h_a")} == {torch.float32}
    latents: list[torch.Tensor] = []
    for model in (small_model, short):
        hook = model.g_s.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0].float()))
        model.decompress(coded["strings"], coded["shape"], exact=True)
        hook.remove()
    assert (latents[0] - latents[1]).abs().max() <= latents[0].abs().max() * 2**-8  # rounded for g_s, no more
    written = short.compress(x, exact=True)
    small_model.decompress(written["strings"], written["shape"], exact=True)


def test_widening_and_moving_still_work(small_model: Any, test_image: Image) -> None:
    wide = copy.deepcopy(small_model).double()
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    with torch.no_grad():
        difference = wide(test_image(64, 64, 23).double())["x_hat"] - small_model(test_image(64, 64, 23))["x_hat"]
    assert difference.abs().max() < 1.0  # a flipped symbol may change the picture, but it is one
    assert copy.deepcopy(small_model).half().to("cpu").entropy_bottleneck.quantiles.dtype == torch.float32


def test_threads_with_different_settings_share_a_model(small_model: Any, test_image: Image) -> None:
    pictures = [test_image(64, 64, 24), test_image(128, 64, 25)]
    settings = [nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]

    def run(which: int) -> tuple[Any, torch.Tensor]:
        with settings[which]():
            coded = small_model.compress(pictures[which], exact=True)
            return coded["strings"], small_model.decompress(coded["strings"], coded["shape"], exact=True)["x_hat"]

    expected = [run(0), run(1)]
    failures: list[str] = []

    def work(which: int) -> None:
        try:
            for _ in range(6):
                strings, x_hat = run(which)
                if strings != expected[which][0] or not torch.equal(x_hat, expected[which][1]):
                    failures.append(f"thread {which}: another result")
        except Exception as error:
            failures.append(f"thread {which}: {error!r}")

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_does_not_reach_the_entropy_path(
    small_model: Any, decoded_z: torch.Tensor, symbols: Any, given_symbols: Any
) -> None:
    _, reference = given_symbols(small_model, decoded_z, symbols)
    assert torch.backends.cudnn.allow_tf32  # PyTorch's default
    _, seen = given_symbols(copy.deepcopy(small_model).cuda(), decoded_z.cuda(), symbols)
    seen.scales = [scales.cpu() for scales in seen.scales]
    assert largest_log_scale_difference(seen, reference) < LOG_SCALE_TOLERANCE
