# SPDX-License-Identifier: Apache-2.0
"""The arithmetic floor: operations that a call executes, counted, and how fast this machine executes them at best.

Counted are the multiplications and additions of convolutions, matrix products, GDN's product with gamma, and
attentions, as they are handed to PyTorch's operators and to the project's own: on maps of the size that they have,
whether all of the result is needed or not. Activations, softmax, copies and the range coder count nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The convolution whose speed is taken for the machine's: 3×3, 192 → 192 channels, the maps of a 768×512 picture at
# a quarter of its resolution.
_CHANNELS, _HEIGHT, _WIDTH = 192, 128, 192

# Side of the local attention's windows.
_WINDOW = 5

# What operators with products are called; one of these that is not known is an error, not a zero.
_SUSPICIOUS = re.compile(
    r"conv(olution)?(?![a-z])|(^|_)(b|add|badd|sp)?(mm|bmm|mv|dot)(_|$)|matmul|linear|attention|gdn|einsum"
)
_NO_PRODUCTS = {"_reorder_convolution_weight", "_reorder_linear_weight"}


def _convolution(arguments: dict[str, Any], out: Tensor) -> int:
    weight = _first(arguments, "weight", "W")
    result = _first(arguments, "other") if out.numel() == 0 else out
    return 2 * result.numel() * weight.numel() // result.shape[1]


def _winograd(arguments: dict[str, Any], out: Tensor) -> int:
    """The products of coefficients; the transforms around them count nothing."""
    pieces, coefficients = arguments["pieces"], arguments["coefficients"]  # of 16 · in · out values
    batch, _, _, width = pieces[0].shape
    height = sum(piece.shape[2] for piece in pieces) - (0 if arguments["pad_rows"] else 2)
    return 2 * batch * -(-height // 2) * (width // 2) * coefficients.numel()


def _product(arguments: dict[str, Any], out: Tensor) -> int:
    left = _first(arguments, "mat1", "batch1", "self", "X", "input")
    return 2 * out.numel() * left.shape[-1]


def _gdn(arguments: dict[str, Any], out: Tensor) -> int:
    return 2 * out.numel() * out.shape[1]


def _local_attention(arguments: dict[str, Any], out: Tensor) -> int:
    qkv = arguments["qkv"]
    batch, channels, height, width = qkv.shape
    C, area = channels // 3, _WINDOW**2
    positions = batch * height * width
    # each product of a query with the keys around it once; for each window the weighted sums, the convolution over
    # them and the projection
    products = positions * (2 * _WINDOW - 1) ** 2 * C
    products += positions // 2 * (area * area * C + area * C * 2 * C + 4 * C * C)
    return 2 * products


def _linear_attention(arguments: dict[str, Any], out: Tensor) -> int:
    batch, channels, height, width = arguments["queries"].shape
    positions = batch * height * width // (2 if arguments["checkerboard"] else 1)
    return 2 * 2 * positions * channels * (channels // arguments["heads"])


def _softmax_attention(arguments: dict[str, Any], out: Tensor) -> int:
    batch, channels, height, width = arguments["queries"].shape
    positions = height * width // (2 if arguments["checkerboard"] else 1)
    return 2 * 2 * batch * positions**2 * channels


_FORMULAS: dict[str, Callable[[dict[str, Any], Tensor], int]] = {
    **dict.fromkeys(("aten::convolution", "aten::_convolution", "mkldnn::_convolution_pointwise"), _convolution),
    "mkldnn::_convolution_pointwise_": _convolution,
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"), _product),
    **dict.fromkeys(("mlic_fast::gdn", "mlic_fast::gdn_"), _gdn),
    "mlic_fast::winograd_conv3x3": _winograd,
    "mlic_fast::local_attention": _local_attention,
    "mlic_fast::linear_attention": _linear_attention,
    "mlic_fast::softmax_attention": _softmax_attention,
}


class Operations(TorchDispatchMode):
    """Within the block, counts this thread's floating-point operations: `executed`, by dtype.

    Raises RuntimeError at an operator that seems to multiply and that it has no formula for. What a CUDA graph
    replays is not seen: count a call that launches its kernels.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.executed: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name: str = func._schema.name
        formula = _FORMULAS.get(name)
        if formula is None:
            with self:  # in inference mode composite operators arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            out = result[0] if isinstance(result, (tuple, list)) else result
            names = [argument.name for argument in func._schema.arguments]
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            if out is None:
                out = next(arguments[argument.name] for argument in func._schema.arguments if argument.is_write)
            self.executed[out.dtype] += formula(arguments, out)
        elif _SUSPICIOUS.search(short := name.partition("::")[2]) and short not in _NO_PRODUCTS:
            raise RuntimeError(f"the operator {name} is not counted: add its formula to {__file__}")
        return result


def convolution(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A call of one large convolution, channels-last, and the operations that it takes."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, _CHANNELS, _HEIGHT, _WIDTH, generator=random).to(device, dtype)
    weight = torch.randn(_CHANNELS, _CHANNELS, 3, 3, generator=random).div_(40).to(device, dtype)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))

    def call() -> Tensor:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return F.conv2d(x, weight, padding=1)

    return call, 2 * 9 * _CHANNELS**2 * _HEIGHT * _WIDTH


def _first(arguments: dict[str, Any], *names: str) -> Tensor:
    found: Tensor = next(arguments[name] for name in names if name in arguments)
    return found
