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

from mlic_fast.compute.backend import plain_path
from mlic_fast.entropy.coders import code
from mlic_fast.model import MLICPlusPlus
from mlic_fast.passes import passes


@torch.inference_mode()
def compress(model: MLICPlusPlus, x: Tensor) -> dict[str, Any]:
    """x [B, 3, H, W] → {"strings": [[y string], [z string of each item]], "shape": z's height and width}."""
    with plain_path():
        bottleneck: Any = model.entropy_bottleneck
        y, z = model.analyse(x)
        z_strings = bottleneck.compress(z)
        z_hat = bottleneck.decompress(z_strings, z.shape[-2:])
        writer = _Writer(model.gaussian_conditional, y, model.slice_num)
        code(model.walk(z_hat), writer)
        return {"strings": [[writer.string()], z_strings], "shape": z.shape[-2:]}


@torch.inference_mode()
def decompress(model: MLICPlusPlus, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> Tensor:
    """What `compress` returned → x̂ [B, 3, H, W], not clamped."""
    with plain_path():
        bottleneck: Any = model.entropy_bottleneck
        z_hat = bottleneck.decompress(strings[1], shape)
        return model.synthesise(code(model.walk(z_hat), _Reader(model.gaussian_conditional, strings[0][0])))


def _lists(gaussian: Any) -> tuple[list[list[int]], list[int], list[int]]:
    """Tables as CompressAI's coder takes them."""
    return gaussian.quantized_cdf.tolist(), gaussian.cdf_length.tolist(), gaussian.offset.tolist()


class _Writer:
    """Collects symbols and indexes of all passes; the coder codes them backwards, at the end."""

    def __init__(self, gaussian: Any, y: Tensor, slice_num: int) -> None:
        self._gaussian = gaussian
        self._y = passes(y, slice_num)
        self._symbols: list[int] = []
        self._indexes: list[int] = []

    def begin(self, scales: Tensor) -> None:
        self._indexes.extend(self._gaussian.build_indexes(scales).flatten().tolist())

    def finish(self, means: Tensor) -> Tensor:
        symbols: Tensor = self._gaussian.quantize(next(self._y), "symbols", means)
        self._symbols.extend(symbols.flatten().tolist())
        return symbols + means

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
        self._symbols: list[int] = []  # of the pass that was begun

    def begin(self, scales: Tensor) -> None:
        indexes = self._gaussian.build_indexes(scales)
        self._symbols = self._decoder.decode_stream(indexes.flatten().tolist(), *self._tables)

    def finish(self, means: Tensor) -> Tensor:
        return torch.tensor(self._symbols, device=means.device).reshape(means.shape) + means
