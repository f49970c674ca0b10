# SPDX-License-Identifier: Apache-2.0
"""Generalised divisive normalisation (GDN) and its inverse, with the residual addition and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlic_fast import backend
from mlic_fast.errors import BackendError
from mlic_fast.kernels import gdn as kernels

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gdn(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """x / sqrt(beta + gamma·x²) + residual, or x·sqrt(beta + gamma·x²) + residual if `inverse`.

    x, residual: [B, C, H, W] of one dtype: float32, bfloat16 or float16 (any that PyTorch can convolve on the torch
        backend). Contiguous and channels-last maps are read as they are, others are copied first.
    beta: [C]; gamma: [C, C], row o holding the weights of channel o's norm; both after CompressAI's
        re-parametrisation, positive.
    Returns [B, C, H, W] in the dtype and layout of x. Differentiable in all four tensors; of the
    activations only x is kept for that. Sums are in float32.
    Raises BackendError for shapes or dtypes that do not fit.
    """
    channels = x.shape[1] if x.dim() == 4 else -1
    if channels < 1 or beta.shape != (channels,) or gamma.shape != (channels, channels):
        raise BackendError(
            f"gdn takes x [B, C, H, W], beta [C] and gamma [C, C], "
            f"not {list(x.shape)}, {list(beta.shape)} and {list(gamma.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise BackendError(f"gdn: the residual must have the shape of x {list(x.shape)}, not {list(residual.shape)}")
    chosen = backend.choose(x)
    if chosen == "torch":
        result: Tensor = kernels.gdn_ref(x, beta, gamma, residual, inverse)
        return result
    if x.dtype not in _DTYPES:
        raise BackendError(f"backend {chosen}: gdn takes float32, bfloat16 or float16, not {x.dtype}")
    if x.numel() // max(len(x), 1) >= 2**31:
        raise BackendError(f"backend {chosen}: gdn takes maps of less than 2³¹ values an image, not {list(x.shape)}")
    if residual is not None:
        residual = residual.to(x.dtype)
    result = torch.ops.mlic_fast.gdn(x, beta.float(), gamma.float(), residual, inverse)
    return result


@torch.library.custom_op("mlic_fast::gdn", mutates_args=())
def _gdn(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    x = _dense(x)
    residual = None if residual is None else _dense(residual)
    beta, gamma = beta.contiguous(), gamma.contiguous()
    chosen = backend.choose(x)
    if chosen == "triton":
        result: Tensor = kernels.gdn(x, beta, gamma, residual, inverse)
        return result
    if chosen == "torch" or x.dtype != torch.float32:
        # oneDNN's convolutions of 16-bit maps have instructions of their own
        result = kernels.gdn_ref(x, beta.to(x.dtype), gamma.to(x.dtype), residual, inverse)
        return result
    if residual is not None and _channels_last(residual) != _channels_last(x):
        residual = residual.contiguous(memory_format=_format(x))
    y = torch.empty_like(x)
    batch, channels, height, width = x.shape
    backend.cpu_kernels.gdn(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        batch,
        channels,
        height * width,
        _channels_last(x),
        beta.data_ptr(),
        gamma.data_ptr(),
        inverse,
        torch.get_num_threads(),
    )
    return y


@_gdn.register_fake
def _(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    return torch.empty_like(_dense(x))


@torch.library.custom_op("mlic_fast::gdn_backward", mutates_args=())
def _gdn_backward(grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad, x = _dense(grad), _dense(x)
    beta, gamma = beta.contiguous(), gamma.contiguous()
    if backend.choose(x) == "triton":
        result: tuple[Tensor, Tensor, Tensor] = kernels.gdn_backward(grad, x, beta, gamma, inverse)
        return result
    dx, dbeta, dgamma = kernels.gdn_backward_ref(grad.float(), x.float(), beta, gamma, inverse)
    return dx.to(x.dtype), dbeta, dgamma


@_gdn_backward.register_fake
def _(grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(_dense(x)), torch.empty_like(beta), torch.empty_like(gamma)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, beta, gamma, residual, inverse = inputs
    ctx.save_for_backward(x, beta, gamma)
    ctx.inverse, ctx.has_residual = inverse, residual is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
    dx, dbeta, dgamma = torch.ops.mlic_fast.gdn_backward(grad, *ctx.saved_tensors, ctx.inverse)
    return dx, dbeta, dgamma, grad if ctx.has_residual else None, None


_gdn.register_autograd(_backward, setup_context=_setup_context)


def _dense(x: Tensor) -> Tensor:
    """x itself if contiguous or channels-last, else a contiguous copy."""
    if x.is_contiguous() or _channels_last(x):
        return x
    return x.contiguous()


def _channels_last(x: Tensor) -> bool:
    """Whether a dense map is channels-last and nothing else."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _channels_last(x) else torch.contiguous_format
