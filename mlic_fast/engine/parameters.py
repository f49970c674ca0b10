# SPDX-License-Identifier: Apache-2.0
"""Entropy parameters and residual prediction, compiled, with the first layers' weights split by their inputs.

Nothing is concatenated: each input's contribution is added to the others', the oldest first, so that what is known
early is computed early.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mlic_fast.engine.layers import compile_convolution, compile_module, gelu_, split_module
from mlic_fast.nn.entropy_parameters import EntropyParameters
from mlic_fast.nn.residual_prediction import LatentResidualPrediction


class CompiledParameters:
    """Contexts at the positions of one parity [B, …, h, w/2] → scales and means [B, C, h, w/2].

    contexts: widths of the contexts in the order of the module's inputs; hyper-parameters are the last input. Their
    contribution, which `add` adds to, comes from `of_hyper`.
    """

    def __init__(self, module: EntropyParameters, contexts: Sequence[int], hyper: int) -> None:
        layers = module.fusion
        *pieces, self.of_hyper = split_module(layers[0], [*contexts, hyper], len(contexts))
        self._contexts = [piece.compiled() for piece in pieces]
        self._tail = [compile_module(layers[n]) for n in (2, 4)]
        last = layers[6]
        weights, biases = last.get_parameter("weight").chunk(2), last.get_parameter("bias").chunk(2)
        self.scales, self.means = (compile_convolution(w, b) for w, b in zip(weights, biases, strict=True))

    def add(self, total: Tensor, number: int, context: Tensor) -> None:
        """Adds context `number`'s contribution to `total` [B, 320, h, w/2], in place."""
        self._contexts[number].add_to(total, context)

    def hidden(self, total: Tensor) -> Tensor:
        """What `scales` and `means` are computed from, [B, 128, h, w/2]; overwrites `total`."""
        first, second = self._tail
        return second(first(gelu_(total), gelu=True), gelu=True)


class CompiledResidual:
    """Hyper means, decoded slices and the current slice → logits of the residual, [B, C, h, w].

    The hyper means' contribution comes from `of_hyper`.
    """

    def __init__(self, module: LatentResidualPrediction, hyper_means: int, decoded: int, current: int) -> None:
        layers = module.lrp_transform
        widths = [width for width in (hyper_means, decoded, current) if width]
        self.of_hyper, *pieces = split_module(layers[0], widths, 0)
        *before, self._current = [piece.compiled() for piece in pieces]
        self._decoded = before[0] if before else None
        self._tail = [compile_module(layers[n]) for n in range(2, len(layers), 2)]

    def add(self, total: Tensor, decoded: Tensor | None) -> None:
        """Adds the contribution of the slices before this one to the hyper means' [B, width, h, w], in place."""
        if self._decoded is not None and decoded is not None:
            self._decoded.add_to(total, decoded)

    def logits(self, total: Tensor, current: Tensor) -> Tensor:
        """What is known before the slice, and the slice [B, C, h, w] → logits; overwrites `total`."""
        x = gelu_(self._current.add_to(total, current))
        *middle, last = self._tail
        for layer in middle:
            x = layer(x, gelu=True)
        return last(x)
