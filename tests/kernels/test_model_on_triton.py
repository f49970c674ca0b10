# SPDX-License-Identifier: Apache-2.0
"""A whole small model on the Triton backend, and how many kernels each operation launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mlic_fast import ModelConfig
from mlic_fast.checkerboard import Parity
from mlic_fast.compute import triton_language as language
from mlic_fast.compute.backend import use_backend
from mlic_fast.contexts import FAMILY
from mlic_fast.model import class_of
from mlic_fast.ops.coding_steps import decode_indexes, decode_values, encode_step, flag_count
from mlic_fast.ops.gdn import gdn
from mlic_fast.ops.linear_attention import checkerboard_linear_attention, linear_attention
from mlic_fast.ops.local_attention import local_attention
from mlic_fast.ops.residual import add_residual

pytestmark = pytest.mark.skipif(not language.HAS_TRITON, reason="Triton has packages for Linux only")

# MLIC++'s old variant has the new one's contexts
members = pytest.mark.parametrize(
    "config",
    [
        ModelConfig(N=16, M=64, slice_num=2, variant=variant, architecture=architecture)
        for architecture, member in FAMILY.items()
        for variant in member.variants
        if variant != "old"
    ],
    ids=lambda config: f"{config.architecture} {config.variant}",
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@members
def test_a_model_decodes_what_it_encodes(
    config: ModelConfig, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")
    torch.manual_seed(0)
    model = class_of(config.architecture)(config).eval().to(DEVICE)
    model.update()
    x = test_image(64, 64, 50).to(DEVICE)
    latents: list[torch.Tensor] = []
    hook = model.g_s.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    with use_backend("triton"):
        coded = model.compress(x)
        model.decompress(coded["strings"], coded["shape"])
    with use_backend("torch"):
        model.decompress(coded["strings"], coded["shape"])
    hook.remove()
    assert (latents[0] - latents[1]).abs().max() <= 1e-5 * latents[1].abs().max()


@members
def test_the_engine_s_calls_on_a_device(
    config: ModelConfig, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole calls as on a GPU: its convolutions, packed steps and guard, against the readable model."""
    from mlic_fast.engine import Options, engine_for, forget_engines, layers
    from mlic_fast.engine.gpu.layers import CudaConvolution
    from mlic_fast.engine.gpu.programs import compress, decompress

    torch.manual_seed(1)
    model = class_of(config.architecture)(config).eval().to(DEVICE)
    with torch.no_grad():
        model.g_a.analysis_transform[-1].weight.mul_(30)
    model.update()
    x, entropy = test_image(64, 64, 51).to(DEVICE), model.entropy

    def on_cuda(weight: Any, *others: Any) -> CudaConvolution:
        return CudaConvolution(weight.joined(), *others[:4])

    monkeypatch.setattr(layers, "_PackedConvolution", on_cuda)
    with use_backend("triton"):
        engine = engine_for(model, Options(transform_dtype="float32"))
        assert engine is not None
        coded = compress(engine, entropy, x, 5e-5)
        x_hat = decompress(engine, entropy, coded.y, coded.z, (1, 1), coded.guard)
    forget_engines(model)
    with use_backend("torch"):
        expected = model.decompress([[coded.y], coded.z], (1, 1), guard=coded.guard)["x_hat"]
    # float32's rounding of two ways of computing, in units of the largest value: MLICv2's transforms are twice as deep
    assert (x_hat - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@contextmanager
def counted_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    call = GridExecutor.__call__

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(self.fn.__name__)
        return call(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", counting)
        yield launched


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))).add_(0.2)


def _maps(count: int) -> list[torch.Tensor]:
    return [_random(1, 32, 4, 4) for _ in range(count)]


# positions of a pass of `_maps`
_N = 32 * 4 * 4
_TABLE = torch.linspace(0.11, 4.0, 8), torch.tensor([0.11])


def _written() -> list[torch.Tensor]:
    kinds = (torch.int16, _N), (torch.uint8, _N), (torch.uint8, flag_count(_N))
    return [torch.zeros(count, dtype=dtype) for dtype, count in kinds]


def _encode() -> None:
    encode_step(*_maps(3), *_TABLE, *_written())


def _decode() -> None:
    _, indexes, flags = _written()
    decode_indexes(*_maps(1), torch.ones(_N), *_TABLE, indexes, flags)


def _values() -> None:
    symbols, _, flags = _written()
    decode_values(symbols, *_maps(1), flags)


def _local() -> None:
    shapes = (1, 96, 4, 4), (81, 2), (64, 32, 5, 5), (64,), (64, 64), (64,)
    local_attention(*(_random(*shape) for shape in shapes))


# operation, launches at most
OPERATIONS = [
    pytest.param(lambda: linear_attention(*_maps(3), 1), 3, id="linear attention"),
    pytest.param(lambda: checkerboard_linear_attention(*_maps(3), 2), 3, id="checkerboard linear attention"),
    pytest.param(_local, 3, id="local attention"),
    pytest.param(_encode, 1, id="coding step, encoding"),
    pytest.param(_decode, 1, id="coding step, indexes"),
    pytest.param(_values, 1, id="coding step, values"),
    pytest.param(lambda: add_residual(*_maps(2), Parity.ANCHOR), 1, id="residual"),
    pytest.param(lambda: gdn(_random(1, 32, 4, 4), _random(32), _random(32, 32), _random(1, 32, 4, 4)), 1, id="GDN"),
]


@pytest.mark.skipif(not language.INTERPRETED, reason="launches are counted in the interpreter")
@pytest.mark.parametrize(("operation", "most"), OPERATIONS)
def test_launches(operation: Callable[[], Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("triton"), torch.no_grad(), counted_launches(monkeypatch) as launched:
        operation()
    assert 1 <= len(launched) <= most, launched
