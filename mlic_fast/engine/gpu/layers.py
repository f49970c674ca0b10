# SPDX-License-Identifier: Apache-2.0
"""Convolutions of the engine on CUDA: cuDNN or a matrix product, and a kernel for everything after it.

PyTorch adds a convolution's bias, applies GELU and adds a residual in a launch each; here they are one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute.backend import choose
from mlic_fast.compute.precision import conv2d, linear
from mlic_fast.kernels import epilogue

LAYOUT = torch.channels_last


class CudaConvolution:
    """A Convolution (see mlic_fast.engine.layers) whose float32 maps are never multiplied in a shorter format."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype) -> None:
        self.kernel, self.stride, self.dtype, self._groups = weight.shape[2], stride, dtype, groups
        self._pad = self.kernel // 2
        self._bias = None if bias is None else bias.detach().to(dtype)
        # a matrix product is told apart by its weight [out, in]
        pointwise = self.kernel == 1 and stride == 1 and groups == 1
        weight = weight.detach().to(dtype)
        self._weight = weight.flatten(1).contiguous() if pointwise else weight.contiguous(memory_format=LAYOUT)

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor:
        out = self._multiplied(x, pad_rows)
        if self._bias is not None or gelu:
            _finish(out, out, self._bias, gelu=gelu, add=False)
        return out

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        own = self._multiplied(x, True)
        if out.is_contiguous(memory_format=LAYOUT):
            _finish(out, own, self._bias, gelu=False, add=True)
            return out
        return out.add_(own if self._bias is None else own + self._bias[:, None, None])

    def _multiplied(self, x: Tensor, pad_rows: bool) -> Tensor:
        """The convolution without bias, channels-last."""
        if self._weight.dim() == 2:
            product = linear(x.permute(0, 2, 3, 1), self._weight, None)
            return product.permute(0, 3, 1, 2).contiguous(memory_format=LAYOUT)
        padding = [self._pad if pad_rows else 0, self._pad]
        stride = [self.stride] * 2
        if x.dtype == torch.float32:
            out = conv2d(x, self._weight, None, stride, padding, self._groups)
        else:
            out = F.conv2d(x, self._weight, None, stride, padding, 1, self._groups)
        return out.contiguous(memory_format=LAYOUT)


def _finish(out: Tensor, x: Tensor, bias: Tensor | None, *, gelu: bool, add: bool) -> None:
    run = epilogue.bias_epilogue if choose(x) == "triton" else epilogue.bias_epilogue_ref
    run(out, x, bias, gelu, add)
