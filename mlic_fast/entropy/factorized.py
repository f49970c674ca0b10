# SPDX-License-Identifier: Apache-2.0
"""Coding of z with the factorised prior: one stream an item, a table a channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast.compute.nonfinite import check_finite
from mlic_fast.entropy.range_coder import decode_many, encode_many
from mlic_fast.entropy.tables import EntropyModels, Tables, coding_tables


def _channel_indexes(channels: int, height: int, width: int) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(channels, dtype=np.int32), height * width)


def encode_hyper_latent(entropy: EntropyModels, z: Tensor) -> tuple[list[bytes], Tensor]:
    """z [B, N, h, w] → a string for each item, and ẑ [B, N, h, w]. Raises NonFiniteError, CodingError."""
    medians = entropy.medians()
    residual = torch.round(z - medians)
    check_finite("hyper latents", residual)
    # Contiguous, as the decoder's will be: in another layout h_s would round differently.
    symbols = residual.int().contiguous()
    return encode_hyper_symbols(entropy.bottleneck, symbols.cpu()), symbols + medians


def encode_hyper_symbols(bottleneck: Tables, symbols: Tensor) -> list[bytes]:
    """Symbols of z, int32 [B, N, h, w] on the CPU → a string for each item."""
    indexes = _channel_indexes(*symbols.shape[1:])
    return encode_many(coding_tables(bottleneck), [(item.flatten(), indexes) for item in symbols])


def decode_hyper_latent(entropy: EntropyModels, strings: Sequence[bytes], shape: tuple[int, int]) -> Tensor:
    """ẑ [B, N, h, w] from a string for each of B items. Raises BitstreamError for a damaged string."""
    medians = entropy.medians()
    return decode_hyper_symbols(entropy.bottleneck, strings, shape).to(medians.device) + medians


def decode_hyper_symbols(bottleneck: Tables, strings: Sequence[bytes], shape: tuple[int, int]) -> Tensor:
    """Symbols of z, int32 [B, N, h, w] on the CPU, from a string for each of B items; raises as above."""
    channels = bottleneck._offset.shape[0]
    indexes = _channel_indexes(channels, *shape)
    items = decode_many(coding_tables(bottleneck), [(string, indexes) for string in strings])
    return torch.from_numpy(np.stack(items)).view(len(strings), channels, *shape)
