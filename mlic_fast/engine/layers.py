# SPDX-License-Identifier: Apache-2.0
"""Convolutions compiled from a model's weights: packed once, with GELU or an addition in the same pass where possible.

Maps are [B, C, H, W] in channels-last layout. The only file of the engine that knows how a convolution is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.compute.precision import conv2d, is_lowered
from mlic_fast.compute.private_torch import (
    add_packed_convolution,
    has_amx,
    has_bfloat16,
    has_packed_convolutions,
    packed_convolution,
    packed_weight,
    same_bytes,
)
from mlic_fast.engine.gpu.layers import CudaConvolution
from mlic_fast.engine.winograd_layers import WinogradConvolution, suits

LAYOUT = torch.channels_last

# In float32, maps of fewer positions have packed weights of their own, and the size that others are packed for.
_FEW, _TYPICAL = 64, (16, 48)

# In bfloat16, of how many sizes of maps the packed weights are kept: the first strip's, the last one's, all others'. In
# float32, where layouts differ, those of the size that was asked for last: small and large pictures seldom alternate.
_MOST_SIZES = 3


class Convolution(Protocol):
    """A zero-padded convolution with its weights. Immutable: threads may share one."""

    kernel: int
    stride: int
    dtype: torch.dtype

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor:
        """x [B, in, H, W] → [B, out, H', W'], a new map.

        gelu: exact (erf) GELU afterwards. pad_rows: whether rows of zeros lie above and below x; columns do always.
        """
        ...

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Adds the convolution of x to `out` [B, out, H', W'], in place; returns `out`."""
        ...


class Weights:
    """A weight [out, in / groups, k, k], or parts of it side by side along the outputs.

    Parts are views of a model's tensors. They are joined when they are asked for, so that no copy of them stays.
    """

    def __init__(self, *parts: Tensor) -> None:
        self._parts = [part.detach() for part in parts]
        first = self._parts[0]
        self.shape = sum(len(part) for part in parts), *first.shape[1:]
        self.device = first.device

    def joined(self) -> Tensor:
        """A view, or a channels-last copy, which is what packing takes without another."""
        if len(self._parts) == 1:
            return self._parts[0]
        first = self._parts[0]
        whole = torch.empty(self.shape, dtype=first.dtype, device=first.device, memory_format=LAYOUT)
        return torch.cat(self._parts, out=whole)


def compile_convolution(
    weight: Tensor | Weights,
    bias: Tensor | None,
    *,
    stride: int = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    exact: bool = True,
    keep: bool = True,
) -> Convolution:
    """The fastest convolution at hand for weight [out, in / groups, k, k] and its device, padded by k // 2.

    dtype: of maps and weights. exact: float32-class arithmetic, whatever PyTorch's switches say (for the entropy path).
    keep: whether weights that were packed stay in memory; else, on a CPU, they are packed at every call.
    """
    weight = weight if isinstance(weight, Weights) else Weights(weight)
    if weight.device.type == "cuda":
        return CudaConvolution(weight.joined(), bias, stride, groups, dtype)
    compiled: _PackedConvolution | _PlainConvolution
    if weight.device.type == "cpu" and _packs(dtype):
        compiled = _PackedConvolution(weight, bias, stride, groups, dtype, exact, keep)
    else:
        compiled = _PlainConvolution(weight.joined(), bias, stride, groups, dtype, exact)
    if not exact and suits(weight, stride, groups, dtype):
        return WinogradConvolution(weight, bias, compiled)
    return compiled


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this type on this processor: bfloat16 needs instructions for it."""
    return has_packed_convolutions() and (dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16()))


def convolve_pieces(
    convolution: Convolution, pieces: Sequence[Tensor], *, gelu: bool = False, pad_rows: bool = True, factor: int = 1
) -> Tensor:
    """The convolution of a map that pieces [B, in, rows, W] make up from above to below, then `shuffle`.

    In one pass over memory where there is a kernel for it.
    """
    if isinstance(convolution, WinogradConvolution) and convolution.takes(pieces) and convolution.shuffles(factor):
        return convolution.of_pieces(pieces, gelu=gelu, pad_rows=pad_rows, factor=factor)
    x = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
    return shuffle(convolution(x, gelu=gelu, pad_rows=pad_rows), factor)


def shuffle(x: Tensor, factor: int) -> Tensor:
    """[B, factor·factor·C, H, W] → [B, C, factor·H, factor·W], channels-last; x itself if factor is 1."""
    if factor == 1:
        return x
    batch, channels, height, width = x.shape
    C = channels // factor**2
    spread = x.permute(0, 2, 3, 1).reshape(batch, height, width, factor, factor * C).transpose(2, 3)
    return spread.reshape(batch, factor * height, factor * width, C).permute(0, 3, 1, 2)


def compile_module(
    module: nn.Module, *, dtype: torch.dtype = torch.float32, exact: bool = True, keep: bool = True
) -> Convolution:
    """`compile_convolution` of a Conv2d, which pads by k // 2 as all of the model's do."""
    assert isinstance(module, nn.Conv2d)
    return compile_convolution(
        module.weight,
        module.bias,
        stride=module.stride[0],
        groups=module.groups,
        dtype=dtype,
        exact=exact,
        keep=keep,
    )


