# SPDX-License-Identifier: Apache-2.0
"""Every call of PyTorch's that is no public interface, in one place.

They have been seen with the release 2.14 alone: no older one that pyproject.toml allows has been tried. Where another
release lacks something that can be done without, the function here says so instead of failing:
`has_packed_convolutions`, `has_amx`, `has_avx512_bf16`, `end_allocation_to`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_PACKED = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")


def convolution_without_tf32(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> Tensor:
    """Zero-padded convolution of x [B, in, H, W] that cuDNN may not compute in TF32, whatever is set elsewhere."""
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


def constant_when_compiled(function: FunctionT) -> FunctionT:
    """Have PyTorch's compiler take the function's result as it is when it compiles.

    torch.compiler.assume_constant_result does the same, and takes two seconds to import the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def fp32_precision_readers(*switches: tuple[str, str]) -> list[Callable[[], str]]:
    """What reads torch.backends.<backend>.<operation>.fp32_precision, for each pair; none before the release 2.9.

    Far faster than the public attributes, which are looked at before every operation.
    """
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    return [] if read is None else [partial(read, backend, operation) for backend, operation in switches]


def has_packed_convolutions() -> bool:
    """Whether this PyTorch has oneDNN and the three operators below."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and all(hasattr(torch.ops.mkldnn, name) for name in _PACKED)


def packed_weight(
    weight: Tensor, padding: list[int], stride: list[int], groups: int, size: tuple[int, int, int, int]
) -> Any:
    """weight [out, in / groups, k, k] in the layout that oneDNN prefers for maps of this size [B, in, H, W]."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], groups, list(size))


def same_bytes(first: Any, second: Any) -> bool:
    """Whether two packed weights are the same in memory; False as well where PyTorch does not tell."""
    operators = torch.ops.mkldnn
    if first.dtype != second.dtype or not all(hasattr(operators, name) for name in ("data_ptr", "_nbytes")):
        return False
    sizes = [operators._nbytes(packed) for packed in (first, second)]
    if sizes[0] != sizes[1]:
        return False
    contents = [
        torch.frombuffer((ctypes.c_char * size).from_address(operators.data_ptr(packed)), dtype=torch.uint8)
        for packed, size in zip((first, second), sizes, strict=True)
    ]
    return torch.equal(*contents)


def packed_convolution(
    x: Tensor, weight: Any, bias: Tensor | None, padding: list[int], stride: list[int], groups: int, *, gelu: bool
) -> Tensor:
    """Convolution of x [B, in, H, W] with packed weights, then exact GELU if `gelu`."""
    after, algorithm = ("gelu", "none") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, [1, 1], groups, after, [], algorithm
    )
    return result


def add_packed_convolution(
    out: Tensor, x: Tensor, weight: Any, bias: Tensor | None, padding: list[int], stride: list[int], groups: int
) -> None:
    """Adds the convolution to `out`, in place."""
    torch.ops.mkldnn._convolution_pointwise_(
        out, x, weight, bias, padding, stride, [1, 1], groups, "add", 1.0, None, [], None
    )


def has_amx() -> bool:
    """Whether the processor has a matrix unit (AMX), as far as PyTorch says."""
    return _processor_has("_is_amx_tile_supported")


def has_avx512_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in vectors, as far as PyTorch says."""
    return _processor_has("_is_avx512_bf16_supported")


def has_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _processor_has(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written to in place; -1 for inference tensors, of which it is not counted."""
    return -1 if tensor.is_inference() else tensor._version


def lerp_each_(values: list[Tensor], towards: list[Tensor], weight: float) -> None:
    """Each value moves in place towards its counterpart."""
    torch._foreach_lerp_(values, towards, weight)


def copy_each_(values: list[Tensor], sources: list[Tensor]) -> None:
    """Each value is overwritten with its source."""
    torch._foreach_copy_(values, sources)


def is_cuda_lost() -> bool:
    """Whether this process was forked from one that had used CUDA, so that it cannot."""
    return bool(torch.cuda._is_in_bad_fork())


def archive_record(path: str | os.PathLike[str], name: str) -> bytes:
    """A record of a checkpoint's zip archive, as PyTorch's own reader finds it. Raises RuntimeError."""
    content: bytes = torch._C.PyTorchFileReader(os.fspath(path)).get_record(name)
    return content


def end_allocation_to(pool: Any) -> None:
    """Let the current CUDA device's allocator leave a pool that a failed recording did not take leave of."""
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
