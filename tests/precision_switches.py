# SPDX-License-Identifier: Apache-2.0
"""PyTorch's switches that may shorten float32 arithmetic on a CPU, and hardware that does what they permit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Statements that set them, by name.
SWITCHES = {
    "high": "set_float32_matmul_precision('high')",
    "medium": "set_float32_matmul_precision('medium')",
    "all": "backends.fp32_precision = 'bf16'",
    "oneDNN": "backends.mkldnn.fp32_precision = 'bf16'",
    "oneDNN products": "backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "oneDNN products in TF32": "backends.mkldnn.matmul.fp32_precision = 'tf32'",
    "oneDNN convolutions": "backends.mkldnn.conv.fp32_precision = 'bf16'",
    "oneDNN recurrent": "backends.mkldnn.rnn.fp32_precision = 'bf16'",
}

# Switches that every release has.
OLD = ["high", "medium"]


@contextmanager
def switched(name: str) -> Iterator[None]:
    """Within the block, one of PyTorch's switches is on."""
    if name not in OLD and not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("this PyTorch has no such switch")
    before = [(holder, holder.fp32_precision) for holder in _holders()]
    precision_before = torch.get_float32_matmul_precision()
    exec(f"torch.{SWITCHES[name]}", {"torch": torch})
    try:
        yield
    finally:
        for holder, value in before:
            holder.fp32_precision = value
        torch.set_float32_matmul_precision(precision_before)


def _holders() -> list[Any]:
    """What has a switch of its own, where this PyTorch has such."""
    mkldnn = torch.backends.mkldnn
    places = [torch.backends, *(getattr(mkldnn, operation, None) for operation in ("matmul", "conv", "rnn"))]
    return [place for place in places if hasattr(place, "fp32_precision")]


def permitted() -> bool:
    """Whether any switch is on."""
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return True
    except RuntimeError:  # which PyTorch refuses to tell beside a switch of the newer kind
        return True
    return any(place.fp32_precision in ("bf16", "tf32") for place in _holders())


class ObedientHardware(TorchDispatchMode):
    """Computes float32 products and convolutions in bfloat16, as processors with AMX do where a switch permits it.

    They compute small convolutions as matrix products, so that any switch reaches any operation. Operators are known by
    their names, in whichever of PyTorch's libraries they are.
    """

    _PRODUCT = re.compile(
        r"(^|_)(mm|bmm|addmm|baddbmm|addbmm|mv|addmv|addr|dot|vdot|inner|matmul|linear|einsum|cdist)(_|$)"
        r"|convolution|(^|_)conv\d?d|depthwise|attention|(^|_)(rnn|lstm|gru)(_|$)"
    )

    def __init__(self) -> None:
        super().__init__()
        self.shortened = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = "" if func.namespace == "mlic_fast" else func.overloadpacket.__name__  # our kernels obey nobody
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if self._PRODUCT.search(name) and any(tensor.dtype == torch.float32 for tensor in tensors) and permitted():
            self.shortened += 1
            # the map that is written to stays as it is, and packed weights cannot be rounded
            start = 1 if name.endswith("_pointwise_") else 0
            args = [*args[:start], *(self._shorten(argument) for argument in args[start:])]
            kwargs = {key: value if key == "out" else self._shorten(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    @staticmethod
    def _shorten(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor) and argument.dtype == torch.float32 and not argument.is_mkldnn:
            return argument.bfloat16().float()
        return argument
