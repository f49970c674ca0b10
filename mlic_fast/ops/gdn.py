# SPDX-License-Identifier: Apache-2.0
"""Generalised divisive normalisation (GDN) and its inverse, with the residual addition and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute.precision import no_autocast
from mlic_fast.errors import BackendError, DeviceError
from mlic_fast.kernels import gdn as kernels
from mlic_fast.ops.operators import operator

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COMPILED_BACKWARD = (torch.float32, torch.bfloat16)


def gdn(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """x / sqrt(beta + gamma·x²) + residual, or x·sqrt(beta + gamma·x²) + residual if `inverse`.

    x, residual: [B, C, H, W]. Contiguous and channels-last maps are read as they are, others are copied first.
        x: float32, bfloat16 or float16 (any that PyTorch can convolve on the torch backend).
    beta: [C]; gamma: [C, C], row o holding the weights of channel o's norm; both after CompressAI's
        re-parametrisation, positive.
    Returns [B, C, H, W] in the dtype of x, whatever that of the others, which are converted: the residual to the
    dtype of x, beta and gamma to that in which the backend multiplies. Autocast makes no difference. The layout is
    that of x where it is contiguous or channels-last. Differentiable in all four tensors; of the activations only x
    is kept for that (on the torch backend, what autograd keeps).
    The backward pass computes the norm again: one product with gamma more than autograd's, for a quarter of its
    memory. The kernels' sums are in float32; those over positions, for beta and gamma, are fixed for a number of
    threads. 16-bit maps on the cpu and torch backends go through PyTorch's convolution on the way forward.
    Raises BackendError for shapes or dtypes that do not fit, DeviceError for tensors on several devices.
    """
    chosen, residual = _checked(x, beta, gamma, residual)
    if chosen == "torch":
        return _plain(x, beta, gamma, residual, inverse)
    result: Tensor = _gdn(x, beta.float(), gamma.float(), residual, inverse, chosen)
    return result


def gdn_(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """`gdn`, whose result takes the place of x, which is returned. No gradients.

    Nothing of the size of a map is allocated on the cpu backend for float32.
    """
    chosen, residual = _checked(x, beta, gamma, residual)
    _gdn_in_place(x, beta.float(), gamma.float(), residual, inverse, chosen)
    return x


def _checked(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None) -> tuple[backend.Backend, Tensor | None]:
    """The backend, and the residual in the dtype of x, once all of them are known to fit together."""
    channels = x.shape[1] if x.dim() == 4 else -1
    if channels < 1 or beta.shape != (channels,) or gamma.shape != (channels, channels):
        raise BackendError(
            f"gdn takes x [B, C, H, W], beta [C] and gamma [C, C], "
            f"not {list(x.shape)}, {list(beta.shape)} and {list(gamma.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise BackendError(f"gdn: the residual must have the shape of x {list(x.shape)}, not {list(residual.shape)}")
    devices = {"x": x.device, "beta": beta.device, "gamma": gamma.device}
    if residual is not None:
        devices["residual"] = residual.device
    if any(device != x.device for device in devices.values()):
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DeviceError(f"gdn: tensors must lie on one device, not {found}")
    chosen = backend.choose(x)
    if chosen != "torch":
        if x.dtype not in _DTYPES:
            raise BackendError(f"backend {chosen}: gdn takes float32, bfloat16 or float16, not {x.dtype}")
        if x.numel() // max(len(x), 1) >= 2**31:
            raise BackendError(
                f"backend {chosen}: gdn takes maps of less than 2³¹ values an image, not {list(x.shape)}"
            )
    return chosen, None if residual is None else residual.to(x.dtype)


def _plain(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    with no_autocast(x.device):
        result: Tensor = kernels.gdn_ref(x, beta.to(x.dtype), gamma.to(x.dtype), residual, inverse)
    return result


@operator("gdn")
def _gdn(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool, chosen: str) -> Tensor:
    x = _dense(x)
    residual = None if residual is None else _dense(residual)
    beta, gamma = beta.contiguous(), gamma.contiguous()
    if chosen == "triton":
        result: Tensor = kernels.gdn(x, beta, gamma, residual, inverse)
        return result
    if chosen == "torch" or x.dtype != torch.float32:
        # oneDNN's convolutions of 16-bit maps have instructions of their own
        return _plain(x, beta, gamma, residual, inverse).contiguous(memory_format=_format(x))
    y = _empty_like(x)
    _compiled(x, beta, gamma, residual, inverse, y)
    return y


@operator("gdn_", mutates=("x",))
def _gdn_in_place(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool, chosen: str) -> None:
    dense = x.is_contiguous(memory_format=_format(x))
    if dense and x.dtype == torch.float32 and chosen == "cpu":
        # each position's channels are read before any of them is written
        _compiled(x, beta.contiguous(), gamma.contiguous(), residual, inverse, x)
    else:
        x.copy_(_gdn(x, beta, gamma, residual, inverse, chosen))


@_gdn_in_place.register_fake
def _(*_: Any) -> None:
    return None


def _compiled(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool, y: Tensor) -> None:
    """Writes y of dense float32 maps of one layout, which may be x itself."""
    layout = _format(x)
    if residual is not None:
        residual = residual.contiguous(memory_format=layout)
    batch, channels, height, width = x.shape
    backend.cpu_kernels.gdn(
        _address(x, layout),
        0 if residual is None else _address(residual, layout),
        _address(y, layout),
        batch,
        channels,
        height * width,
        layout == torch.channels_last,
        _address(beta),
        _address(gamma),
        inverse,
        torch.get_num_threads(),
    )


@_gdn.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _empty_like(x)


@operator("gdn_backward")
def _gdn_backward(
    grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool, chosen: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in its dtype and layout, and of beta and gamma, contiguous."""
    grad, x = _dense(grad), _dense(x)
    beta, gamma = beta.contiguous(), gamma.contiguous()
    if chosen == "triton":
        result: tuple[Tensor, Tensor, Tensor] = kernels.gdn_backward(grad, x, beta, gamma, inverse)
        return result
    if chosen == "cpu" and x.dtype in _COMPILED_BACKWARD:
        return _compiled_backward(grad, x, beta, gamma, inverse)
    with no_autocast(x.device):
        dx, dbeta, dgamma = kernels.gdn_backward_ref(grad, x, beta, gamma, inverse)
    return dx, dbeta, dgamma


