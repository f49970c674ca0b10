# SPDX-License-Identifier: Apache-2.0
"""Weights of other models than this package's: their tensors, read with the same care, under the names of the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.checkpoint.files import check_readable, is_zip
from mlic_fast.checkpoint.layouts import check_names, unwrapped
from mlic_fast.checkpoint.native import is_native, read_native
from mlic_fast.checkpoint.pickles import read_pickle
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Every model with a factorised prior has it, and no optimizer's state does.
_SIGN = "quantiles"

# How deep a state dict lies in what was saved.
_DEEPEST = 2


def read_foreign(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a file by torch.save or safetensors, on the CPU, without what wrappers put before their names.

    Tensors may be views of the mapped file. Nothing is known of what they should be, so nothing else is checked.
    Raises FileNotFoundError for a missing file, CheckpointError for one that is damaged, holds code, or has no state
    dict or several in it.
    """
    path = Path(path)
    check_readable(path)
    tensors = read_native(path)[0] if is_native(path) else read_pickle(path, zipped=is_zip(path), choose=_state_dict)[0]
    tensors.pop("n_averaged", None)  # how many weights a moving average is of
    names = [unwrapped(name) for name in tensors]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: some names are there twice, with and without a wrapper's: save one model alone")
    return dict(zip(names, tensors.values(), strict=True))


def _state_dict(saved: Mapping[Any, Any]) -> tuple[Any, str]:
    """The one state dict in what was saved, by the quantiles of its factorised prior; and its place in words.

    Without any, it is what lies under "state_dict", or all of it. Raises CheckpointError if several fit.
    """
    found = list(_fitting(saved, "", 0))
    if len(found) > 1:
        places = " and ".join(f"under {key!r}" if key else "at its top" for key, _ in found)
        raise CheckpointError(f"there are weights of several models in it, {places}: save one of them alone")
    key, state_dict = found[0] if found else ("", saved.get("state_dict", saved))
    if isinstance(state_dict, Mapping):
        check_names(state_dict)
    return state_dict, f"under {key!r}" if key else ""


def _fitting(saved: Mapping[Any, Any], key: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if any(isinstance(name, str) and name.rpartition(".")[2] == _SIGN for name in saved):
        yield key, saved
    if depth < _DEEPEST:
        for name, value in saved.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _fitting(value, f"{key}.{name}" if key else name, depth + 1)
