# SPDX-License-Identifier: Apache-2.0
"""The walk over the slices on compiled layers: what `mlic_fast.nn.walk` says, line for line, without what nobody reads.

Parameters are evaluated at a pass's positions only, contributions of what is known are added up before the newest is
there, and scales come before means. Between two yields nothing waits for the device, so that each such part can be
recorded. All maps are channels-last but those that go to and come from the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, scatter
from mlic_fast.contexts import Context, Inputs, Source, inputs_of
from mlic_fast.engine.compiled_contexts import compile_context
from mlic_fast.engine.hyper_parts import FirstLayers, HyperParts, hyper_parts
from mlic_fast.engine.layers import LAYOUT
from mlic_fast.engine.map_memory import shared_map_memory
from mlic_fast.engine.parameters import CompiledParameters, CompiledResidual
from mlic_fast.ops.residual import add_residual
from mlic_fast.passes import Walk


class CompiledSlice:
    """The networks of one slice. `parameters` and `residual` are numbered by the pass's parity."""

    def __init__(self, networks: Any, number: int, latent: int, width: int) -> None:
        """networks: a mlic_fast.nn.walk.SliceNetworks; latent: M; width: C."""
        inputs = inputs_of(networks.config.architecture, number, networks.config.variant)

        def compiled(contexts: Sequence[Context]) -> list[Any]:
            return [compile_context(getattr(networks, context.name)[number]) for context in contexts]

        self.inputs: Inputs = inputs
        self.hyper, self.before, self.within = map(compiled, (inputs.hyper, inputs.before, inputs.within))
        feeding = {Parity.ANCHOR: inputs.anchors, Parity.NONANCHOR: inputs.nonanchors}
        modules = {
            Parity.ANCHOR: (networks.entropy_parameters_anchor, networks.lrp_anchor),
            Parity.NONANCHOR: (networks.entropy_parameters_nonanchor, networks.lrp_nonanchor),
        }
        self.parameters: dict[Parity, CompiledParameters] = {}
        self.residual: dict[Parity, CompiledResidual] = {}
        for parity, (parameters, residual) in modules.items():
            widths = [context.width * width for context in feeding[parity]]
            self.parameters[parity] = CompiledParameters(parameters[number], widths, 2 * latent)
            self.residual[parity] = CompiledResidual(residual[number], latent, number * width, width)


class CompiledSlices:
    """The networks of all slices."""

    def __init__(self, networks: Any, latent: int) -> None:
        """networks: a mlic_fast.nn.walk.SliceNetworks; latent: M, channels of y."""
        count = len(networks.lrp_anchor)
        self.latent, self.width = latent, latent // count
        self.all = [CompiledSlice(networks, number, latent, self.width) for number in range(count)]
        # what sees the hyper-parameters: first layers of the entropy parameters, and of the residual prediction
        self.of_hyper = [
            FirstLayers([getattr(one, kind)[parity].of_hyper for one in self.all])
            for kind in ("parameters", "residual")
            for parity in Parity
        ]

    def hyper_parts(
        self, hyper: Tensor, memory_budget: int
    ) -> tuple[dict[Parity, HyperParts], dict[Parity, HyperParts]]:
        """What the hyper-parameters contribute to each slice's entropy parameters, and to its residual predictions."""
        means = hyper[:, self.latent :].contiguous(memory_format=LAYOUT)
        maps = [*(pack(hyper, parity, LAYOUT) for parity in Parity), means, means]
        parts = hyper_parts(self.of_hyper, maps, memory_budget)
        return dict(zip(Parity, parts[:2], strict=True)), dict(zip(Parity, parts[2:], strict=True))


# Of a picture that is a large one: pages that are cleared anew are a trifle then, and gaps in memory are not.
_MANY_POSITIONS = 16384


def walk(slices: CompiledSlices, hyper: Tensor, memory_budget: int) -> Walk:
    """Every pass of every slice in order, from the hyper-parameters [B, 2M, h, w] that h_s gives, h and w even.

    memory_budget: bytes, see mlic_fast.engine.budget. ŷ is channels-last.
    """
    of_parameters, of_residuals = slices.hyper_parts(hyper, memory_budget)
    C = slices.width
    y_hat, current = _empty_like(hyper, slices.latent), _empty_like(hyper, C)
    large = hyper.device.type == "cpu" and hyper.shape[2] * hyper.shape[3] > _MANY_POSITIONS
    first = slices.all[0].inputs
    known = hyper if first.hyper or any(which.source is Source.PREVIOUS_AND_ANCHORS for which in first.within) else None
    del hyper  # parts of it are kept, in layouts of their own

    for i, own in enumerate(slices.all):
        if large:  # a slice's maps are of other sizes than the next one's, and leave gaps that these do not fit
            shared_map_memory().release()
        decoded = y_hat[:, : i * C].contiguous(memory_format=LAYOUT) if i else None
        anchor, nonanchor = (own.parameters[parity] for parity in Parity)
        total, later = (of_parameters[parity].take(i) for parity in Parity)  # later: what is known of the non-anchors'
        for number, context in enumerate(own.hyper):
            anchor.add(total, number, context(known))
        for number, context in enumerate(own.before):
            found = context(decoded)
            anchor.add(total, len(own.hyper) + number, pack(found, Parity.ANCHOR, LAYOUT))
            nonanchor.add(later, len(own.within) + number, pack(found, Parity.NONANCHOR, LAYOUT))
            del found
        previous = y_hat[:, (i - 1) * C : i * C] if i else known
        prepared = [
            context.prepare(previous.contiguous(memory_format=LAYOUT))
            if which.source is Source.PREVIOUS_AND_ANCHORS and previous is not None
            else None
            for which, context in zip(own.inputs.within, own.within, strict=True)
        ]
        previous = known = None

        hidden = anchor.hidden(total)
        del total
        yield anchor.scales(hidden).contiguous()
        residual = of_residuals[Parity.ANCHOR].take(i)
        own.residual[Parity.ANCHOR].add(residual, decoded)
        values = yield anchor.means(hidden).contiguous()
        current.zero_()
        scatter(current, values, Parity.ANCHOR)
        add_residual(current, own.residual[Parity.ANCHOR].logits(residual, current), Parity.ANCHOR)
        del values, residual

        for number, context in enumerate(own.within):
            nonanchor.add(later, number, context(current, prepared[number]))
            prepared[number] = None

        hidden = nonanchor.hidden(later)
        del later
        yield nonanchor.scales(hidden).contiguous()
        residual = of_residuals[Parity.NONANCHOR].take(i)
        own.residual[Parity.NONANCHOR].add(residual, decoded)
        values = yield nonanchor.means(hidden).contiguous()
        scatter(current, values, Parity.NONANCHOR)
        add_residual(current, own.residual[Parity.NONANCHOR].logits(residual, current), Parity.NONANCHOR)
        del values, residual, hidden, decoded
        y_hat[:, i * C : (i + 1) * C] = current
    return y_hat


def _empty_like(hyper: Tensor, channels: int) -> Tensor:
    shape = (hyper.shape[0], channels, *hyper.shape[2:])
    return torch.empty(shape, dtype=hyper.dtype, device=hyper.device, memory_format=LAYOUT)
