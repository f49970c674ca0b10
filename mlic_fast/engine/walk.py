# SPDX-License-Identifier: Apache-2.0
"""The walk over the slices on packed maps: what `mlic_fast.nn.slices` computes, without what nobody reads.

Parameters are evaluated at the coded colour's positions only, contributions of what is known are added up before
the newest is there, and scales come before means. Between two coding steps nothing waits for the device, so each
stage of `Stages` can be captured and replayed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mlic_fast.checkerboard import Pass
from mlic_fast.engine.contexts import (
    CompiledChannelContext,
    CompiledInterContext,
    CompiledIntraContext,
    CompiledLocalContext,
)
from mlic_fast.engine.hyper_parts import FirstLayers, together
from mlic_fast.engine.layers import LAYOUT
from mlic_fast.engine.map_memory import shared_blocks
from mlic_fast.engine.packed import pack, scatter
from mlic_fast.engine.parameters import CompiledParameters, CompiledResidual
from mlic_fast.ops.coding_steps import residual_step


class PackedSteps(Protocol):
    """Codes passes on packed maps [B, C, h, w/2], contiguous, in coding order; each pass is begun, then finished."""

    def begin(self, colour: Pass, scales: Tensor) -> None:
        """Scales of the next pass: its indexes can be found, and its symbols be read, while means are computed."""
        ...

    def finish(self, colour: Pass, y: Tensor | None, means: Tensor) -> Tensor:
        """Decoded values of the pass that was begun; y [B, C, h, w/2] when encoding."""
        ...


class _Between(NamedTuple):
    """What slice i > 0 learns from the slices before it."""

    inter: CompiledInterContext
    channel: CompiledChannelContext
    intra: CompiledIntraContext


class CompiledSlices:
    """The entropy path's networks of all slices, compiled."""

    def __init__(self, networks: Any, latent: int, hyper: int) -> None:
        """networks: a mlic_fast.nn.slices.SliceNetworks; latent: M, channels of y; hyper: 2M."""
        self.count = len(networks.local_context)
        self.latent, self.width = latent, latent // self.count
        C = self.width
        self.between = [
            None
            if i == 0
            else _Between(
                CompiledInterContext(networks.global_inter_context[i]),
                CompiledChannelContext(networks.channel_context[i]),
                CompiledIntraContext(networks.global_intra_context[i]),
            )
            for i in range(self.count)
        ]
        self.local = [CompiledLocalContext(module) for module in networks.local_context]
        of_between = [2 * C, 4 * C]  # inter, channel
        self.anchor_parameters = [
            CompiledParameters(module, of_between if i else [], hyper)
            for i, module in enumerate(networks.entropy_parameters_anchor)
        ]
        self.nonanchor_parameters = [
            CompiledParameters(module, [2 * C, 2 * C, *of_between] if i else [2 * C], hyper)
            for i, module in enumerate(networks.entropy_parameters_nonanchor)
        ]
        self.residuals = {
            colour: [CompiledResidual(module, latent, i * C, C) for i, module in enumerate(modules)]
            for colour, modules in ((Pass.ANCHOR, networks.lrp_anchor), (Pass.NONANCHOR, networks.lrp_nonanchor))
        }
        self.parameters = {Pass.ANCHOR: self.anchor_parameters, Pass.NONANCHOR: self.nonanchor_parameters}
        # what sees the hyper-parameters: first layers of the entropy parameters, then of the residual prediction
        self.of_hyper = [
            FirstLayers([network.of_hyper for network in networks[colour]])
            for networks in (self.parameters, self.residuals)
            for colour in Pass
        ]


