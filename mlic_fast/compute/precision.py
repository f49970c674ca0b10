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

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlic_fast.compute.private_torch import constant_when_compiled, convolution_without_tf32, fp32_precision_readers


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which autocast is off for `device`'s type, in this thread alone."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if it is float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# PyTorch's switches for float32 arithmetic, and the settings of each that leave it as it is. Those of single operations
# are no bounds: on processors with AMX the switch for matrix products reaches small convolutions, which are computed as
# such, and a release may draw the lines elsewhere. So any of them counts for every operation. Older releases lack some.
_EVERYWHERE = [torch.get_float32_matmul_precision, *fp32_precision_readers(("generic", "all"))]
_SWITCHES: dict[str, list[Callable[[], Any]]] = {
    "cpu": [
        *_EVERYWHERE,
        *fp32_precision_readers(("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
    ],
    "cuda": [
        *_EVERYWHERE,
        *fp32_precision_readers(("cuda", "matmul")),
        partial(getattr, torch.backends.cuda.matmul, "allow_tf32"),
    ],
}
_FULL = frozenset(("highest", "none", "ieee", False))


# PyTorch's compiler cannot trace the switches, so it takes them as they are when it compiles.
@constant_when_compiled
def is_lowered(device: torch.device) -> bool:
    """Whether PyTorch may compute float32 products, or convolutions, on `device` in a shorter format.

    Except cuDNN's convolutions, where the call itself says that it may not.
    """
    try:
        for read in _SWITCHES.get(device.type, _EVERYWHERE):
            if read() not in _FULL:
                return True
    except RuntimeError:  # PyTorch refuses to tell when its old and new switches were mixed
        return True
    return False


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of float tensors [..., n, k] and [..., k, m], float32-class."""
    if a.dtype == torch.float32 and is_lowered(a.device):
        return torch.matmul(a.double(), b.double()).float()
    return torch.matmul(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; float32-class."""
    if x.dtype == torch.float32 and is_lowered(x.device):
        return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
    return F.linear(x, weight, bias)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int = 1
) -> Tensor:
    """Zero-padded convolution of x [B, in, H, W] with weight [out, in / groups, k, k]; float32-class."""
    cudnn = torch.backends.cudnn
    by_cudnn = x.device.type == "cuda" and cudnn.enabled and cudnn.is_available()  # type: ignore[no-untyped-call]
    if x.dtype == torch.float32 and not by_cudnn and is_lowered(x.device):
        wide = None if bias is None else bias.double()
        return F.conv2d(x.double(), weight.double(), wide, stride, padding, 1, groups).float()
    if not by_cudnn:
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    return convolution_without_tf32(x, weight, bias, stride, padding, groups)


class _Sums(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.matmul:
            a, b = args
            return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2)
        return func(*args, **(kwargs or {}))


def sums_for_products(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which this thread's torch.matmul, in code that is not ours, adds up float32 products one by one.

    Only where a switch might shorten it. For the tiny matrices that coding tables come from: their counts turn on the
    last bit, which float64 would change.
    """
    return _Sums() if is_lowered(device) else nullcontext()


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
