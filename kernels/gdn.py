# SPDX-License-Identifier: Apache-2.0
"""Generalised divisive normalisation (Ballé et al. 2016, arXiv 1511.06281) with the residual addition.

    norm[o] = beta[o] + Σ_k gamma[o, k]·x[k]²        at every position
    y = x·norm^(−½) + residual                       inverse: y = x·norm^(+½) + residual

x, y, residual [B, C, H, W], contiguous or channels-last, float32, bfloat16 or float16; beta [C] and
gamma [C, C] float32, after CompressAI's re-parametrisation. Fuses square, 1×1 convolution, root, product
and addition: a program takes a block of positions with all their channels, so activations travel from
and to memory once. Sums are in float32; products with gamma in three-way split TF32 for float32 maps and in
TF32 for the others, which lies below their own rounding and cannot overflow as squares in float16 do.

Backward, with g the gradient of y and u = g·x·d(norm^∓½)/d(norm): norm is computed again (1st launch: u, and
g·norm^∓½), dx = g·norm^∓½ + 2x·Σ_o gamma[o, k]·u[o] (2nd), dgamma[o, k] = Σ u[o]·x[k]² and dbeta[o] = Σ u[o] over
all positions (3rd, in chunks that are summed in a fixed order). Only x is kept from the forward pass.

Called by mlic_fast.ops.gdn.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute.triton_language import HAS_TRITON, tl, triton

# Blocks of 32 channels and 64 positions: larger ones spill registers once products are split in three.
BLOCK_P = 64  # positions a program
CHUNK = 4096  # positions in one partial sum of dgamma
SUMMED_P = 32  # of them at once: that kernel sums over positions, and spills with 64
_OPTIONS = {"num_warps": 8, "num_stages": 2}
# Positions that the plain backward takes at once: its intermediate maps stay in the cache.
PLAIN_BLOCK = 1024


@triton.jit
def _squares(x_ptr, at_p, channels, stride_xc, k, in_p, BLOCK_C: tl.constexpr):
    """x² in float32 of a block of channels that begins at k, [BLOCK_C, BLOCK_P]."""
    c = k + tl.arange(0, BLOCK_C)
    mask = (c < channels)[:, None] & in_p[None, :]
    x = tl.load(x_ptr + c[:, None] * stride_xc + at_p[None, :], mask=mask, other=0.0).to(tl.float32)
    return x * x


@triton.jit
def _norm(
    x_ptr,
    beta_ptr,
    gamma_ptr,
    at_p,
    channels,
    stride_xc,
    o,
    in_p,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """norm of a block of channels that begins at o, [BLOCK_C, BLOCK_P]; 1 where there is no channel."""
    out = o + tl.arange(0, BLOCK_C)
    beta = tl.load(beta_ptr + out, mask=out < channels, other=1.0)
    total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for k in range(0, channels, BLOCK_C):
        c = k + tl.arange(0, BLOCK_C)
        mask = (out < channels)[:, None] & (c < channels)[None, :]
        gamma = tl.load(gamma_ptr + out[:, None] * channels + c[None, :], mask=mask, other=0.0)
        squares = _squares(x_ptr, at_p, channels, stride_xc, k, in_p, BLOCK_C)
        total = tl.dot(gamma, squares, total, input_precision=PRECISION)
    return total + beta[:, None]


@triton.jit
def _gdn_kernel(
    y_ptr,
    x_ptr,
    beta_ptr,
    gamma_ptr,
    residual_ptr,
    channels,
    positions,
    stride_yc,
    stride_yp,
    stride_xc,
    stride_xp,
    stride_rc,
    stride_rp,
    INVERSE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < positions
    image = tl.program_id(1).to(tl.int64) * channels * positions
    y_ptr, x_ptr, residual_ptr = y_ptr + image, x_ptr + image, residual_ptr + image
    for o in range(0, channels, BLOCK_C):
        norm = _norm(
            x_ptr, beta_ptr, gamma_ptr, p * stride_xp, channels, stride_xc, o, in_p, BLOCK_C, BLOCK_P, PRECISION
        )
        c = o + tl.arange(0, BLOCK_C)
        mask = (c < channels)[:, None] & in_p[None, :]
        x = tl.load(x_ptr + c[:, None] * stride_xc + p[None, :] * stride_xp, mask=mask, other=0.0).to(tl.float32)
        y = x * (tl.sqrt(norm) if INVERSE else tl.rsqrt(norm))
        if RESIDUAL:
            at = c[:, None] * stride_rc + p[None, :] * stride_rp
            y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        at = c[:, None] * stride_yc + p[None, :] * stride_yp
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gdn_norm_grad_kernel(
    grad_ptr,
    x_ptr,
    beta_ptr,
    gamma_ptr,
    u_ptr,
    dx_ptr,
    channels,
    positions,
    stride_gc,
    stride_gp,
    stride_xc,
    stride_xp,
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < positions
    image = tl.program_id(1).to(tl.int64) * channels * positions
    grad_ptr, x_ptr, u_ptr, dx_ptr = grad_ptr + image, x_ptr + image, u_ptr + image, dx_ptr + image
    for o in range(0, channels, BLOCK_C):
        norm = _norm(
            x_ptr, beta_ptr, gamma_ptr, p * stride_xp, channels, stride_xc, o, in_p, BLOCK_C, BLOCK_P, PRECISION
        )
        c = o + tl.arange(0, BLOCK_C)
        mask = (c < channels)[:, None] & in_p[None, :]
        at = c[:, None] * stride_xc + p[None, :] * stride_xp
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        at_grad = c[:, None] * stride_gc + p[None, :] * stride_gp
        grad = tl.load(grad_ptr + at_grad, mask=mask, other=0.0).to(tl.float32)
        if INVERSE:
            root = tl.sqrt(norm)
            u = grad * x * (0.5 / root)
        else:
            root = tl.rsqrt(norm)
            u = grad * x * (-0.5 * root * root * root)
        # u and dx have the layout of x
        tl.store(u_ptr + at, u, mask=mask)
        tl.store(dx_ptr + at, (grad * root).to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gdn_input_grad_kernel(
    x_ptr,
    gamma_ptr,
    u_ptr,
    dx_ptr,
    channels,
    positions,
    stride_xc,
    stride_xp,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < positions
    image = tl.program_id(1).to(tl.int64) * channels * positions
    x_ptr, u_ptr, dx_ptr = x_ptr + image, u_ptr + image, dx_ptr + image
    for k in range(0, channels, BLOCK_C):
        c = k + tl.arange(0, BLOCK_C)
        total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
        for o in range(0, channels, BLOCK_C):
            out = o + tl.arange(0, BLOCK_C)
            weight_mask = (c < channels)[:, None] & (out < channels)[None, :]
            gamma = tl.load(gamma_ptr + out[None, :] * channels + c[:, None], mask=weight_mask, other=0.0)
            at = out[:, None] * stride_xc + p[None, :] * stride_xp
            u = tl.load(u_ptr + at, mask=(out < channels)[:, None] & in_p[None, :], other=0.0)
            total = tl.dot(gamma, u, total, input_precision=PRECISION)
        mask = (c < channels)[:, None] & in_p[None, :]
        at = c[:, None] * stride_xc + p[None, :] * stride_xp
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = tl.load(dx_ptr + at, mask=mask, other=0.0).to(tl.float32) + 2.0 * x * total
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gdn_weight_grad_kernel(
    x_ptr,
    u_ptr,
    dgamma_ptr,
    dbeta_ptr,
    channels,
    positions,
    chunks,
    stride_xc,
    stride_xp,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    image = (part // chunks) * channels * positions
    x_ptr, u_ptr = x_ptr + image, u_ptr + image
    start = ((part % chunks) * CHUNK).to(tl.int32)
    out = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(2) * BLOCK_C
    dgamma = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
    dbeta = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for step in range(0, tl.minimum(CHUNK, positions - start), BLOCK_P):
        p = start + step + tl.arange(0, BLOCK_P)
        in_p = p < positions
        at = out[:, None] * stride_xc + p[None, :] * stride_xp
        u = tl.load(u_ptr + at, mask=(out < channels)[:, None] & in_p[None, :], other=0.0)
        squares = _squares(x_ptr, p * stride_xp, channels, stride_xc, k, in_p, BLOCK_C)
        dgamma = tl.dot(u, tl.trans(squares), dgamma, input_precision=PRECISION)
        dbeta += tl.sum(u, axis=1)
    c = k + tl.arange(0, BLOCK_C)
    dgamma_ptr += part * channels * channels
    tl.store(
        dgamma_ptr + out[:, None] * channels + c[None, :],
        dgamma,
        mask=(out < channels)[:, None] & (c < channels)[None, :],
    )
    if tl.program_id(2) == 0:
        tl.store(dbeta_ptr + part * channels + out, dbeta, mask=out < channels)


def format_of(x: Tensor) -> torch.memory_format:
    """channels_last for maps that are channels-last and nothing else, else contiguous_format."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _strides(x: Tensor) -> tuple[int, int]:
    """Strides from channel to channel and from position to position of a dense map."""
    _, channels, height, width = x.shape
    return (height * width, 1) if x.is_contiguous() else (1, channels)


