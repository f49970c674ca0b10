# SPDX-License-Identifier: Apache-2.0
"""3×3 convolution by Winograd's F(2×2, 3×3): 16 products for 4 positions instead of 36, with gradients.

For float32 on a CPU, where PyTorch's convolutions run at the speed of the processor's multipliers already: `conv3x3` in
training, `convolve` with weights that were transformed before. With B, G and A as in Lavin and Gray (arXiv 1509.09308),
for each tile of 2×2 positions y = Aᵀ [Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)] A; the sums over channels are 16 matrix products over
all tiles. All entries are 0, 1, −1 or 1/2, so that the result is about as exact as the direct sum. The gradient of x is
such a convolution again; that of the weights is Gᵀ [Σ_tiles (A y' Aᵀ) ⊙ (Bᵀ d B)] G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.ops.conv_of_gelu import conv3x3_of_gelu
from mlic_fast.ops.operators import operator

CHANNELS = 16  # widths are multiples of it
COEFFICIENTS = 16

# Maps with fewer positions than this, batch included, are left to PyTorch: transforming the weights costs too much.
MIN_POSITIONS = 1024

# Of a map [B, C, H, W].
Shape = tuple[int, int, int, int]

# G, from the three weights in a row to four coefficients.
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Convolution of x [B, in, H, W], or of GELU(x), with weight [out, in, 3, 3] and padding 1, plus bias [out].

    Where `fits` says so, by Winograd's method: the result [B, out, H, W] is in channels-last layout then, and x and its
    gradient should be. Elsewhere it is PyTorch's. Differentiable in x, weight and bias; of the activations x alone is
    kept, and GELU(x) computed again.
    """
    result: Tensor
    if fits(x, weight):
        result = torch.ops.mlic_fast.conv3x3(x, weight, bias, gelu)
    elif gelu:
        result = conv3x3_of_gelu(x, weight, bias)
    else:
        result = F.conv2d(x, weight, bias, padding=1)
    return result


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` takes Winograd's method: float32 without autocast on the `cpu` backend, fitting sizes."""
    return (
        x.dtype == weight.dtype == torch.float32
        and on_cpu_kernels(x)
        and weight.shape[2:] == (3, 3)
        and weight.shape[0] % CHANNELS == weight.shape[1] % CHANNELS == 0
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_POSITIONS
    )


def on_cpu_kernels(x: Tensor) -> bool:
    """Whether operations on x take the C++ kernels, and no autocast shortens their numbers."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and backend.choose(x) == "cpu"


def convolve(
    pieces: Sequence[Tensor],
    coefficients: Tensor,
    bias: Tensor | None,
    *,
    pad_rows: bool = True,
    gelu: bool = False,
    factor: int = 1,
    empty: Callable[[Shape], Tensor] | None = None,
) -> Tensor:
    """Convolution with weights that `coefficients_of` transformed, plus bias [out], of a map that comes in pieces.

    pieces: a map [B, in, H, W], or several [1, in, rows, W] that make it up from above to below; float32 on a CPU, in
    and out multiples of 16, W even. pad_rows: whether rows of zeros lie above and below it; columns do always.
    gelu: GELU afterwards, and factor: then the pixel shuffle of outputs [factor, factor, C], C a multiple of 16, both
    in the same pass. empty: makes a channels-last map for the result instead of PyTorch.
    Returns [B, C, H or H − 2, W], height and width times factor, channels-last. No gradients.
    Its plain twin is F.conv2d of the joined pieces and the weights with padding (1 or 0, 1), F.gelu of it, and
    `mlic_fast.engine.layers.shuffle`.
    """
    batch, _, _, width = pieces[0].shape
    rows = sum(piece.shape[2] for piece in pieces) - (0 if pad_rows else 2)
    shape = batch, _outputs(coefficients) // factor**2, rows * factor, width * factor
    y = torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last) if empty is None else empty(shape)
    torch.ops.mlic_fast.winograd_conv3x3(list(pieces), coefficients, bias, pad_rows, gelu, factor, y)
    return y


@operator("winograd_conv3x3", mutates=("y",))
def _winograd_conv3x3(
    pieces: Sequence[Tensor],
    coefficients: Tensor,
    bias: Tensor | None,
    pad_rows: bool,
    gelu: bool,
    factor: int,
    y: Tensor,
) -> None:
    """As `convolve`, to dense channels-last y."""
    pieces = [_last(piece) for piece in pieces]
    bias = None if bias is None else bias.contiguous()
    batch, channels, _, width = pieces[0].shape
    backend.cpu_kernels.winograd_convolve(
        [(piece.data_ptr(), batch * piece.shape[2]) for piece in pieces],
        (batch, sum(piece.shape[2] for piece in pieces), width, channels),
        coefficients.data_ptr(),
        _outputs(coefficients),
        coefficients.shape[3],
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        pad_rows,
        gelu,
        factor,
        torch.get_num_threads(),
    )


@_winograd_conv3x3.register_fake
def _(*_: Any) -> None:
    return None


@operator("conv3x3")
def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return convolve([F.gelu(x) if gelu else x], coefficients_of(weight), bias)


@_conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return _empty(x, weight.shape[0])


@operator("conv3x3_backward")
def _conv3x3_backward(
    grad: Tensor, x: Tensor, weight: Tensor, gelu: bool, needs_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless needed), of the weights and of the bias."""
    grad, argument = _last(grad), _last(x)
    x = F.gelu(argument) if gelu else argument
    out_channels, in_channels = weight.shape[:2]
    total = x.new_empty(COEFFICIENTS, in_channels, out_channels)
    backend.cpu_kernels.winograd_weights(
        x.data_ptr(), _shape(x), grad.data_ptr(), out_channels, total.data_ptr(), torch.get_num_threads()
    )
    weight_grad = (_transform(total).t() @ total.flatten(1)).view(3, 3, in_channels, out_channels).permute(3, 2, 0, 1)
    bias_grad = grad.sum(dim=(0, 2, 3))
    if not needs_x:
        return grad.new_empty(0), weight_grad.contiguous(), bias_grad
    del x  # before the next map of its size
    x_grad = convolve([grad], coefficients_of(weight.flip(2, 3).transpose(0, 1)), None)
    if gelu:
        torch.ops.aten.gelu_backward.grad_input(x_grad, argument, grad_input=x_grad)
    return x_grad, weight_grad.contiguous(), bias_grad


@_conv3x3_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, gelu: bool, needs_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    x_grad = _empty(x, weight.shape[1]) if needs_x else x.new_empty(0)
    return x_grad, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.gelu = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[0]
    x_grad, weight_grad, bias_grad = torch.ops.mlic_fast.conv3x3_backward(grad, x, weight, ctx.gelu, needs_x)
    return x_grad if needs_x else None, weight_grad, bias_grad if ctx.has_bias else None, None


_conv3x3.register_autograd(_backward, setup_context=_setup_context)


def coefficients_of(weight: Tensor) -> Tensor:
    """G g Gᵀ of weights [out, in, 3, 3], what `convolve` takes: [16, out / panel, in, panel]; panel: 32 or 16."""
    out_channels, in_channels = weight.shape[:2]
    panel = 2 * CHANNELS if out_channels % (2 * CHANNELS) == 0 else CHANNELS
    rows = weight.reshape(-1, panel, in_channels, 9).permute(3, 0, 2, 1).reshape(9, -1)
    return (_transform(weight) @ rows).view(COEFFICIENTS, -1, in_channels, panel)


def _outputs(coefficients: Tensor) -> int:
    return coefficients.shape[1] * coefficients.shape[3]


def _transform(like: Tensor) -> Tensor:
    """g → G g Gᵀ as a matrix [16, 9]."""
    g = like.new_tensor(_G)
    return torch.kron(g, g)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height, width, channels


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, channels: int) -> Tensor:
    shape = x.shape[0], channels, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