def _compiled_backward(
    grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _format(x)
    grad = grad.to(x.dtype).contiguous(memory_format=layout)
    dx, dbeta, dgamma = torch.empty_like(x, memory_format=layout), torch.empty_like(beta), torch.empty_like(gamma)
    batch, channels, height, width = x.shape
    backend.cpu_kernels.gdn_backward(
        _address(grad, layout, x.dtype),
        _address(x, layout, x.dtype),
        _address(dx, layout, x.dtype),
        batch,
        channels,
        height * width,
        layout == torch.channels_last,
        x.dtype == torch.bfloat16,
        _address(beta),
        _address(gamma),
        _address(dbeta),
        _address(dgamma),
        inverse,
        torch.get_num_threads(),
    )
    return dx, dbeta, dgamma


@_gdn_backward.register_fake
def _(grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        _empty_like(x),
        torch.empty_like(beta, memory_format=contiguous),
        torch.empty_like(gamma, memory_format=contiguous),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, beta, gamma, residual, inverse, chosen = inputs
    ctx.save_for_backward(x, beta, gamma)
    ctx.inverse, ctx.chosen, ctx.has_residual = inverse, chosen, residual is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
    dx, dbeta, dgamma = _gdn_backward(grad, *ctx.saved_tensors, ctx.inverse, ctx.chosen)
    return dx, dbeta, dgamma, grad if ctx.has_residual else None, None, None


_gdn.register_autograd(_backward, setup_context=_setup_context)


def _format(x: Tensor) -> torch.memory_format:
    layout: torch.memory_format = kernels.format_of(x)
    return layout


def _dense(x: Tensor) -> Tensor:
    """x itself if contiguous or channels-last, else a contiguous copy."""
    return x.contiguous(memory_format=_format(x))


def _empty_like(x: Tensor) -> Tensor:
    """What an operator returns for x: dense, in its layout."""
    return torch.empty_like(x, memory_format=_format(x))


def _address(
    x: Tensor, layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32
) -> int:
    """Where x begins, once it is known to be what the C++ kernel takes it for.

    Raises BackendError if it is not of this dtype on the CPU in this layout.
    """
    if x.dtype != dtype or x.device.type != "cpu" or not x.is_contiguous(memory_format=layout):
        raise BackendError(
            f"gdn: the kernel takes {str(dtype).removeprefix('torch.')} on the CPU in {layout}, "
            f"not {x.dtype} on {x.device}, strides {x.stride()}"
        )
    return x.data_ptr()
