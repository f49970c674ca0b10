# SPDX-License-Identifier: Apache-2.0
"""The engine's convolutions: packed for each size of map, or for few, and equal to PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.private_torch import has_bfloat16
from mlic_fast.engine import layers, winograd_layers
from mlic_fast.engine.layers import LAYOUT, compile_convolution
from mlic_fast.ops.winograd import convolve

pytestmark = pytest.mark.skipif(not layers.has_packed_convolutions(), reason="PyTorch without oneDNN")

# Around the sizes at which oneDNN changes its mind about 192 channels.
SIZES = [(2, 4), (8, 48), (16, 48), (18, 96), (34, 96), (30, 192), (5, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("outputs", "inputs", "kernel", "stride"),
    [(192, 192, 3, 1), (192, 192, 3, 2), (192, 192, 1, 1), (33, 5, 3, 1)],
    ids=["3×3", "strided", "1×1", "odd"],
)
def test_every_size_gets_its_result(dtype: torch.dtype, outputs: int, inputs: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs, kernel, kernel) / (kernel * inputs**0.5), torch.randn(outputs)
    convolution = compile_convolution(weight, bias, stride=stride, dtype=dtype, exact=False)
    for height, width in SIZES + SIZES[::-1]:
        x = torch.randn(1, inputs, height, width).to(dtype).contiguous(memory_format=LAYOUT)
        for gelu in (False, True):
            found = convolution(x, gelu=gelu)
            exact = F.conv2d(
                x.double(), weight.to(dtype).double(), bias.to(dtype).double(), stride=stride, padding=kernel // 2
            )
            exact = F.gelu(exact) if gelu else exact
            assert found.dtype == dtype
            assert found.shape == exact.shape
            tolerance = 1e-5 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(
    backend.report()["cpu"] is not None or backend.cpu_kernels.isa() == "generic", reason="no kernels for its vectors"
)
def test_winograds_method_is_taken_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 32, 3, 3).div_(17), torch.randn(64)
    calls: list[tuple[int, ...]] = []

    def counted(pieces: Any, *arguments: Any, **settings: Any) -> torch.Tensor:
        calls.append(tuple(pieces[0].shape))
        return convolve(pieces, *arguments, **settings)

    monkeypatch.setattr(winograd_layers, "convolve", counted)
    convolution = compile_convolution(weight, bias, exact=False)

    def check(height: int, width: int, pad_rows: bool, taken: bool) -> None:
        calls.clear()
        x = torch.randn(1, 32, height, width).contiguous(memory_format=LAYOUT)
        found = convolution(x, gelu=True, pad_rows=pad_rows)
        exact = F.gelu(F.conv2d(x.double(), weight.double(), bias.double(), padding=(int(pad_rows), 1)))
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
        assert bool(calls) == taken
        added = convolution.add_to(torch.ones(1, 64, height, width), x)
        torch.testing.assert_close(added, 1 + F.conv2d(x, weight, bias, padding=1), rtol=1e-5, atol=1e-5)

    for pad_rows in (True, False):
        check(16, 16, pad_rows, True)
        check(17, 20, pad_rows, True)
        check(17, 21, pad_rows, False)  # odd width
        check(8, 16, pad_rows, False)  # small
    with use_backend("torch"):
        check(16, 16, True, False)
    with monkeypatch.context() as patch:
        patch.setenv("MLIC_FAST_ISA", "generic")
        check(16, 16, True, False)
    monkeypatch.setattr(winograd_layers, "convolve", None)  # never for these
    for other in (
        compile_convolution(weight, bias),  # of the entropy path
        compile_convolution(weight, bias, exact=False, stride=2),
        compile_convolution(weight, bias, exact=False, dtype=torch.bfloat16),
        compile_convolution(weight[:63], bias[:63], exact=False),
        compile_convolution(weight[..., :1, :1], bias, exact=False),
    ):
        other(torch.randn(1, 32, 32, 32).to(other.dtype).contiguous(memory_format=LAYOUT))


BFLOAT16 = pytest.mark.skipif(not has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")


@pytest.mark.parametrize(
    ("dtype", "most"),
    [pytest.param(torch.float32, 2, id="float32"), pytest.param(torch.bfloat16, 3, id="bfloat16", marks=BFLOAT16)],
)
def test_few_packed_weights_are_kept(dtype: torch.dtype, most: int) -> None:
    """So many sizes as a picture has strips of, packed once each; another picture's take their place."""
    convolution = compile_convolution(torch.randn(48, 40, 3, 3), None, dtype=dtype, exact=False)
    assert isinstance(convolution, layers._PackedConvolution)
    for height in range(2, 40):
        x = torch.randn(1, 40, height, 16).to(dtype).contiguous(memory_format=LAYOUT)
        convolution(x)
        kept = dict(convolution._packed)
        assert 1 <= len(kept) <= most
        convolution(x)
        assert {size: id(packed) for size, packed in convolution._packed.items()} == {
            size: id(packed) for size, packed in kept.items()
        }
