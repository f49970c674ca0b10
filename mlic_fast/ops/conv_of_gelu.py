# SPDX-License-Identifier: Apache-2.0
"""Convolution of GELU(x) that keeps x alone for its gradients: GELU is cheap to compute again, a map is not to keep."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def conv3x3_of_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(F.gelu(x), weight, bias, padding=1), in the dtype of autocast where it is enabled.

    x: [B, in, H, W]; weight: [out, in, 3, 3]; bias: [out] or None. Returns [B, out, H, W]. Results and gradients are
    those of the two operators, to the bit; gradients of gradients are not supported.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    out: Tensor = _ConvOfGelu.apply(x, weight, bias)
    return out


class _ConvOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return F.conv2d(F.gelu(x).to(weight.dtype), weight, bias, padding=1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad)
        argument_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, F.gelu(x).to(weight.dtype), weight, ctx.bias_sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        if wanted[0]:
            argument_grad = argument_grad.to(x.dtype)
            torch.ops.aten.gelu_backward.grad_input(argument_grad, x, grad_input=argument_grad)
        return argument_grad, weight_grad, bias_grad
