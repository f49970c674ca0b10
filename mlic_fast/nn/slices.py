# SPDX-License-Identifier: Apache-2.0
"""The walk over the slices of y: the one place that knows in which order everything is coded.

Estimating, encoding and decoding take the same walk. They differ in the function that is
handed in, which turns a pass's scales and means (and y, where there is one) into decoded values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from mlic_fast.checkerboard import Pass, pack, unpack
from mlic_fast.compute.backend import choose
from mlic_fast.nn.local_context import shared_mask
from mlic_fast.nn.residual_prediction import add_residual

# (colour, y slice or None, scales, means), maps [B, C, h, w] valid at the colour's positions →
# decoded values [B, C, h, w], zero elsewhere
CodePass = Callable[[Pass, "Tensor | None", Tensor, Tensor], Tensor]


class SliceNetworks(Protocol):
    """The networks on the way, one of each a slice; the contexts between slices begin at slice 1."""

    local_context: nn.ModuleList
    channel_context: nn.ModuleList
    global_inter_context: nn.ModuleList
    global_intra_context: nn.ModuleList
    entropy_parameters_anchor: nn.ModuleList
    entropy_parameters_nonanchor: nn.ModuleList
    lrp_anchor: nn.ModuleList
    lrp_nonanchor: nn.ModuleList


def walk(networks: SliceNetworks, hyper: Tensor, y: Tensor | None, code: CodePass) -> Tensor:
    """Code every pass of every slice in order.

    hyper: hyper-parameters [B, 2M, h, w] from h_s, h and w even.
    y: latent [B, M, h, w], or None when decoding.
    code: called twice a slice, anchors first.
    Returns ŷ [B, M, h, w].
    """
    slice_num = len(networks.local_context)
    hyper_means = hyper.chunk(2, dim=1)[1]
    y_slices = [None] * slice_num if y is None else y.chunk(slice_num, dim=1)
    mask = shared_mask(hyper)
    decoded: list[Tensor] = []
    for i, y_slice in enumerate(y_slices):
        contexts = [hyper]
        if i > 0:
            # concatenated twice: so autograd adds the gradients in the official order, to the last bit
            inter = networks.global_inter_context[i](torch.cat(decoded, dim=1))
            contexts = [inter, networks.channel_context[i](torch.cat(decoded, dim=1)), hyper]

        scales, means = _parameters(networks.entropy_parameters_anchor[i], contexts, Pass.ANCHOR)
        anchors = code(Pass.ANCHOR, y_slice, scales, means)
        known = torch.cat([hyper_means, *decoded, anchors], dim=1)
        anchors = add_residual(networks.lrp_anchor[i], known, anchors, Pass.ANCHOR)

        if i > 0:
            contexts.insert(0, networks.global_intra_context[i](decoded[-1], anchors))
        contexts.insert(0, networks.local_context[i](anchors, mask))

        scales, means = _parameters(networks.entropy_parameters_nonanchor[i], contexts, Pass.NONANCHOR)
        both = anchors + code(Pass.NONANCHOR, y_slice, scales, means)
        known = torch.cat([hyper_means, *decoded, both], dim=1)
        decoded.append(add_residual(networks.lrp_nonanchor[i], known, both, Pass.NONANCHOR))
    return torch.cat(decoded, dim=1)


def _parameters(network: nn.Module, contexts: list[Tensor], colour: Pass) -> tuple[Tensor, ...]:
    """Scales and means [B, C, h, w] of a pass, valid at the colour's positions."""
    known = torch.cat(contexts, dim=1)
    if torch.is_grad_enabled() and choose(known) != "torch":
        # position by position, so half the work and half of what the gradients keep
        return unpack(network(pack(known, colour)), colour).chunk(2, dim=1)
    parameters: Tensor = network(known)
    return parameters.chunk(2, dim=1)