def _block_c(channels: int) -> int:
    return 32 if channels > 16 else 16


def _precision(x: Tensor) -> str:
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def gdn(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    """Normalised x plus residual, in the layout of x.

    x, residual: [B, C, H, W], each contiguous or channels-last; beta: float32 [C]; gamma: float32 [C, C], contiguous.
    """
    batch, channels, height, width = x.shape
    y = torch.empty_like(x, memory_format=format_of(x))
    grid = (triton.cdiv(height * width, BLOCK_P), batch)
    with torch.cuda.device_of(x):
        _gdn_kernel[grid](
            y,
            x,
            beta,
            gamma,
            x if residual is None else residual,
            channels,
            height * width,
            *_strides(y),
            *_strides(x),
            *_strides(x if residual is None else residual),
            INVERSE=inverse,
            RESIDUAL=residual is not None,
            PRECISION=_precision(x),
            BLOCK_C=_block_c(channels),
            BLOCK_P=BLOCK_P,
            **_OPTIONS,
        )
    return y


def gdn_backward(grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its layout and dtype), beta and gamma (float32) for the gradient of y, a dense map like x."""
    batch, channels, height, width = x.shape
    positions = height * width
    dx = torch.empty_like(x, memory_format=format_of(x))
    u = torch.empty_like(dx, dtype=torch.float32)
    blocks: dict[str, Any] = {"PRECISION": _precision(x), "BLOCK_C": _block_c(channels), "BLOCK_P": BLOCK_P, **_OPTIONS}
    grid = (triton.cdiv(positions, BLOCK_P), batch)
    chunks = triton.cdiv(positions, CHUNK)
    dgamma = torch.empty(batch * chunks, channels, channels, dtype=torch.float32, device=x.device)
    dbeta = torch.empty(batch * chunks, channels, dtype=torch.float32, device=x.device)
    across = triton.cdiv(channels, _block_c(channels))
    with torch.cuda.device_of(x):
        _gdn_norm_grad_kernel[grid](
            grad, x, beta, gamma, u, dx, channels, positions, *_strides(grad), *_strides(x), INVERSE=inverse, **blocks
        )
        _gdn_input_grad_kernel[grid](x, gamma, u, dx, channels, positions, *_strides(x), **blocks)
        blocks["BLOCK_P"] = SUMMED_P
        _gdn_weight_grad_kernel[(batch * chunks, across, across)](
            x, u, dgamma, dbeta, channels, positions, chunks, *_strides(x), CHUNK=CHUNK, **blocks
        )
    return dx, dbeta.sum(0), dgamma.sum(0)


def gdn_ref(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    """Plain twin of `gdn`: CompressAI's operators in their order, in the dtype of x."""
    channels = x.shape[1]
    norm = F.conv2d(x**2, gamma.reshape(channels, channels, 1, 1), beta)
    norm = torch.sqrt(norm) if inverse else torch.rsqrt(norm)
    y = x * norm
    return y if residual is None else y + residual


@torch.no_grad()
def gdn_backward_ref(
    grad: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain twin of `gdn_backward`, in float32 or wider, a block of positions at a time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    beta, gamma, transposed = beta.to(wide)[:, None], gamma.to(wide), gamma.t().to(wide).contiguous()
    dx = torch.empty_like(x, memory_format=format_of(x))
    dbeta, dgamma = beta.new_zeros(len(beta)), gamma.new_zeros(gamma.shape)
    last = format_of(x) == torch.channels_last
    for x_image, grad_image, dx_image in zip(x.flatten(2), grad.flatten(2), dx.flatten(2), strict=True):
        blocks = (maps.split(PLAIN_BLOCK, dim=1) for maps in (x_image, grad_image, dx_image))
        for x_block, grad_block, dx_block in zip(*blocks, strict=True):
            x_wide = x_block.to(wide)
            squares = x_wide * x_wide
            # in the layout of x, so that what is combined with it below is read in one order
            norm = torch.addmm(beta.t(), squares.t(), gamma.t()).t() if last else torch.addmm(beta, gamma, squares)
            root = norm.sqrt_() if inverse else norm.rsqrt_()
            direct = grad_block.to(wide) * root
            u = direct * x_wide  # g·x·root, and then times the rest of the derivative: 1 / (2·norm), below zero for GDN
            root.square_()
            u = u.div_(root).mul_(0.5) if inverse else u.mul_(root).mul_(-0.5)
            dgamma.addmm_(u, squares.t())
            dbeta += u.sum(1)
            product = torch.mm(u.t(), gamma).t() if last else torch.mm(transposed, u)
            dx_block.copy_(direct.addcmul_(product, x_wide, value=2))
    return dx, dbeta, dgamma


def _aot(kernel: Any, dtype: str, last: str, constants: dict[str, Any]) -> tuple[Any, ...]:
    """How one kernel is launched for 192 channels; `last` is the index that lies side by side, c or p."""
    if not HAS_TRITON:
        return kernel, {}, constants, {}
    known = {name: 1 for name in kernel.arg_names if name.startswith("stride_") and name.endswith(last)}
    known |= {"PRECISION": "tf32x3" if dtype == "*fp32" else "tf32", "BLOCK_C": 32, "BLOCK_P": BLOCK_P} | constants
    maps = ("x_ptr", "y_ptr", "residual_ptr", "grad_ptr", "dx_ptr")
    kinds = {
        name: dtype if name in maps else "*fp32" if name.endswith("_ptr") else "i32"
        for name in kernel.arg_names
        if name not in known
    }
    return kernel, kinds, known, _OPTIONS


AOT_CONFIGS = [
    *(
        _aot(_gdn_kernel, dtype, last, {"INVERSE": inverse, "RESIDUAL": True})
        for dtype in ("*fp32", "*bf16")
        for last, inverse in (("p", False), ("c", True))
    ),
    *(
        _aot(kernel, "*fp32", last, constants)
        for last in ("p", "c")
        for kernel, constants in (
            (_gdn_norm_grad_kernel, {"INVERSE": False}),
            (_gdn_input_grad_kernel, {}),
            (_gdn_weight_grad_kernel, {"CHUNK": CHUNK, "BLOCK_P": SUMMED_P}),
        )
    ),
]
