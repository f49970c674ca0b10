# SPDX-License-Identifier: Apache-2.0
"""The engine's convolutions: packed for each size of map, or for few, and equal to PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mlic_fast.engine import layers
from mlic_fast.engine.layers import LAYOUT, compile_convolution

pytestmark = pytest.mark.skipif(not layers._has_packed_operators(), reason="PyTorch without oneDNN")

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


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2), (torch.bfloat16, 3)], ids=["float32", "bfloat16"])
def test_few_packed_weights_are_kept(dtype: torch.dtype, most: int) -> None:
    """So many sizes as a picture has strips of, packed once each; another picture's take their place."""
    convolution = compile_convolution(torch.randn(48, 48, 3, 3), None, dtype=dtype, exact=False)
    assert isinstance(convolution, layers._PackedConvolution)
    for height in range(2, 40):
        x = torch.randn(1, 48, height, 16).to(dtype).contiguous(memory_format=LAYOUT)
        convolution(x)
        kept = dict(convolution._packed)
        assert 1 <= len(kept) <= most
        convolution(x)
        assert {size: id(packed) for size, packed in convolution._packed.items()} == {
            size: id(packed) for size, packed in kept.items()
        }
