# SPDX-License-Identifier: Apache-2.0
"""Models inside PyTorch's wrappers, and what is no model, wherever a model is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mlic_fast
from mlic_fast import codec
from mlic_fast.errors import MlicError, NotAModelError
from mlic_fast.evaluate import calibration
from mlic_fast.rate_control import Target, encode_to_target
from mlic_fast.wrappers import unwrapped

PICTURE = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> Any:
    return codec.open_model(None, "cpu")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    where = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_models_code(model: Any, wrap: Callable[[Any], Any]) -> None:
    wrapped, expected = wrap(model), mlic_fast.encode(PICTURE, model)
    assert mlic_fast.encode(PICTURE, wrapped) == expected
    assert list(mlic_fast.encode_many([PICTURE], wrapped)) == [expected]
    pixels = np.asarray(mlic_fast.decode(expected, model))
    assert np.array_equal(mlic_fast.decode(expected, wrapped), pixels)
    assert np.array_equal(next(mlic_fast.decode_many([expected], wrapped)), pixels)
    assert codec.decode_tensor(expected, wrapped)[0].shape == (1, 3, 40, 50)
    assert codec.model_fingerprint(wrapped) == codec.model_fingerprint(model)
    given = calibration.given_symbols(wrapped, PICTURE)
    assert len(calibration.log_scales(wrapped, given)) == 2 * model.slice_num
    assert len(calibration.measure(wrapped, [("one", PICTURE)])) > 1


class FullyShardedDataParallel(nn.Module):
    """By name alone."""


NO_MODELS = {
    "another module": nn.Linear(2, 2),
    "wrapped other module": nn.DataParallel(nn.Linear(2, 2)),
    "state dict": {"h_s.weight": torch.zeros(1)},
    "FSDP": FullyShardedDataParallel(),
    "number": 3,
    "bytes": b"mlicpp-s-0.0067",
    "class": mlic_fast.MLICPlusPlus,
    "list": ["mlicpp-s-0.0067"],
}


@pytest.mark.parametrize("wrong", NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_is_refused_by_name(model: Any, wrong: Any) -> None:
    coded = mlic_fast.encode(PICTURE, model)
    calls: list[Callable[[], Any]] = [
        lambda: mlic_fast.encode(PICTURE, wrong),
        lambda: mlic_fast.decode(coded, wrong),
        lambda: list(mlic_fast.encode_many([PICTURE], wrong)),
        lambda: list(mlic_fast.decode_many([coded], wrong)),
        lambda: codec.model_fingerprint(wrong),
        lambda: mlic_fast.load(wrong),
        lambda: encode_to_target(PICTURE, Target(bpp=1), models=wrong if isinstance(wrong, int) else [wrong]),
        lambda: calibration.measure(wrong, [("one", PICTURE)]),
        lambda: unwrapped(wrong),
    ]
    for call in calls:
        with pytest.raises(NotAModelError, match="model") as caught:
            call()
        assert isinstance(caught.value, MlicError)
        assert isinstance(caught.value, TypeError)


def test_one_name_stands_for_a_ladder_of_one(tmp_path: Path) -> None:
    hit = encode_to_target(PICTURE, Target(bpp=24), models="mlicpp-s-0.0018", device="cpu")
    assert hit.model == "mlicpp-s-0.0018"
