# SPDX-License-Identifier: Apache-2.0
"""What follows a convolution on CUDA: the kernel against its twin, and the convolutions that use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mlic_fast.kernels.epilogue import bias_epilogue, bias_epilogue_ref
from torch import Tensor

from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.triton_language import HAS_TRITON, INTERPRETED
from mlic_fast.engine.gpu.layers import LAYOUT, CudaConvolution

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton has packages for Linux only")
BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]


def channels_last(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype).contiguous(memory_format=LAYOUT)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 24, 5, 7), (1, 192, 3, 2)], ids=["one", "odd", "wide"])
@pytest.mark.parametrize(
    ("bias", "gelu", "add"), [(True, False, False), (True, True, False), (False, True, False), (True, False, True)]
)
def test_kernel(dtype: torch.dtype, shape: Any, bias: bool, gelu: bool, add: bool) -> None:
    x, other = channels_last(*shape, seed=1, dtype=dtype), channels_last(*shape, seed=2, dtype=dtype)
    values = torch.randn(shape[1], generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype) if bias else None
    own, twin = other.clone(), other.clone()
    bias_epilogue(own, x, values, gelu, add)
    bias_epilogue_ref(twin, x, values, gelu, add)
    wide = x.double() if values is None else x.double() + values.double()[:, None, None]
    wide = F.gelu(wide) if gelu else wide
    wide = wide + other.double() if add else wide
    error, allowed = (own.double() - wide).abs(), (twin.double() - wide).abs().max()
    # Triton's interpreter cuts bfloat16 off where it should be rounded
    cut = torch.finfo(dtype).eps * wide.abs() if INTERPRETED and dtype == torch.bfloat16 else 0
    assert (error <= 2 * allowed + 2e-7 + cut).all()
    in_place = x.clone(memory_format=torch.preserve_format)
    bias_epilogue(in_place, in_place, values, gelu, False)
    if not add:
        assert torch.equal(in_place, own)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 16), (5, 1, 1)]
)
def test_convolutions(backend: str, kernel: int, stride: int, groups: int, bias: bool) -> None:
    x = channels_last(2, 16, 6, 8, seed=4)
    weight = channels_last(16, 16 // groups, kernel, kernel, seed=5)
    vector = channels_last(1, 16, 1, 1, seed=6).flatten() if bias else None
    expected = F.conv2d(x, weight, vector, stride, kernel // 2, 1, groups)
    with use_backend(backend):
        layer = CudaConvolution(weight, vector, stride, groups, torch.float32)
        out, active = layer(x), layer(x, gelu=True)
        added = layer.add_to(torch.ones_like(out), x)
        beside = layer.add_to(torch.ones(out.shape, device=DEVICE), x)  # another layout
    assert out.is_contiguous(memory_format=LAYOUT)
    assert (layer.kernel, layer.stride, layer.dtype) == (kernel, stride, torch.float32)
    for own, wanted in ((out, expected), (active, F.gelu(expected)), (added, expected + 1), (beside, expected + 1)):
        assert (own - wanted).abs().max() <= 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_above_and_below_can_be_given(kernel: int) -> None:
    x, weight = channels_last(1, 4, 6, 5, seed=7), channels_last(8, 4, kernel, kernel, seed=8)
    layer = CudaConvolution(weight, None, 1, 1, torch.float32)
    expected = F.conv2d(x, weight, None, 1, (0, kernel // 2))
    with use_backend("torch"):
        assert (layer(x, pad_rows=False) - expected).abs().max() <= 1e-5
