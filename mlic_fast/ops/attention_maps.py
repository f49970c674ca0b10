# SPDX-License-Identifier: Apache-2.0
"""What the attentions between positions of a map ask of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.errors import BackendError, ConfigError, DeviceError


def check_maps(name: str, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> None:
    """Three maps [B, D, h, w] of one shape, type and device, with D a multiple of heads; else ConfigError, DeviceError.

    name: of the operation, for the message.
    """
    if not queries.shape == keys.shape == values.shape or queries.dim() != 4 or not queries.numel():
        raise ConfigError(
            f"{name}: queries, keys and values must be three maps [B, D, h, w] of one shape, none of it 0, not "
            f"{list(queries.shape)}, {list(keys.shape)} and {list(values.shape)}"
        )
    if heads < 1 or queries.shape[1] % heads:
        raise ConfigError(f"{name}: {queries.shape[1]} channels do not split into {heads} heads")
    if not queries.dtype == keys.dtype == values.dtype or queries.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"{name}: queries, keys and values must all be float32 or all float64, not {queries.dtype}, {keys.dtype} "
            f"and {values.dtype}; entropy coding needs float32, so switch autocast off around it"
        )
    if not queries.device == keys.device == values.device:
        raise DeviceError(
            f"{name}: queries, keys and values lie on {queries.device}, {keys.device} and {values.device}; "
            "move them to one device"
        )


def check_even(name: str, x: Tensor) -> None:
    """Height and width of x [B, D, h, w] are even, as the checkerboard needs them; else ConfigError."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ConfigError(f"{name}: maps of {x.shape[2]}×{x.shape[3]} positions; both must be even")


def check_kernel_dtype(name: str, x: Tensor, kernels: str) -> None:
    """x is float32; else BackendError. kernels: whose they are, for the message."""
    if x.dtype != torch.float32:
        raise BackendError(f"{name}: {kernels} kernels take float32, not {x.dtype}; use backend torch for it")
