# SPDX-License-Identifier: Apache-2.0
"""The entropy path stays float32-class whatever the caller has set for everything else."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast.compute import precision
from mlic_fast.entropy.factorized import decode_hyper_latent

Image = Callable[..., torch.Tensor]

# In log-scale: the most that right float32 implementations were seen to differ by, with room.
LOG_SCALE_TOLERANCE = 2e-5


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class ObedientHardware(TorchDispatchMode):
    """Computes float32 products in bfloat16 wherever PyTorch's switches allow it, as some processors do."""

    _PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        product = packet in self._PRODUCTS and torch.get_float32_matmul_precision() != "highest"
        convolution = packet is torch.ops.aten.convolution and _convolutions_may_be_short()
        if product or convolution:
            args = [self._shorten(argument) for argument in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _shorten(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor) and argument.dtype == torch.float32:
            return argument.bfloat16().float()
        return argument


def _convolutions_may_be_short() -> bool:
    return getattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision", "none") == "bf16"


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


@pytest.mark.parametrize("value", ["high", "medium"])
def test_matmul_precision(
    small_model: Any, decoded_z: torch.Tensor, symbols: Any, given_symbols: Any, value: str
) -> None:
    _, reference = given_symbols(small_model, decoded_z, symbols)
    with matmul_precision(value), ObedientHardware():
        assert precision.matmul_is_lowered(decoded_z.device)
        ones = torch.full((2, 2), 1.001)
        assert not torch.allclose(ones @ ones, torch.full((2, 2), 2 * 1.001**2), rtol=1e-4)  # it does obey
        _, seen = given_symbols(small_model, decoded_z, symbols)
        assert torch.get_float32_matmul_precision() == value  # and nobody flipped it back
    assert largest_log_scale_difference(seen, reference) < LOG_SCALE_TOLERANCE


def test_products_are_float32_class_under_medium() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4, 64, 64, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with matmul_precision("medium"), ObedientHardware():
        assert (precision.matmul(a, b) - exact).abs().max() < 1e-4
        assert (precision.linear(a, b[0], None) - a.double() @ b[0].double().T).abs().max() < 1e-4


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this PyTorch has no precision switch for it")
def test_convolution_switch(small_model: Any, decoded_z: torch.Tensor, symbols: Any, given_symbols: Any) -> None:
    _, reference = given_symbols(small_model, decoded_z, symbols)
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        assert precision.convolution_is_lowered(decoded_z.device)
        with ObedientHardware():
            _, seen = given_symbols(small_model, decoded_z, symbols)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    assert largest_log_scale_difference(seen, reference) < LOG_SCALE_TOLERANCE


def test_defaults_count_as_full_precision() -> None:
    cpu = torch.device("cpu")
    assert not precision.matmul_is_lowered(cpu)
    assert not precision.convolution_is_lowered(cpu)


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