class Piece(NamedTuple):
    """Weight and bias of a convolution that sees some of a layer's inputs."""

    weight: Tensor  # [out, in, k, k]
    bias: Tensor | None

    def compiled(self) -> Convolution:
        return compile_convolution(self.weight, self.bias)


def split_module(module: nn.Module, widths: Sequence[int], bias_with: int) -> list[Piece]:
    """A Conv2d's piece for each group of its input channels of these widths; the layer's result is the sum of theirs.

    The bias goes to number `bias_with`, which is to be computed first. So nothing needs to be concatenated for it.
    """
    assert isinstance(module, nn.Conv2d)
    pieces = torch.split(module.weight.detach(), list(widths), dim=1)
    bias = None if module.bias is None else module.bias.detach()
    return [Piece(piece, bias if n == bias_with else None) for n, piece in enumerate(pieces)]


def gelu_(x: Tensor) -> Tensor:
    """Exact GELU in place; returns x."""
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the channels of a map."""
    rows = x.permute(0, 2, 3, 1)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    return F.layer_norm(rows, norm.normalized_shape, weight, bias, norm.eps).permute(0, 3, 1, 2)


class _PackedConvolution:
    """oneDNN with weights in its own layout and the operation after it fused; CPU, float32 or bfloat16."""

    def __init__(
        self,
        weight: Weights,
        bias: Tensor | None,
        stride: int,
        groups: int,
        dtype: torch.dtype,
        exact: bool,
        keep: bool,
    ) -> None:
        self.kernel, self.stride, self.dtype, self._groups = weight.shape[2], stride, dtype, groups
        self._pad, self._exact, self._keep = self.kernel // 2, exact, keep
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._weight = weight
        self._packed: dict[tuple[int, int], Any] = {}

    def forget(self) -> None:
        """As `mlic_fast.engine.winograd_layers.Packed`."""
        self._packed = {}

    @cached_property
    def _plain(self) -> _PlainConvolution:
        """What serves where packed weights would be multiplied in a shorter format."""
        return _PlainConvolution(self._weight.joined(), self._bias, self.stride, self._groups, self.dtype, True)

    def _weight_for(self, x: Tensor) -> Any:
        # The best layout depends on the size of the map, and weights in another one are converted at every call. In
        # float32 two are enough. In bfloat16 192 channels may be taken as 3 times 64 or as 4 times 48, at oneDNN's
        # discretion, and converting costs more than a strip's products do.
        height, width = x.shape[2:]
        if self.dtype == torch.float32:
            height, width = (2, 2) if height * width < _FEW else _TYPICAL
        packed = self._packed.get((height, width))
        if packed is None:
            size = 1, self._weight.shape[1] * self._groups, height, width
            weight, padding = self._weight.joined().to(self.dtype), [self._pad] * 2
            packed = packed_weight(weight, padding, [self.stride] * 2, self._groups, size)
            if not self._keep:
                return packed
            same = next((one for one in self._packed.values() if same_bytes(one, packed)), None)
            if len(self._packed) >= _MOST_SIZES or (same is None and self.dtype == torch.float32):
                self._packed = {}  # anew, since another thread may be looking at the old ones
            packed = packed if same is None else same
            self._packed[height, width] = packed
        return packed

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor:
        if self._exact and is_lowered(x.device):
            return self._plain(x, gelu=gelu, pad_rows=pad_rows)
        stride, padding = [self.stride] * 2, [self._pad if pad_rows else 0, self._pad]
        return packed_convolution(x, self._weight_for(x), self._bias, padding, stride, self._groups, gelu=gelu)

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        if self._exact and is_lowered(x.device):
            return self._plain.add_to(out, x)
        stride, padding = [self.stride] * 2, [self._pad] * 2
        add_packed_convolution(out, x, self._weight_for(x), self._bias, padding, stride, self._groups)
        return out


class _PlainConvolution:
    """PyTorch's own convolution, on every device."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype, exact: bool
    ) -> None:
        self.kernel, self.stride, self.dtype = weight.shape[2], stride, dtype
        self._groups, self._exact = groups, exact
        self._pad = self.kernel // 2
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)

    def forget(self) -> None:
        """Nothing: these are the weights themselves."""

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor:
        stride, padding = [self.stride] * 2, [self._pad if pad_rows else 0, self._pad]
        compute = conv2d if self._exact else _convolve
        out = compute(x, self._weight, self._bias, stride, padding, self._groups).contiguous(memory_format=LAYOUT)
        return gelu_(out) if gelu else out

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        return out.add_(self(x))


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


def has_bfloat16_unit(device: torch.device) -> bool:
    """Whether the device has a matrix unit that multiplies bfloat16, and PyTorch uses it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return has_packed_convolutions() and has_amx()
