# SPDX-License-Identifier: Apache-2.0
"""The plain baseline: MLIC++ with the official operators, and CompressAI's coder with Python lists around it.

What it computes and the strings that it writes are those of `MLICPlusPlus.compress(exact=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from compressai import ans
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.backend import plain_path
from mlic_fast.model import MLICPlusPlus
from mlic_fast.nn.slices import walk


@torch.inference_mode()
def compress(model: MLICPlusPlus, x: Tensor) -> dict[str, Any]:
    """x [B, 3, H, W] → {"strings": [[y string], [z string of each item]], "shape": z's height and width}."""
    with plain_path():
        bottleneck: Any = model.entropy_bottleneck
        y = model.g_a(x)
        z = model.h_a(y)
        z_strings = bottleneck.compress(z)
        z_hat = bottleneck.decompress(z_strings, z.shape[-2:])
        passes = _Writer(model.gaussian_conditional)
        walk(model, model.h_s(z_hat), y, passes)
        return {"strings": [[passes.string()], z_strings], "shape": z.shape[-2:]}


@torch.inference_mode()
def decompress(model: MLICPlusPlus, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> Tensor:
    """What `compress` returned → x̂ [B, 3, H, W], not clamped."""
    with plain_path():
        bottleneck: Any = model.entropy_bottleneck
        z_hat = bottleneck.decompress(strings[1], shape)
        y_hat = walk(model, model.h_s(z_hat), None, _Reader(model.gaussian_conditional, strings[0][0]))
        x_hat: Tensor = model.g_s(y_hat)
        return x_hat


def _lists(gaussian: Any) -> tuple[list[list[int]], list[int], list[int]]:
    """Tables as CompressAI's coder takes them."""
    return gaussian.quantized_cdf.tolist(), gaussian.cdf_length.tolist(), gaussian.offset.tolist()


class _Writer:
    """Collects symbols and indexes of all passes; the coder codes them backwards, at the end."""

    def __init__(self, gaussian: Any) -> None:
        self._gaussian = gaussian
        self._symbols: list[int] = []
        self._indexes: list[int] = []

    def __call__(self, parity: Parity, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        assert y is not None
        indexes = self._gaussian.build_indexes(pack(scales, parity))
        packed_means = pack(means, parity)
        symbols = self._gaussian.quantize(pack(y, parity), "symbols", packed_means)
        self._symbols.extend(symbols.flatten().tolist())
        self._indexes.extend(indexes.flatten().tolist())
        return unpack(symbols + packed_means, parity)

    def string(self) -> bytes:
        encoder = ans.BufferedRansEncoder()
        encoder.encode_with_indexes(self._symbols, self._indexes, *_lists(self._gaussian))
        string: bytes = encoder.flush()
        return string


class _Reader:
    """Reads one pass after the other."""

    def __init__(self, gaussian: Any, string: bytes) -> None:
        self._gaussian, self._tables = gaussian, _lists(gaussian)
        self._decoder = ans.RansDecoder()
        self._decoder.set_stream(string)

    def __call__(self, parity: Parity, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        indexes = self._gaussian.build_indexes(pack(scales, parity))
        packed_means = pack(means, parity)
        symbols = self._decoder.decode_stream(indexes.flatten().tolist(), *self._tables)
        values = torch.tensor(symbols, device=means.device).reshape(packed_means.shape) + packed_means
        return unpack(values, parity)
