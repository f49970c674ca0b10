# SPDX-License-Identifier: Apache-2.0
"""Coding tables and values that must not reach native code: each fault has its own message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checkpoint_samples import CONFIGS, one_thread, weights, without_tables
from torch import Tensor

from mlic_fast.checkpoint import checkpoint_from_state_dict
from mlic_fast.checkpoint.tables import standard_scale_table
from mlic_fast.checkpoint.validate import check_tables
from mlic_fast.errors import CheckpointError

__all__ = ["one_thread"]

GAUSSIAN = "gaussian_conditional"
BOTTLENECK = "entropy_bottleneck"


def put(row: int, column: int, value: int) -> Callable[[Tensor], Tensor]:
    def edit(table: Tensor) -> Tensor:
        table[row, column] = value
        return table

    return edit


def put1(position: int, value: float) -> Callable[[Tensor], Tensor]:
    def edit(values: Tensor) -> Tensor:
        values[position] = value
        return values

    return edit


FAULTS = [
    pytest.param(f"{GAUSSIAN}._quantized_cdf", put(3, 0, 1), r"_quantized_cdf row 3 must begin with 0, not with 1"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", put(63, 0, -5), "row 63 must begin with 0"),
    pytest.param(f"{BOTTLENECK}._quantized_cdf", put(1, 2, 0), r"row 1 must increase; bound 2 is 0"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", put(7, 1, 65536), r"row 7 must increase; bound 2"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", put(7, 1, -1), r"row 7 must increase; bound 1 is -1"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", put(7, 1, 2**31 - 1), r"row 7 must increase; bound 2"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", lambda t: t.clamp(max=65535), "must (increase|end with 65536)"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", lambda t: t[:-1], r"must have 64 rows \(scales in scale_table\)"),
    pytest.param(f"{BOTTLENECK}._quantized_cdf", lambda t: t[:-1], r"must have 4 rows \(channels of z\)"),
    pytest.param(f"{BOTTLENECK}._quantized_cdf", lambda t: t[:, 0], "has shape"),
    pytest.param(f"{BOTTLENECK}._quantized_cdf", lambda t: t[:, :2], "3 to 65537 bounds"),
    pytest.param(f"{GAUSSIAN}._cdf_length", put1(2, 2), r"_cdf_length\[2\] is 2, it must be 3 to"),
    pytest.param(f"{GAUSSIAN}._cdf_length", put1(63, 3134), r"_cdf_length\[63\] is 3134"),
    pytest.param(f"{GAUSSIAN}._cdf_length", put1(63, -(2**31)), r"_cdf_length\[63\]"),
    pytest.param(f"{GAUSSIAN}._cdf_length", put1(5, 3), r"row 5 ends with \d+ at bound 2, it must end with 65536"),
    pytest.param(f"{GAUSSIAN}._cdf_length", put1(5, 3133), "row 5 must increase"),
    pytest.param(f"{BOTTLENECK}._cdf_length", lambda t: t[:, None], r"shape \[4, 1\], it must be \[4\]"),
    pytest.param(f"{BOTTLENECK}._offset", put1(0, 1 << 25), r"_offset\[0\] is 33554432, beyond"),
    pytest.param(f"{BOTTLENECK}._offset", put1(3, -(2**31)), r"_offset\[3\] is -2147483648"),
    pytest.param(f"{BOTTLENECK}._offset", lambda t: t[:3], r"_offset has shape \[3\]"),
    pytest.param(f"{BOTTLENECK}._offset", lambda t: t.float(), "must hold integers"),
    pytest.param(f"{BOTTLENECK}._offset", lambda t: t.long() + 2**40, "beyond 32 bits"),
    pytest.param(f"{BOTTLENECK}._offset", lambda t: t[:0], "without entropy_bottleneck._offset"),
    pytest.param(f"{GAUSSIAN}._quantized_cdf", lambda t: t[:0], "there together or not at all"),
    pytest.param(f"{GAUSSIAN}.scale_table", lambda t: t[:0], "scale_table is missing"),
    pytest.param(f"{GAUSSIAN}.scale_table", lambda t: t[:-1], "must have 63 rows"),
    pytest.param(f"{GAUSSIAN}.scale_table", lambda t: t[None], "2 to 256 scales"),
    pytest.param(f"{GAUSSIAN}.scale_table", put1(0, -0.11), "must be positive, the smallest is -0.1"),
    pytest.param(f"{GAUSSIAN}.scale_table", put1(9, 0.11), r"must increase; scale 9 is 0\.1"),
    pytest.param(f"{GAUSSIAN}.scale_table", put1(63, float("inf")), "scale_table is not finite"),
    pytest.param(f"{GAUSSIAN}.scale_table", put1(1, float("nan")), "scale_table is not finite"),
    pytest.param(f"{GAUSSIAN}.scale_table", lambda t: t.int(), "must hold floats"),
    pytest.param("g_a.analysis_transform.6.weight", put(1, 2, float("nan")), r"9 of .*first at \[1, 2, 0, 0\]"),
    pytest.param("g_s.synthesis_transform.7.0.weight", lambda t: t.double() * 1e300, "not finite"),
    pytest.param("g_a.analysis_transform.6.bias", lambda t: t.int(), "must hold floats"),
    pytest.param("g_a.analysis_transform.6.bias", lambda t: t[:5], r"is \[5\], not \[64\]"),
    pytest.param("local_context.1.relative_position_index", put(24, 0, 81), "index table of a 5 × 5 window"),
    pytest.param("local_context.1.relative_position_index", put(0, 0, -1), "index table of a 5 × 5 window"),
]


@pytest.mark.parametrize(("name", "edit", "message"), FAULTS)
def test_faults(name: str, edit: Callable[[Tensor], Tensor], message: str) -> None:
    tensors = weights()
    tensors[name] = edit(tensors[name].clone())
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_state_dict(tensors)


def test_names() -> None:
    name = "h_a.reduction.0.bias"
    missing = {key: tensor for key, tensor in weights().items() if key != name}
    with pytest.raises(CheckpointError, match=r"lack h_a\.reduction\.0\.bias: the file is incomplete"):
        checkpoint_from_state_dict(missing)
    with pytest.raises(CheckpointError, match=r"does not have: a\.b; a\.c; a\.d and 1 more"):
        checkpoint_from_state_dict({**weights(), **{f"a.{end}": torch.ones(1) for end in "bcde"}})
    with pytest.raises(CheckpointError, match=r"twice, as h_a\.\S+ and as module\.h_a\.reduction\.0\.bias"):
        checkpoint_from_state_dict({**weights(), f"module.{name}": torch.ones(4)})
    with pytest.raises(CheckpointError, match="one key is 7, a int"):
        checkpoint_from_state_dict({**weights(), 7: torch.ones(4)})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match=r"h_a\.reduction\.0\.bias is a list, not a tensor"):
        checkpoint_from_state_dict({**weights(), name: [1.0]})  # type: ignore[dict-item]


def test_variants_are_not_mixed() -> None:
    new, old = weights("new"), weights("old")
    mixed = {**new, **{name: tensor for name, tensor in old.items() if name.startswith("g_s.")}}
    with pytest.raises(CheckpointError, match=r"variant 'new' does not have: g_s\.\S+\.skip\.weight"):
        checkpoint_from_state_dict(mixed)


def test_tables_that_would_be_absurdly_long_are_not_computed() -> None:
    tensors = without_tables(weights())
    wide = torch.tensor([-1e9, 0.0, 1e9]).repeat(4, 1, 1)
    with pytest.raises(CheckpointError, match=r"2e\+09 apart"):
        checkpoint_from_state_dict({**tensors, f"{BOTTLENECK}.quantiles": wide})
    scales = torch.tensor([0.11, 1.0, 1e9])
    with pytest.raises(CheckpointError, match=r"reaches 1e\+09"):
        checkpoint_from_state_dict({**tensors, f"{GAUSSIAN}.scale_table": scales})


def test_standard_scale_table() -> None:
    table = standard_scale_table()
    compressai_models = pytest.importorskip("compressai.models.base")
    assert torch.equal(table, compressai_models.get_scale_table())


def test_real_tables_pass() -> None:
    check_tables(weights(), CONFIGS["new"])
