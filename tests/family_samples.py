# SPDX-License-Identifier: Apache-2.0
"""Models of the family's members: filled with the weights that CompressAI's golden data was made with, or at random."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from golden_samples import GOLDEN, golden_weights

from mlic_fast.config import ModelConfig
from mlic_fast.contexts import FAMILY, Architecture, Variant
from mlic_fast.model import CodecModel, class_of

SMALL = {"N": 64, "M": 96, "slice_num": 3}

ARCHITECTURES: tuple[Architecture, ...] = tuple(FAMILY)

# Factors of the golden weights; MLIC++ takes MLIC+'s.
GAINS: dict[Architecture, str] = {"mlicpp": "mlicplus", "mlic+": "mlicplus", "mlic": "mlic", "mlicv2": "mlicv2"}

# CompressAI's name of a module or parameter, by which golden weights are seeded; others keep theirs.
_PEER = (
    (r"(h_[as])\b", r"latent_codec.\1"),
    (r"channel_context\.(\d+)\b", r"latent_codec.y.channel_context.y\1.channel_part"),
    (r"global_inter_context\.(\d+)\b", r"latent_codec.y.channel_context.y\1.global_inter_part"),
    (r"local_context\.(\d+)\b", r"latent_codec.y.latent_codec.y\1.spatial_context_nonanchor"),
    (r"global_intra_context\.(\d+)\b", r"latent_codec.y.latent_codec.y\1.intra_channel_context_nonanchor"),
    (r"((?:entropy_parameters|lrp)_(?:anchor|nonanchor))\.(\d+)\b", r"latent_codec.y.latent_codec.y\2.\1"),
    (r"global_hyper_context\.(\d+)\b", r"latent_codec.y.latent_codec.y\1.spatial_context_anchor.hgcp"),
    (r"selective_predictor\.(\d+)\b", r"latent_codec.y.latent_codec.y\1.selective_predictor"),
)


def peer_name(name: str) -> str:
    """CompressAI's name of what we call `name`."""
    for pattern, replacement in _PEER:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    return name


class _Named:
    """Parameters under names that are not their own."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self._parameters = parameters

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        # those without dimensions are apart
        return ((name, parameter) for name, parameter in self._parameters.items() if parameter.dim())


@torch.no_grad()
def fill(parameters: Mapping[str, torch.nn.Parameter], gains: str) -> None:
    """Golden weights of these factors for parameters by CompressAI's names."""
    factors = json.loads((GOLDEN / f"{gains}.json").read_text())
    golden_weights.fill(_Named(parameters), factors)
    for name, parameter in parameters.items():
        if parameter.dim() == 0:  # it is its factor; our own reading's have none
            parameter.fill_(factors.get(name, 20.0))


def filled(config: ModelConfig, gains: str) -> CodecModel:
    """A model in evaluation mode with golden weights of these factors, tables computed."""
    model = class_of(config.architecture)(config)
    fill({peer_name(name): parameter for name, parameter in model.named_parameters()}, gains)
    model.update(force=True)
    return model.eval()


@cache
def golden_model(architecture: Architecture, variant: Variant = "new") -> CodecModel:
    """The small model of CompressAI's golden data; other variants have of its weights what fits them."""
    config = ModelConfig(**SMALL, variant=variant, architecture=architecture)
    return filled(config, f"gains_family_{GAINS[architecture]}")


@cache
def tiny_model(architecture: Architecture) -> CodecModel:
    """A model that codes in a moment, and whose latents are not all zero."""
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = class_of(architecture)(ModelConfig(N=16, M=96, slice_num=3, architecture=architecture)).eval()
    with torch.no_grad():
        model.g_a.analysis_transform[-1].weight.mul_(30)
        model.h_a.reduction[-1].weight.mul_(300)
    model.update()
    result: CodecModel = model
    return result
