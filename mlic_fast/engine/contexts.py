# SPDX-License-Identifier: Apache-2.0
"""The contexts of the entropy model, compiled: channel, global between slices, global within a slice, local.

Maps are channels-last. Each class is one module of mlic_fast.nn. A context of the slices before is called with these
[B, iC, h, w] and gives a whole map; one within the slice is called with the anchors' map and what its `prepare` made of
the previous slice, if it takes that, and gives the non-anchors, packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, fill, pack
from mlic_fast.engine.attention import attend, attend_across
from mlic_fast.engine.layers import LAYOUT, Convolution, Weights, compile_convolution, compile_module, normalised
from mlic_fast.engine.rotation import CompiledAxialRotation
from mlic_fast.nn.channel_context import ChannelContext
from mlic_fast.nn.global_context import INTRA_HEADS, GlobalInterContext, GlobalIntraContext
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.nn.stacked_context import StackedLocalContext
from mlic_fast.ops.local_attention import local_attention


class CompiledChannelContext:
    """Decoded slices [B, iC, h, w] → [B, 4C, h, w]."""

    def __init__(self, module: ChannelContext) -> None:
        layers = module.fushion
        self._layers = [compile_module(layers[n]) for n in (0, 2, 4)]

    def __call__(self, decoded: Tensor) -> Tensor:
        first, second, last = self._layers
        return last(second(first(decoded, gelu=True), gelu=True))


class _Perceptron:
    """1×1, GELU, depth-wise 3×3, GELU; the last 1×1 convolution is the caller's, at the positions that it needs."""

    def __init__(self, module: nn.Sequential) -> None:
        self._wide, self._depthwise, self.last = (compile_module(module[n]) for n in (0, 2, 4))

    def hidden(self, x: Tensor) -> Tensor:
        return self._depthwise(self._wide(x, gelu=True), gelu=True)


class CompiledInterContext:
    """Decoded slices [B, iC, h, w] → [B, 2C, h, w]."""

    def __init__(self, module: GlobalInterContext) -> None:
        self._heads, self._attention = module.heads, module.attention
        parts = (module.queries, module.keys, module.values)
        # the three projections of one input are one convolution
        self._point = joined([part[0] for part in parts])
        self._depthwise = joined([part[1] for part in parts])
        self._reprojection, self._skip = compile_module(module.reprojection), compile_module(module.skip)
        self._mlp = _Perceptron(module.mlp)

    def __call__(self, decoded: Tensor) -> Tensor:
        queries, keys, values = self._depthwise(self._point(decoded)).chunk(3, dim=1)
        attended = attend(queries, keys, values, self._heads, self._attention)
        del queries, keys, values
        attention = self._reprojection(attended)
        return self._mlp.last.add_to(self._skip(attention), self._mlp.hidden(attention))


class CompiledIntraContext:
    """Previous slice [B, source, h, w] and anchors of the current one [B, C, h, w] → non-anchors [B, 2C, h, w/2]."""

    def __init__(self, module: GlobalIntraContext) -> None:
        self._attention = module.attention
        parts = (module.queries, module.keys)
        self._point = joined([part[0] for part in parts])
        self._depthwise = joined([part[1] for part in parts])
        # what the 1×1 convolutions make of a position that is set to zero
        self._of_zero = [bias_of(part[0]) for part in parts]
        self._values = [compile_module(layer) for layer in module.values]
        self._reprojection = compile_module(module.reprojection)
        self._mlp = _Perceptron(module.mlp)

    def prepare(self, previous: Tensor) -> tuple[Tensor, Tensor]:
        """What depends on the previous slice alone: queries and keys [B, C, h, w]."""
        both = self._point(previous)
        channels = both.shape[1] // 2
        fill(both[:, :channels], self._of_zero[0], Parity.ANCHOR)
        fill(both[:, channels:], self._of_zero[1], Parity.NONANCHOR)
        queries, keys = self._depthwise(both).chunk(2, dim=1)
        return queries, keys

    def __call__(self, anchors: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        attention = self._attended(anchors, prepared)
        out = pack(attention, Parity.NONANCHOR, LAYOUT)
        return self._mlp.last.add_to(out, pack(self._mlp.hidden(attention), Parity.NONANCHOR, LAYOUT))

    def whole(self, anchors: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """The same at all positions, [B, 2C, h, w]."""
        attention = self._attended(anchors, prepared)
        hidden = self._mlp.hidden(attention)
        return self._mlp.last.add_to(attention, hidden)

    def _attended(self, anchors: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        point, depthwise = self._values
        values = depthwise(point(anchors))
        return self._reprojection(attend_across(*prepared, values, INTRA_HEADS, self._attention))


class CompiledLocalContext:
    """Anchors of a slice [B, C, h, w] → non-anchors [B, 2C, h, w/2]."""

    def __init__(self, module: LocalContext) -> None:
        self._qkv = _compiled_linear(module.qkv_proj)
        self._wide, self._narrow = _compiled_linear(module.mlp.fc1), _compiled_linear(module.mlp.fc2)
        self._norms = module.norm1, module.norm2
        self._rotation = None if module.rope is None else CompiledAxialRotation(module.rope)
        self._attention = [
            parameter.detach()
            for parameter in (
                module.relative_position_table,
                module.fusion.weight,
                bias_of(module.fusion),
                module.proj.weight,
                bias_of(module.proj),
            )
        ]

    def __call__(self, anchors: Tensor, prepared: None = None) -> Tensor:
        before, after = self._norms
        qkv = self._qkv(normalised(anchors, before))
        if self._rotation is not None:
            self._rotation(qkv)
        out = local_attention(qkv, *self._attention).permute(0, 3, 1, 2)  # [B, 2C, h, w/2], channels-last
        return self._narrow.add_to(out, self._wide(normalised(out, after), gelu=True))


class CompiledStackedLocalContext:
    """Anchors of a slice [B, C, h, w] → non-anchors [B, 2C, h, w/2]."""

    def __init__(self, module: StackedLocalContext) -> None:
        self._layers = [compile_module(module.context[n]) for n in (0, 2, 4)]

    def __call__(self, anchors: Tensor, prepared: None = None) -> Tensor:
        first, second, last = self._layers
        return pack(last(second(first(anchors, gelu=True), gelu=True)), Parity.NONANCHOR, LAYOUT)


def bias_of(layer: nn.Module) -> Tensor:
    """The layer's bias."""
    return layer.get_parameter("bias").detach()


def joined(layers: Sequence[Any]) -> Convolution:
    """Conv2d layers of one input side by side; depth-wise ones of as many inputs."""
    groups = sum(layer.groups for layer in layers) if layers[0].groups > 1 else 1
    weight = Weights(*(layer.weight for layer in layers))
    return compile_convolution(weight, torch.cat([bias_of(layer) for layer in layers]), groups=groups)


def _compiled_linear(layer: nn.Linear) -> Convolution:
    return compile_convolution(layer.weight.detach()[:, :, None, None], layer.bias)
