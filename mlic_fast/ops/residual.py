# SPDX-License-Identifier: Apache-2.0
"""Residual addition: what the latent residual prediction gives is added to the decoded values of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity
from mlic_fast.compute import backend
from mlic_fast.errors import BackendError, CodingError, ConfigError, DeviceError
from mlic_fast.kernels import residual as kernels
from mlic_fast.ops.operators import operator


def add_residual(values: Tensor, logits: Tensor, parity: Parity) -> None:
    """Add 0.5·tanh(logits) to values at one parity, in place; both [B, C, h, w], any strides, w even. No gradients.

    Kernels take float32. Raises CodingError for shapes that do not fit, ConfigError for empty maps and for `values`
    whose elements share memory, DeviceError for tensors on two devices, BackendError for a dtype that the backend has
    no kernel for.
    """
    chosen = _checked(values, logits)
    if chosen == "torch":
        kernels.add_residual_ref(values, logits, parity.value)
    else:
        torch.ops.mlic_fast.add_residual(values, logits, parity.value, chosen)


def _checked(values: Tensor, logits: Tensor) -> backend.Backend:
    """The backend for these maps, once their shapes, devices and dtypes are found to fit."""
    if values.dim() != 4 or logits.shape != values.shape or values.shape[3] % 2:
        raise CodingError(
            f"residual: values and logits must be [B, C, h, w] of one shape, w even, not {list(values.shape)} and "
            f"{list(logits.shape)}"
        )
    if 0 in values.shape:
        raise ConfigError(f"residual: maps must not be empty, and these are {list(values.shape)}")
    if values.device != logits.device:
        raise DeviceError(
            f"residual: values lie on {values.device}, logits on {logits.device}: move the model or the maps"
        )
    if any(stride == 0 and size > 1 for size, stride in zip(values.shape, values.stride(), strict=True)):
        raise ConfigError(
            f"residual: values {list(values.shape)} with strides {list(values.stride())} are an expanded tensor and "
            "cannot be written; make a copy of it"
        )
    chosen = backend.choose(values)
    if chosen == "torch":
        return chosen
    if values.dtype != torch.float32 or logits.dtype != torch.float32:
        raise BackendError(
            f"backend {chosen}: residual takes float32, not {values.dtype} and {logits.dtype}; "
            f"set {backend.VARIABLE}=torch for other formats"
        )
    if values.numel() >= 2**31:
        raise BackendError(
            f"backend {chosen}: a slice of {values.numel()} values is too large; code fewer images at once"
        )
    return chosen


@operator("add_residual", mutates=("values",))
def _add_residual(values: Tensor, logits: Tensor, first: int, chosen: str) -> None:
    if chosen == "triton":
        kernels.add_residual(values, logits, first)
        return
    for x in (values, logits):
        if x.device.type != "cpu" or x.dtype != torch.float32:
            raise BackendError(f"residual: the kernel takes float32 on the CPU, not {x.dtype} on {x.device}")
    backend.cpu_kernels.add_residual(
        (values.data_ptr(), *values.stride()),
        (logits.data_ptr(), *logits.stride()),
        tuple(values.shape),
        first,
        torch.get_num_threads(),
    )


@_add_residual.register_fake
def _(values: Tensor, logits: Tensor, first: int, chosen: str) -> None:
    return None
