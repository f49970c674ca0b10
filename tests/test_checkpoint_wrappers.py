# SPDX-License-Identifier: Apache-2.0
"""The one state dict in what people save: under any key, with any prefix, beside anything; two are refused."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import NAMES, one_thread, weights  # noqa: F401

from mlic_fast import MLICPlusPlus
from mlic_fast.checkpoint import read_checkpoint
from mlic_fast.errors import CheckpointError


def prefixed(state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def _inner(state_dict: dict[str, Any], part: str) -> dict[str, Any]:
    return {name.replace(".", f".{part}.", 1): tensor for name, tensor in state_dict.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}

# what was saved, and what is said to have been taken
SAVED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{
        key: (lambda w, key=key: {key: w, "optimizer": OPTIMIZER, "epoch": 3}, f"all names under '{key}'")
        for key in ("model", "network", "ema", "net", "params", "state_dict", "model_ema", "anything")
    },
    "Lightning": (
        lambda w: {"state_dict": prefixed(w, "model.") | {"criterion.w": torch.ones(1)}, "global_step": 5},
        "names after 'model' under 'state_dict'",
    ),
    "another prefix": (lambda w: prefixed(w, "codec.net."), "names after 'codec.net'"),
    "compiled in Lightning": (
        lambda w: {"state_dict": prefixed(w, "model._orig_mod.")},
        "names after 'model' under 'state_dict'",
    ),
    "averaged": (lambda w: {"n_averaged": torch.tensor(7), **prefixed(w, "module.")}, "all names"),
    "averaged, under a key": (
        lambda w: {"ema": {"n_averaged": torch.tensor(7), **prefixed(w, "module.module.")}, "step": 1},
        "all names under 'ema'",
    ),
    "FSDP": (lambda w: _inner(prefixed(w, "_fsdp_wrapped_module."), "_fsdp_wrapped_module"), "all names"),
    "activation checkpoints": (lambda w: _inner(w, "_checkpoint_wrapped_module"), "all names"),
    "two keys deep": (lambda w: {"checkpoint": {"model": OrderedDict(w)}}, "all names under 'checkpoint.model'"),
    "four keys deep": (lambda w: {"a": {"b": {"c": {"d": w}}}}, "all names under 'a.b.c.d'"),
    "the same under two keys": (lambda w: {"state_dict": w, "model": w}, "all names under 'state_dict'"),
    "our own training": (
        lambda w: {"state_dict": w, "trained_weights": w, "mlic_fast": {"average_steps": 3}},
        "all names under 'state_dict'",
    ),
}


@pytest.mark.parametrize("names", ["official", "compressai-model"])
@pytest.mark.parametrize(("save", "taken"), SAVED.values(), ids=SAVED)
def test_the_one_that_fits_is_found(tmp_path: Path, save: Callable[[Any], Any], taken: str, names: str) -> None:
    path, expected = tmp_path / "saved.pth", weights()
    saved = save(NAMES[names](expected))
    torch.save(saved, path)
    found = read_checkpoint(path)
    assert found.taken == taken
    assert found.state_dict.keys() == expected.keys()
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in expected.items())
    model = MLICPlusPlus.from_state_dict(saved)
    assert torch.equal(model.state_dict()["entropy_bottleneck.quantiles"], expected["entropy_bottleneck.quantiles"])


@pytest.mark.parametrize("what", [[], (), [{}], 5, "x", None, torch.zeros(1)], ids=repr)
def test_what_is_no_dictionary_is_refused(what: Any) -> None:
    with pytest.raises(CheckpointError, match="a state dict is a dictionary"):
        MLICPlusPlus.from_state_dict(what)


TWICE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "two keys": lambda w: {"model": w, "ema": dict(w)},
    "two prefixes": lambda w: {"state_dict": prefixed(w, "model.") | prefixed(w, "ema.")},
    "bare and under a key": lambda w: {**w, "ema": w},
    "twice in wrappers": lambda w: prefixed(w, "model.") | prefixed(w, "module.model."),
}


@pytest.mark.parametrize("save", TWICE.values(), ids=TWICE)
def test_two_that_fit_are_refused(tmp_path: Path, save: Callable[[Any], Any]) -> None:
    path = tmp_path / "saved.pth"
    torch.save(save(weights()), path)
    with pytest.raises(CheckpointError, match=r"save one .*alone"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["a model", "a dictionary"])
def test_the_advice_about_whole_models_runs(tmp_path: Path, kind: str) -> None:
    holder = torch.nn.Module()
    for name, tensor in weights().items():
        place = holder
        *parts, last = name.split(".")
        for part in parts:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        place.register_buffer(last, tensor)
    path = tmp_path / "whole.pth"
    torch.save(holder if kind == "a model" else {"model": weights(), "args": Path("a")}, path)
    with pytest.raises(CheckpointError, match="Python object") as caught:
        read_checkpoint(path)
    advice = str(caught.value).split("at hand:\n")[1]
    subprocess.run([sys.executable, "-c", advice], cwd=tmp_path, check=True)
    assert read_checkpoint(tmp_path / "weights.pth").config == read_checkpoint_of(weights()).config


def read_checkpoint_of(state_dict: dict[str, Any]) -> Any:
    from mlic_fast.checkpoint import checkpoint_from_state_dict

    return checkpoint_from_state_dict(state_dict)
