# SPDX-License-Identifier: Apache-2.0
"""Coding steps of one pass: symbols, indexes and decoded values at one colour, residual prediction added.

The steps have no gradients: training estimates rates instead of coding (see Estimator). None of them waits
for a device. What they met comes back as flags, to be fetched with the symbols or indexes and handed to
`check_flags`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlic_fast.checkerboard import Pass
from mlic_fast.compute import backend
from mlic_fast.compute.nonfinite import non_finite
from mlic_fast.errors import BackendError, CodingError, ConfigError, DeviceError
from mlic_fast.kernels import coding_steps as kernels


def encode_step(
    values: Tensor,
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    colour: Pass,
    table: Tensor,
    bound: Tensor,
    *,
    clear: bool,
    wide: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise y about its means at one colour, find the symbols' table indexes, write the decoded values.

    values: [B, C, h, w], overwritten at the colour's positions with symbol + mean; at the others with
        zeros if `clear`, else left as it is.
    y, scales, means: [B, C, h, w], any strides, read at the colour's positions only.
    table: float32 [rows], increasing, at most 256 rows; bound: float32 [1].
    Maps are float32 (the torch backend takes float64 as well).
    Returns symbols [B, C, h, w/2] in coding order, int16 (int32 if `wide`), indexes uint8 [B, C, h, w/2] and
    flags uint8. If `check_flags` finds that a symbol is too large for int16, the step must be
    done again with `wide`. Symbols beyond ±2³⁰ saturate there, which no coder accepts.
    Indexes are those of CompressAI's GaussianConditional.build_indexes, on every backend.
    Raises CodingError for shapes or tables that do not fit, ConfigError for empty maps and for `values` whose
    elements share memory, DeviceError for tensors on several devices, BackendError for dtypes the backend has
    no kernel for.
    """
    chosen = _checked(values=values, y=y, scales=scales, means=means, table=table, bound=bound)
    _check_written(values)
    arguments = (values, y, scales, means, table, bound, colour.value, clear, wide)
    if chosen == "torch":
        return kernels.encode_step_ref(*arguments)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.mlic_fast.encode_step(*arguments)
    return result


