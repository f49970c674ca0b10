# SPDX-License-Identifier: Apache-2.0
"""Float32-class arithmetic for the entropy path, whatever the caller has set for everything else.

Encoder and decoder must find the same table index for every symbol, so the way from z to
the scales may not run in TF32, bfloat16 or float16. PyTorch's switches for those are global
(`set_float32_matmul_precision`, `cudnn.allow_tf32`, …) or belong to a thread (autocast).
Flipping a global one would reach other threads, so nothing here writes a switch: convolutions
pass "no TF32" as an argument of the call, and where a lowered precision could still reach an
operation, that one operation runs in float64.

With PyTorch's default switches each function here calls the same operator as the plain layer,
so results are bit-equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which autocast is off for `device`'s type, in this thread alone."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if it is float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _lowered(read: Callable[[], Any], full: Sequence[Any]) -> bool:
    try:
        return read() not in full
    except AttributeError:  # this PyTorch has no such switch
        return False
    except RuntimeError:  # PyTorch refuses to tell when its old and new switches were mixed
        return True


# PyTorch's compiler cannot trace the switches, so it takes them as they are when it compiles.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def matmul_is_lowered(device: torch.device) -> bool:
    """Whether float32 matrix products on `device` may be computed in a shorter format."""
    if _lowered(torch.get_float32_matmul_precision, ("highest",)):
        return True
    if device.type == "cpu":
        return _lowered(lambda: torch.backends.mkldnn.matmul.fp32_precision, ("none", "ieee"))  # type: ignore[attr-defined]
    return _lowered(lambda: torch.backends.cuda.matmul.allow_tf32, (False,))


# PyTorch's compiler cannot trace the switches, so it takes them as they are when it compiles.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def convolution_is_lowered(device: torch.device) -> bool:
    """Whether a float32 convolution on `device` may be shortened in spite of the call's own argument."""
    if device.type != "cpu":
        return False
    return _lowered(lambda: torch.backends.mkldnn.conv.fp32_precision, ("none", "ieee")) or _lowered(  # type: ignore[attr-defined]
        lambda: torch.backends.mkldnn.allow_tf32,  # type: ignore[attr-defined]
        (None, False),
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of float tensors [..., n, k] and [..., k, m], float32-class."""
    if a.dtype == torch.float32 and matmul_is_lowered(a.device):
        return torch.matmul(a.double(), b.double()).float()
    return torch.matmul(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; float32-class."""
    if x.dtype == torch.float32 and matmul_is_lowered(x.device):
        return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
    return F.linear(x, weight, bias)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int = 1
) -> Tensor:
    """Zero-padded convolution of x [B, in, H, W] with weight [out, in / groups, k, k]; float32-class."""
    if x.dtype == torch.float32 and convolution_is_lowered(x.device):
        wide = None if bias is None else bias.double()
        return F.conv2d(x.double(), weight.double(), wide, stride, padding, 1, groups).float()
    if x.device.type != "cuda":
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    cudnn = torch.backends.cudnn
    return torch._convolution(
        x,
        weight,
        bias,
        stride,
        padding,
        [1, 1],
        False,
        [0, 0],
        groups,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.enabled,
        False,  # allow_tf32
    )


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d with `conv2d` above: same parameters, same names. Zero padding, no dilation."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(input, weight, bias, list(self.stride), [int(p) for p in self.padding], self.groups)


class Linear(nn.Linear):
    """torch.nn.Linear with `linear` above: same parameters, same names."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class KeepsFloat32(nn.Module):
    """Mixin: `.half()`, `.bfloat16()` and `.to(dtype)` leave this module and its children in float32.

    Moves between devices and widening to float64 work as usual.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def widen(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if tensor.is_floating_point() and result.is_floating_point() and result.element_size() < 4:
                return tensor.to(result.device)
            return result

        return super()._apply(widen, recurse)  # type: ignore[no-untyped-call]


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    """Convolution of the entropy path that keeps the size at stride 1: odd kernel, zero padding kernel // 2, bias."""
    return Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
