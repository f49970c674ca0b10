# SPDX-License-Identifier: Apache-2.0
"""What follows a convolution without bias, in one launch instead of three.

    x ← f(x + bias)             f: nothing, or the exact GELU  v·(1 + erf(v / √2)) / 2
    other ← other + (x + bias)

x, other [B, C, H, W], channels-last and dense, float32, bfloat16 or float16; bias [C] in the type of x. Computes in
float32. Called by mlic_fast.engine.gpu.layers.

No floating-point contraction: the entropy path's scales pass through here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute.triton_language import HAS_TRITON, tl, triton

BLOCK = 1024
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _bias_epilogue_kernel(
    out_ptr,
    x_ptr,
    bias_ptr,
    n,
    channels,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + at % channels, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ADD:
        x += tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=mask)


def bias_epilogue(out: Tensor, x: Tensor, bias: Tensor | None, gelu: bool, add: bool) -> None:
    """Writes f(x + bias) to `out`, or adds it to `out` if `add`.

    out, x: [B, C, H, W] of one shape, channels-last and dense; they may be the same. bias: [C].
    """
    with torch.cuda.device_of(x):
        _bias_epilogue_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            out,
            x,
            x if bias is None else bias,
            x.numel(),
            x.shape[1],
            BIAS=bias is not None,
            GELU=gelu,
            ADD=add,
            BLOCK=BLOCK,
            **_OPTIONS,
        )


def bias_epilogue_ref(out: Tensor, x: Tensor, bias: Tensor | None, gelu: bool, add: bool) -> None:
    """Plain twin of `bias_epilogue`, in float32."""
    result = x.float() if bias is None else x.float() + bias.float()[:, None, None]
    if gelu:
        result = F.gelu(result)
    out.copy_(out + result if add else result)


def _aot(dtype: str, **constants: bool) -> tuple[Any, ...]:
    known = {**constants, "BIAS": True, "BLOCK": BLOCK}
    if not HAS_TRITON:
        return _bias_epilogue_kernel, {}, known, {}
    kinds = {
        name: dtype if name.endswith("_ptr") else "i32" for name in _bias_epilogue_kernel.arg_names if name not in known
    }
    return _bias_epilogue_kernel, kinds, known, _OPTIONS


AOT_CONFIGS = [
    _aot(dtype, GELU=gelu, ADD=add)
    for dtype in ("*fp32", "*bf16")
    for gelu, add in ((False, False), (True, False), (False, True))
]