class Stages:
    """One walk's maps, and its stages in order: for each slice `open`, `means`, `anchors`, `means`, `close`."""

    def __init__(self, slices: CompiledSlices, hyper: Tensor, memory_budget: int) -> None:
        """hyper: hyper-parameters [B, 2M, h, w], h and w even; memory_budget: bytes, see mlic_fast.engine.budget.

        They are not kept: parts of them are, in layouts of their own.
        """
        self.slices = slices
        batch, _, height, width = hyper.shape
        means = hyper[:, slices.latent :].contiguous(memory_format=LAYOUT)
        maps = [*(pack(hyper, colour) for colour in Pass), means, means]
        ahead = together(slices.of_hyper, maps, memory_budget)
        self._of_parameters, self._of_residuals = (
            dict(zip(Pass, part, strict=True)) for part in (ahead[:2], ahead[2:])
        )

        def empty(channels: int) -> Tensor:
            shape = (batch, channels, height, width)
            return torch.empty(shape, dtype=hyper.dtype, device=hyper.device, memory_format=LAYOUT)

        self.y_hat = empty(slices.latent)
        self._current = empty(slices.width)  # the slice that is being coded
        self._decoded: Tensor | None = None  # the slices before it
        self._queries_keys: tuple[Tensor, Tensor] | None = None  # of the previous slice
        self._total: Tensor | None = None  # what is known of the non-anchors' parameters
        self._residual: Tensor | None = None  # what is known of the residual of the pass that is being coded
        self._hidden: Tensor | None = None  # what the means that are next are computed from

    def open(self, i: int) -> Tensor:
        """Slice i's anchors' scales."""
        slices, C = self.slices, self.slices.width
        anchor, nonanchor = slices.anchor_parameters[i], slices.nonanchor_parameters[i]
        total, self._total = (self._of_parameters[colour].take(i) for colour in (Pass.ANCHOR, Pass.NONANCHOR))
        between = slices.between[i]
        if between is not None:
            self._decoded = None  # before the next map of its size
            self._decoded = self.y_hat[:, : i * C].contiguous(memory_format=LAYOUT)
            for number in (0, 1):
                context = (between.inter if number == 0 else between.channel)(self._decoded)
                anchor.add(total, number, pack(context, Pass.ANCHOR))
                # the non-anchors' first two contexts come later
                nonanchor.add(self._total, 2 + number, pack(context, Pass.NONANCHOR))
            previous = self.y_hat[:, (i - 1) * C : i * C].contiguous(memory_format=LAYOUT)
            self._queries_keys = between.intra.queries_and_keys(previous)
        self._hidden = anchor.hidden(total)
        return anchor.scales(self._hidden)

    def means(self, i: int, colour: Pass) -> Tensor:
        """The means to the scales that came last.

        What is known of the residual is computed here as well: when decoding, symbols are being read meanwhile.
        """
        slices = self.slices
        assert self._hidden is not None  # scales came before
        self._residual = self._of_residuals[colour].take(i)
        slices.residuals[colour][i].add(self._residual, self._decoded)
        return slices.parameters[colour][i].means(self._hidden)

    def anchors(self, i: int, values: Tensor) -> Tensor:
        """Slice i's decoded anchors [B, C, h, w/2] → its non-anchors' scales."""
        slices = self.slices
        self._current.zero_()
        self._add(i, Pass.ANCHOR, values)
        own, total, between = slices.nonanchor_parameters[i], self._total, slices.between[i]
        assert total is not None  # `open` came before
        own.add(total, 0, slices.local[i](self._current))
        if between is not None and self._queries_keys is not None:
            own.add(total, 1, between.intra(*self._queries_keys, self._current))
        self._total, self._queries_keys = None, None
        self._hidden = own.hidden(total)
        return own.scales(self._hidden)

    def close(self, i: int, values: Tensor) -> None:
        """Slice i's decoded non-anchors complete it."""
        self._add(i, Pass.NONANCHOR, values)
        C = self.slices.width
        self.y_hat[:, i * C : (i + 1) * C] = self._current

    def _add(self, i: int, colour: Pass, values: Tensor) -> None:
        """Puts decoded values into the current slice and adds the residual that is predicted for them."""
        total, self._residual = self._residual, None
        assert total is not None  # `means` came before
        scatter(self._current, values, colour)
        residual_step(self._current, self.slices.residuals[colour][i].logits(total, self._current), colour)


# Of a picture that is a large one: pages that are cleared anew are a trifle then, and gaps in memory are not.
_MANY_POSITIONS = 16384


def walk(stages: Stages, y: Tensor | None, steps: PackedSteps) -> Tensor:
    """Code every pass of every slice in order, as `mlic_fast.nn.slices.walk` does.

    stages: none of them taken; y: latent [B, M, h, w], or None when decoding.
    Returns ŷ [B, M, h, w], channels-last.
    """
    C = stages.slices.width
    y_hat = stages.y_hat
    large = y_hat.device.type == "cpu" and y_hat.shape[2] * y_hat.shape[3] > _MANY_POSITIONS
    for i in range(stages.slices.count):
        if large:  # a slice's maps are of other sizes than the next one's, and leave gaps that these do not fit
            shared_blocks().release()
        y_slice = None if y is None else y[:, i * C : (i + 1) * C]
        scales = stages.open(i)
        for colour in Pass:
            steps.begin(colour, scales.contiguous())
            means = stages.means(i, colour).contiguous()
            packed_y = None if y_slice is None else pack(y_slice, colour).contiguous()
            values = steps.finish(colour, packed_y, means)
            if colour is Pass.ANCHOR:
                scales = stages.anchors(i, values)
            else:
                stages.close(i, values)
    return stages.y_hat