def decode_indexes(scales: Tensor, means: Tensor, colour: Pass, table: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Table indexes of one colour in coding order, uint8 [B, C, h, w/2], and flags as in `encode_step`.

    Means are read only to learn before decoding whether they are finite. Raises as `encode_step` does.
    """
    chosen = _checked(scales=scales, means=means, table=table, bound=bound)
    if chosen == "torch":
        return kernels.decode_indexes_ref(scales, means, table, bound, colour.value)
    result: tuple[Tensor, Tensor] = torch.ops.mlic_fast.decode_indexes(scales, means, table, bound, colour.value)
    return result


def decode_values(values: Tensor, symbols: Tensor, means: Tensor, colour: Pass, *, clear: bool) -> None:
    """Write symbols + means to `values` [B, C, h, w] at one colour; `clear` as in `encode_step`.

    symbols: int16 or int32 [B, C, h, w/2] in coding order, contiguous; means: [B, C, h, w].
    Raises as `encode_step` does.
    """
    chosen = _checked(values=values, means=means)
    _check_written(values)
    batch, channels, height, width = means.shape
    if symbols.shape != (batch, channels, height, width // 2) or symbols.dtype not in (torch.int16, torch.int32):
        raise CodingError(
            f"symbols must be int16 or int32 {[batch, channels, height, width // 2]}, "
            f"not {symbols.dtype} {list(symbols.shape)}"
        )
    _check_devices(means=means, symbols=symbols)
    if chosen == "torch":
        kernels.decode_values_ref(values, symbols, means, colour.value, clear)
    else:
        torch.ops.mlic_fast.decode_values(values, symbols.contiguous(), means, colour.value, clear)


def residual_step(values: Tensor, logits: Tensor, colour: Pass) -> None:
    """Add 0.5·tanh(logits) to `values` at one colour, in place; both [B, C, h, w], any strides.

    Raises as `encode_step` does.
    """
    chosen = _checked(values=values, logits=logits)
    _check_written(values)
    if chosen == "torch":
        kernels.residual_step_ref(values, logits, colour.value)
    else:
        torch.ops.mlic_fast.residual_step(values, logits, colour.value)


def check_flags(flags: Tensor) -> bool:
    """Whether a symbol was too large for int16.

    flags: as a step returned them; best on the CPU, since reading them elsewhere waits for the device.
    Raises NonFiniteError if a scale, a mean, or y − mean was NaN or infinite.
    """
    found = int(np.bitwise_or.reduce(flags.cpu().numpy()))
    if found & (kernels.BAD_SCALE | kernels.BAD_VALUE):
        what = "scales" if found & kernels.BAD_SCALE else "latents and means"
        raise non_finite(what)
    return bool(found & kernels.LARGE_SYMBOL)


def _checked(table: Tensor | None = None, bound: Tensor | None = None, **maps: Tensor) -> backend.Backend:
    """The backend for these maps, once their shapes, devices and dtypes are found to fit."""
    first = next(iter(maps.values()))
    shapes = {name: list(x.shape) for name, x in maps.items()}
    if first.dim() != 4 or any(x.shape != first.shape for x in maps.values()) or first.shape[3] % 2:
        raise CodingError(f"maps must be [B, C, h, w] of one shape, w even, not {shapes}")
    if 0 in first.shape:
        raise ConfigError(f"coding steps: maps must not be empty, and these are {list(first.shape)}")
    tensors = dict(maps)
    if table is not None and bound is not None:
        if table.dim() != 1 or not 1 <= len(table) <= 256 or bound.numel() != 1:
            raise CodingError(
                f"the scale table must have 1 to 256 entries and one bound, not {list(table.shape)} and "
                f"{list(bound.shape)}; a model without tables needs update()"
            )
        tensors |= {"table": table, "bound": bound}
    _check_devices(**tensors)
    chosen = backend.choose(first)
    if chosen == "torch":
        return chosen
    if any(x.dtype != torch.float32 for x in tensors.values()):
        raise BackendError(
            f"backend {chosen}: coding steps take float32, not {[str(x.dtype) for x in tensors.values()]}; "
            f"set {backend.VARIABLE}=torch for other formats"
        )
    if first.numel() >= 2**31:
        raise BackendError(
            f"backend {chosen}: a slice of {first.numel()} values is too large; code fewer images at once"
        )
    return chosen


def _check_devices(**tensors: Tensor) -> None:
    if len({x.device for x in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {x.device}" for name, x in tensors.items())
        raise DeviceError(f"coding steps: tensors must lie on one device, not {found}; move the model or the maps")


def _check_written(values: Tensor) -> None:
    """Refuse to write where two elements are one, as those of an expanded map are."""
    if any(stride == 0 and size > 1 for size, stride in zip(values.shape, values.stride(), strict=True)):
        raise ConfigError(
            f"coding steps: values {list(values.shape)} with strides {list(values.stride())} are an expanded tensor "
            "and cannot be written; make a copy of it"
        )


# ---- operators of torch.library; they run on the backend that is chosen when they are called ----


@torch.library.custom_op("mlic_fast::encode_step", mutates_args=("values",))
def _encode_step(
    values: Tensor,
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    first: int,
    clear: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = backend.choose(values)
    if chosen == "triton":
        return kernels.encode_step(values, y, scales, means, table, bound, first, clear, wide)
    if chosen == "torch":
        return kernels.encode_step_ref(values, y, scales, means, table, bound, first, clear, wide)
    symbols = kernels.packed_like(y, torch.int32 if wide else torch.int16)
    indexes = kernels.packed_like(y, torch.uint8)
    flags = kernels.flags_like(y)
    table = table.contiguous()
    backend.cpu_kernels.encode_step(
        _map(values),
        _map(y),
        _map(scales),
        _map(means),
        tuple(y.shape),
        _address(table, torch.float32),
        len(table),
        _address(bound, torch.float32),
        _address(symbols, symbols.dtype),
        _address(indexes, torch.uint8),
        _address(flags, torch.uint8),
        first,
        clear,
        wide,
        torch.get_num_threads(),
    )
    return symbols, indexes, flags


@_encode_step.register_fake
def _(
    values: Tensor,
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    first: int,
    clear: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        kernels.packed_like(y, torch.int32 if wide else torch.int16),
        kernels.packed_like(y, torch.uint8),
        kernels.flags_like(y),
    )


@torch.library.custom_op("mlic_fast::decode_indexes", mutates_args=())
def _decode_indexes(scales: Tensor, means: Tensor, table: Tensor, bound: Tensor, first: int) -> tuple[Tensor, Tensor]:
    chosen = backend.choose(scales)
    if chosen == "triton":
        return kernels.decode_indexes(scales, means, table, bound, first)
    if chosen == "torch":
        return kernels.decode_indexes_ref(scales, means, table, bound, first)
    indexes = kernels.packed_like(scales, torch.uint8)
    flags = kernels.flags_like(scales)
    table = table.contiguous()
    backend.cpu_kernels.decode_indexes(
        _map(scales),
        _map(means),
        tuple(scales.shape),
        _address(table, torch.float32),
        len(table),
        _address(bound, torch.float32),
        _address(indexes, torch.uint8),
        _address(flags, torch.uint8),
        first,
        torch.get_num_threads(),
    )
    return indexes, flags


@_decode_indexes.register_fake
def _(scales: Tensor, means: Tensor, table: Tensor, bound: Tensor, first: int) -> tuple[Tensor, Tensor]:
    return kernels.packed_like(scales, torch.uint8), kernels.flags_like(scales)


@torch.library.custom_op("mlic_fast::decode_values", mutates_args=("values",))
def _decode_values(values: Tensor, symbols: Tensor, means: Tensor, first: int, clear: bool) -> None:
    chosen = backend.choose(values)
    if chosen == "triton":
        kernels.decode_values(values, symbols, means, first, clear)
    elif chosen == "torch":
        kernels.decode_values_ref(values, symbols, means, first, clear)
    else:
        wide = symbols.dtype == torch.int32
        backend.cpu_kernels.decode_values(
            _map(values),
            _address(symbols, torch.int32 if wide else torch.int16),
            wide,
            _map(means),
            tuple(means.shape),
            first,
            clear,
            torch.get_num_threads(),
        )


@_decode_values.register_fake
def _(values: Tensor, symbols: Tensor, means: Tensor, first: int, clear: bool) -> None:
    return None


@torch.library.custom_op("mlic_fast::residual_step", mutates_args=("values",))
def _residual_step(values: Tensor, logits: Tensor, first: int) -> None:
    chosen = backend.choose(values)
    if chosen == "triton":
        kernels.residual_step(values, logits, first)
    elif chosen == "torch":
        kernels.residual_step_ref(values, logits, first)
    else:
        backend.cpu_kernels.residual_step(
            _map(values), _map(logits), tuple(values.shape), first, torch.get_num_threads()
        )


@_residual_step.register_fake
def _(values: Tensor, logits: Tensor, first: int) -> None:
    return None


def _map(x: Tensor) -> tuple[int, int, int, int, int]:
    """Address and strides (in elements) of a map [B, C, h, w]. Raises BackendError unless float32 on the CPU."""
    return _address(x, torch.float32, dense=False), x.stride(0), x.stride(1), x.stride(2), x.stride(3)


def _address(x: Tensor, dtype: torch.dtype, *, dense: bool = True) -> int:
    """Where x begins, once it is known to be what the C++ kernel takes it for; BackendError if it is not."""
    if x.dtype != dtype or x.device.type != "cpu" or (dense and not x.is_contiguous()):
        raise BackendError(
            f"coding steps: a kernel takes {dtype} on the CPU, packed tensors contiguous, not {x.dtype} on {x.device} "
            f"with strides {x.stride()}"
        )
    return x.data_ptr()
