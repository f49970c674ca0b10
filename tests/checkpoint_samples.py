# SPDX-License-Identifier: Apache-2.0
"""Weights of small models made by hand, and the disguises in which files hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mlic_fast.checkpoint import expected_shapes
from mlic_fast.checkpoint.tables import with_tables
from mlic_fast.checkpoint.validate import position_index
from mlic_fast.config import ModelConfig

CONFIGS = {
    "new": ModelConfig(N=4, M=64, slice_num=2, context_window=5, variant="new"),
    "old": ModelConfig(N=4, M=64, slice_num=2, context_window=5, variant="old"),
}

CONSTANTS = {
    "scale_bound": 0.11,
    "lower_bound_scale.bound": 0.11,
    "likelihood_lower_bound.bound": 1e-9,
    "pedestal": 2.0**-36,
    "beta_reparam.lower_bound.bound": 1e-3,
    "gamma_reparam.lower_bound.bound": 2.0**-18,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Hundreds of tiny tensors: a thread pool only costs, seconds on a busy machine. For modules that import it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _weights(variant: str) -> dict[str, Tensor]:
    config = CONFIGS[variant]
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        if shape == (0,):
            tensors[name] = torch.empty(0, dtype=torch.float32 if name.endswith("scale_table") else torch.int32)
        elif name.endswith("relative_position_index"):
            tensors[name] = position_index(config.context_window)
        elif name.endswith("quantiles"):
            tensors[name] = torch.tensor([-6.0, 0.25, 7.0]).repeat(shape[0], 1, 1)
        elif constant := next((value for end, value in CONSTANTS.items() if name.endswith(end)), None):
            tensors[name] = torch.full(shape, constant)
        else:
            tensors[name] = torch.randn(shape, generator=generator) * 0.3
    return with_tables(tensors)[0]


def weights(variant: str = "new") -> dict[str, Tensor]:
    """Canonical weights with tables; the dictionary is the caller's, the tensors are shared."""
    return dict(_weights(variant))


def without_tables(state_dict: dict[str, Tensor], prefix: str = "", *, empty: bool = True) -> dict[str, Tensor]:
    """Coding tables of one entropy model (or both) emptied, as before update(), or left out."""
    tables = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
    gone = [name for name in state_dict if name.startswith(prefix) and name.endswith(tables)]
    emptied = {name: state_dict[name].new_empty(0) for name in gone} if empty else {}
    return {**{name: tensor for name, tensor in state_dict.items() if name not in gone}, **emptied}


def as_compressai_120(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Entropy bottleneck as CompressAI 1.2.0b3 wrote it."""
    plural = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
    return {
        re.sub(r"(matrices|biases|factors)\.(\d)$", lambda m: plural[m[1]] + m[2], name): tensor
        for name, tensor in state_dict.items()
    }


def as_compressai_11(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Entropy bottleneck as CompressAI 1.1 wrote it."""
    return {re.sub(r"\.(matrices|biases|factors)\.", r"._\1.", name): tensor for name, tensor in state_dict.items()}


def as_compressai_model(state_dict: dict[str, Any], slices: int = 2) -> dict[str, Any]:
    """The layout of CompressAI's own MLIC++."""
    result = {}
    inside = {"local_context": "spatial_context_nonanchor", "global_intra_context": "intra_channel_context_nonanchor"}
    beside = {"channel_context": "channel_part", "global_inter_context": "global_inter_part"}
    for name, tensor in state_dict.items():
        first, rest = name.split(".", 1)
        if first in ("g_a", "g_s"):
            result[name] = tensor
        elif first in ("h_a", "h_s"):
            result[f"latent_codec.{name}"] = tensor
        elif first == "entropy_bottleneck":
            result[f"latent_codec.z.{name}"] = tensor
        elif first == "gaussian_conditional":
            for i in range(slices):
                result[f"latent_codec.y.latent_codec.y{i}.y.{name}"] = tensor
        else:
            i, rest = rest.split(".", 1)
            if first in beside:
                result[f"latent_codec.y.channel_context.y{i}.{beside[first]}.{rest}"] = tensor
            else:
                result[f"latent_codec.y.latent_codec.y{i}.{inside.get(first, first)}.{rest}"] = tensor
    return result


NAMES = {
    "official": lambda weights: weights,
    "compressai-1.2.0b3": as_compressai_120,
    "compressai-1.1": as_compressai_11,
    "compressai-model": as_compressai_model,
}

PREFIXES = {
    "plain": lambda name: name,
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.module.{name}",
    "inside": lambda name: name.replace(".", "._orig_mod.", 1),
}
