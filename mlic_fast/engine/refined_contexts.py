# SPDX-License-Identifier: Apache-2.0
"""The contexts that MLICv2 has and MLIC++ has not, compiled: of the hyper-parameters; rotated and reweighted ones.

Called as those of mlic_fast.engine.contexts are. A context of the hyper-parameters is called with these [B, 2M, h, w]
and gives the anchors, packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, fill, keep, pack
from mlic_fast.compute.precision import matmul
from mlic_fast.engine.attention import attend
from mlic_fast.engine.contexts import CompiledInterContext, CompiledIntraContext, bias_of, joined
from mlic_fast.engine.gate import CompiledGate
from mlic_fast.engine.layers import LAYOUT, compile_module, normalised
from mlic_fast.engine.rotation import CompiledRotation
from mlic_fast.nn.hyper_context import HyperContext
from mlic_fast.nn.refined_context import RefinedContext
from mlic_fast.nn.reweighting import Reweighting


class CompiledHyperContext:
    """Hyper-parameters [B, 2M, h, w] → anchors [B, 2C, h, w/2]."""

    def __init__(self, module: HyperContext) -> None:
        self._heads = module.heads
        parts = (module.queries, module.keys)
        self._point, self._depthwise = (joined([part[n] for part in parts]) for n in (0, 1))
        # what the 1×1 convolutions make of a position that is set to zero
        self._of_zero = [bias_of(part[0]) for part in parts]
        self._values = [compile_module(layer) for layer in module.hyper_values]
        self._projection, self._gate = compile_module(module.proj), CompiledGate(module.gate.net)

    def __call__(self, hyper: Tensor) -> Tensor:
        hyper = hyper.chunk(2, dim=1)[0].contiguous(memory_format=LAYOUT)
        channels = hyper.shape[1]
        points = self._point(hyper)
        point, depthwise = self._values
        values = depthwise(point(hyper))
        total = torch.zeros_like(values)
        for asking, asked in ((Parity.ANCHOR, Parity.NONANCHOR), (Parity.NONANCHOR, Parity.ANCHOR)):
            both = points.clone()
            fill(both[:, :channels], self._of_zero[0], asked)
            fill(both[:, channels:], self._of_zero[1], asking)
            queries, keys = self._depthwise(both).chunk(2, dim=1)
            total += attend(queries, keys, keep(values, asked), self._heads, "linear attention")
            del both, queries, keys
        context = self._projection(total)
        return self._gate.add_to(pack(context, Parity.ANCHOR, LAYOUT), context, Parity.ANCHOR)


class CompiledReweighting:
    """A context [B, D, h, w] → the same shape, or packed.

    Queries and keys are not computed: their products are those of the normalised map with itself, [D, D] for all
    positions, between small matrices. So are values and their projection one product.
    """

    def __init__(self, module: Reweighting) -> None:
        self._norm, self._out_norm = module.norm, module.out_norm
        self._queries, self._keys, self._values, self._proj = (
            torch.cat([layer.get_parameter("weight").detach()[:, :, 0, 0], bias_of(layer)[:, None]], dim=1).double()
            for layer in (module.queries, module.keys, module.values, module.proj)
        )  # [D, D + 1], bias last
        self._gate = CompiledGate(module.gate.net)

    def __call__(self, x: Tensor, parity: Parity | None = None) -> Tensor:
        """parity: give these positions alone, packed [B, D, h, w/2]."""
        batch, channels, height, width = x.shape
        rows = normalised(x, self._norm).permute(0, 2, 3, 1).reshape(batch, -1, channels)  # [B, positions, D]
        matrix, bias = self._mixing(rows)
        mixed = matmul(rows, matrix.transpose(1, 2)).add_(bias[:, None])
        out = normalised(mixed.view(batch, height, width, channels).permute(0, 3, 1, 2), self._out_norm)
        del rows, mixed
        total = x + out if parity is None else pack(x, parity, LAYOUT).add_(pack(out, parity, LAYOUT))
        return self._gate.add_to(total, out, parity)

    def _mixing(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What a position's normalised channels are multiplied with, [B, D, D], and what is added, [B, D]."""
        wide, count = rows.double(), rows.shape[1]
        sums = wide.sum(dim=1, keepdim=True)
        products = torch.cat([torch.matmul(wide.transpose(1, 2), wide), sums], dim=1)  # [B, D + 1, D]
        ones = torch.full_like(sums[:, :, :1], count)
        products = torch.cat([products, torch.cat([sums.transpose(1, 2), ones], dim=1)], dim=2)
        scores = self._queries @ products @ self._keys.T * count**-0.5
        mixed = self._proj[:, :-1] @ (torch.softmax(scores, dim=2) @ self._values)  # [B, D, D + 1]
        return mixed[:, :, :-1].to(rows.dtype), (mixed[:, :, -1] + self._proj[:, -1]).to(rows.dtype)


class CompiledRefinedInterContext:
    """Decoded slices [B, iC, h, w] → [B, 2C, h, w]."""

    def __init__(self, module: RefinedContext) -> None:
        self._context = CompiledInterContext(module.context)
        self._rotation = None if module.rope is None else CompiledRotation(module.rope)
        self._reweighting = CompiledReweighting(module.reweighting)

    def __call__(self, decoded: Tensor) -> Tensor:
        out = self._context(decoded)
        if self._rotation is not None:
            out = self._rotation(out)
        return self._reweighting(out)


class CompiledRefinedIntraContext:
    """What CompiledIntraContext takes → non-anchors [B, 2C, h, w/2]."""

    def __init__(self, module: RefinedContext) -> None:
        self._context = CompiledIntraContext(module.context)
        self._rotation = None if module.rope is None else CompiledRotation(module.rope)
        self._reweighting = CompiledReweighting(module.reweighting)
        self.prepare = self._context.prepare

    def __call__(self, anchors: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        out = self._context.whole(anchors, prepared)
        if self._rotation is not None:
            out = self._rotation(out)
        return self._reweighting(out, Parity.NONANCHOR)
