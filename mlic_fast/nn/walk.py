# SPDX-License-Identifier: Apache-2.0
"""The walk over the slices of y, as written down: in which order everything is coded, and from what it is predicted.

`mlic_fast.engine.walk` is the same walk on compiled layers, line for line. Whoever estimates, writes, reads or measures
drives one or the other: see `mlic_fast.passes`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep, unpack
from mlic_fast.config import ModelConfig
from mlic_fast.contexts import Context, Form, Source, inputs_of
from mlic_fast.nn.selective import Selection
from mlic_fast.ops.local_attention import shared_mask
from mlic_fast.passes import Walk

# Local contexts that share a mask.
_MASKED: tuple[Form, ...] = ("windows", "rotated windows")


class SliceNetworks(Protocol):
    """The networks on the way, a module for each slice; those of the member's contexts are found by their names."""

    config: ModelConfig
    entropy_parameters_anchor: Any  # lists of mlic_fast.nn.entropy_parameters.EntropyParameters
    entropy_parameters_nonanchor: Any
    lrp_anchor: Any  # lists of mlic_fast.nn.residual_prediction.LatentResidualPrediction
    lrp_nonanchor: Any


def walk(networks: SliceNetworks, hyper: Tensor, selection: Selection | None = None) -> Walk:
    """Every pass of every slice in order, from the hyper-parameters [B, 2M, h, w] that h_s gives, h and w even.

    selection: what leaves symbols out, in estimates alone.
    """
    hyper_means = hyper.chunk(2, dim=1)[1]
    rows = networks.config.member.contexts
    mask = shared_mask(hyper) if any(which.form in _MASKED for which in rows) else None
    decoded: list[Tensor] = []

    def context(i: int, which: Context, anchors: Tensor | None = None) -> Tensor:
        module = getattr(networks, which.name)[i]
        if which.source is Source.HYPER:
            return module(hyper)  # type: ignore[no-any-return]
        if which.source is Source.DECODED:
            # concatenated for each anew: so autograd adds the gradients in the official order, to the last bit
            out: Tensor = module(torch.cat(decoded, dim=1))
        elif which.source is Source.ANCHORS:
            out = module(anchors, mask) if which.form in _MASKED else module(anchors)
        else:
            out = module(decoded[-1] if decoded else hyper, anchors)
        return out

    for i in range(len(networks.lrp_anchor)):
        inputs = inputs_of(networks.config.architecture, i, networks.config.variant)
        of_hyper = [context(i, which) for which in inputs.hyper]
        before = [context(i, which) for which in inputs.before]

        contexts = torch.cat([*of_hyper, *before, hyper], dim=1)
        scales, means = networks.entropy_parameters_anchor[i].of_pass(contexts, Parity.ANCHOR)
        yield scales
        values = yield means
        if selection is not None:
            values = selection.values(values, scales, means, torch.cat([hyper, *decoded, *before], dim=1))
        anchors = unpack(values, Parity.ANCHOR)
        known = torch.cat([hyper_means, *decoded, anchors], dim=1)
        residual = keep(networks.lrp_anchor[i](known), Parity.ANCHOR)
        anchors = anchors + (residual if selection is None else selection.residual(residual))

        # computed from last to first, which is the official order too
        within = [context(i, which, anchors) for which in reversed(inputs.within)][::-1]

        contexts = torch.cat([*within, *before, hyper], dim=1)
        scales, means = networks.entropy_parameters_nonanchor[i].of_pass(contexts, Parity.NONANCHOR)
        yield scales
        values = yield means
        if selection is not None:
            values = selection.values(values, scales, means, torch.cat([hyper, *decoded, *before], dim=1))
        both = anchors + unpack(values, Parity.NONANCHOR)
        known = torch.cat([hyper_means, *decoded, both], dim=1)
        residual = keep(networks.lrp_nonanchor[i](known), Parity.NONANCHOR)
        decoded.append(both + (residual if selection is None else selection.residual(residual)))
    return torch.cat(decoded, dim=1)
