# SPDX-License-Identifier: Apache-2.0
"""Reading weights: from a file of any known kind to canonical tensors, validated and complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlic_fast.checkpoint.fingerprint import fingerprint
from mlic_fast.checkpoint.labels import guess_labels, stem
from mlic_fast.checkpoint.layouts import layout_of, official_names, weights_in
from mlic_fast.checkpoint.native import Deltas, NativeHeader, is_native, read_native
from mlic_fast.checkpoint.pickles import read_pickle
from mlic_fast.checkpoint.shapes import TABLES, expected_shapes, infer_config, is_position_index
from mlic_fast.checkpoint.tables import with_tables
from mlic_fast.checkpoint.validate import (
    check_finite,
    check_position_indexes,
    check_shapes,
    check_tables,
    position_index,
)
from mlic_fast.compute.defaults import float32_on_cpu
from mlic_fast.config import LossMetric, ModelConfig
from mlic_fast.contexts import Architecture, member_of
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# What people save under a weights file's name by mistake, by first bytes.
_MISTAKES = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<", "it is a web page: the download asked for a confirmation; download it in a browser"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one model, ready to be loaded.

    state_dict: every parameter and buffer under its official name (CompressAI 1.2.8's for the entropy
        bottleneck), in the model's order, on the CPU and owned: floats as float32, coding tables int32,
        position indexes int64. All coding tables are there.
    config: the model's shape, found from the tensors. fingerprint: 32 bytes.
    name: the native file's, else the file's stem. lmbda, metric: the native file's; else read off the file's
        name, which `guessed` then says. tables_saved: whether all coding tables were in the file; if not,
        missing ones were computed here. layout: whose names the file used. source: the file, or what was given.
    guard_deltas: the native file's, see NativeHeader. taken: which of a file's dictionaries and names, in words.
    """

    state_dict: dict[str, Tensor] = field(repr=False)
    config: ModelConfig
    fingerprint: bytes
    name: str
    lmbda: float | None
    metric: LossMetric | None
    guessed: bool
    tables_saved: bool
    layout: Literal["official", "compressai", "native"]
    source: str
    guard_deltas: Deltas | None = None
    taken: str = ""


@float32_on_cpu()
def read_checkpoint(path: str | os.PathLike[str], architecture: Architecture | None = None) -> Checkpoint:
    """Read weights: official files (torch.save), CompressAI's own family, native safetensors.

    Wrapper prefixes and older CompressAI names are understood, half precision becomes float32, saved coding
    tables are kept and missing ones computed. Everything is validated.
    architecture: whose weights they are; None: as a native file says, else as the tensors' names tell. MLIC+'s and
        MLIC++'s have the same: they are MLIC++'s then.
    Raises FileNotFoundError for a missing file, CheckpointError for one that is damaged, holds code, or is
    no model's of the family or of that architecture, ConfigError for an architecture that there is not.
    """
    path = Path(path)
    check_readable(path)
    header: NativeHeader | None = None
    taken, said = "", None
    if is_native(path):
        tensors, header = read_native(path)
    else:
        tensors, taken, said = read_pickle(path, zipped=is_zip(path))
    try:
        if header is not None:
            said = header.config.architecture
        checkpoint = _complete(tensors, header, stem(path), str(path), taken, _agreed(said, architecture))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if header is not None and checkpoint.fingerprint != header.fingerprint:
        raise CheckpointError(
            f"{path} is damaged or was edited: its tensors have fingerprint {checkpoint.fingerprint.hex()[:16]}…, "
            f"it says {header.fingerprint.hex()[:16]}…; get the file again, or convert the original weights again"
        )
    return checkpoint


@float32_on_cpu()
def checkpoint_from_state_dict(
    state_dict: Mapping[str, Any], *, name: str = "unnamed", architecture: Architecture | None = None
) -> Checkpoint:
    """The same for tensors that are already in memory, of any device: names, validation, tables, fingerprint.

    Raises CheckpointError if they are no model's of the family or of that architecture, ConfigError.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"a state dict is a dictionary of names and tensors, not {type(state_dict).__name__}: "
            "give model.state_dict()"
        )
    inside, taken = weights_in(state_dict)
    return _complete(inside, None, name, "a state dict", taken, architecture)


def _complete(
    tensors: Mapping[str, Any],
    header: NativeHeader | None,
    name: str,
    source: str,
    taken: str,
    architecture: Architecture | None,
) -> Checkpoint:
    layout = layout_of(tensors)
    named = official_names(tensors)
    _check_kinds(named)
    # Shapes come first: what is allocated below is then bounded by a valid configuration.
    shapes = {key: tuple(tensor.shape) for key, tensor in named.items()}
    config = infer_config(shapes, architecture)
    if header is not None and header.config != config:
        raise CheckpointError(f"the tensors make {config}, the header says {header.config}; the file was edited")
    check_shapes(shapes, config)
    owned = {key: _canonical(key, tensor) for key, tensor in named.items()}
    for key in expected_shapes(config):
        if is_position_index(key) and key not in owned:
            owned[key] = position_index(config.context_window)
    check_finite(owned)
    check_position_indexes(owned, config)
    complete, tables_saved = with_tables(owned)
    check_tables(complete, config)
    ordered = {key: complete[key] for key in expected_shapes(config)}
    labels = guess_labels(source) if header is None else (header.lmbda, header.metric)
    return Checkpoint(
        state_dict=ordered,
        config=config,
        fingerprint=fingerprint(ordered, config.architecture),
        name=name if header is None else header.name,
        lmbda=labels[0],
        metric=labels[1],
        guessed=header is None and labels != (None, None),
        tables_saved=tables_saved,
        layout=layout if header is None else "native",
        source=source,
        taken=taken,
        guard_deltas=None if header is None else header.guard_deltas,
    )


def _agreed(said: Architecture | None, wanted: Architecture | None) -> Architecture | None:
    """The architecture of weights of which the file says one and the caller wants one. Raises CheckpointError."""
    if said is None or wanted is None:
        return said or wanted
    if said != wanted:
        titles = member_of(said).title, member_of(wanted).title
        raise CheckpointError("the file says that it holds an {} model, not an {} one".format(*titles))
    return said


def _check_kinds(tensors: Mapping[str, Any]) -> None:
    """Every value is a tensor of a kind that its name can have."""
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    integers = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{name} is a {type(tensor).__name__}, not a tensor")
        allowed = integers if _is_integer(name) else floats
        # update() was never called: the empty buffer's type says nothing
        if tensor.dtype not in allowed and tensor.numel():
            kind = "integers" if allowed is integers else "floats"
            raise CheckpointError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, it must hold {kind}")


def _is_integer(name: str) -> bool:
    return is_position_index(name) or (name in TABLES and not name.endswith("scale_table"))


def _canonical(name: str, tensor: Tensor) -> Tensor:
    """An owned, dense copy on the CPU with the canonical dtype."""
    import numpy as np
    import torch

    dtype = torch.float32
    if is_position_index(name):
        dtype = torch.int64
    elif _is_integer(name):
        dtype = torch.int32
        limits = torch.iinfo(dtype)
        if tensor.numel() and not limits.min <= int(tensor.min()) <= int(tensor.max()) <= limits.max:
            raise CheckpointError(f"{name} holds values beyond 32 bits, up to {tensor.abs().max().item()}")
    tensor = tensor.detach().cpu()
    owned = torch.empty(tensor.shape, dtype=dtype)
    if tensor.dtype == torch.bfloat16 or tensor.layout != torch.strided:
        return owned.copy_(tensor)
    # NumPy: hundreds of small copies on torch's thread pool take seconds on a busy machine
    with np.errstate(over="ignore"):  # infinities are refused later, in words of ours
        np.copyto(owned.numpy(), tensor.numpy(), casting="unsafe")
    return owned


def check_readable(path: Path) -> None:
    """Raise FileNotFoundError for a missing file, CheckpointError for what people take for weights by mistake."""
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a weights file in it, or set MLIC_FAST_MODELS to the folder")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror or error}") from error
    if not start:
        raise CheckpointError(f"{path} is empty; get the file again")
    if is_native(path):  # whose first bytes are a length, and may look like anything
        return
    for beginning, advice in _MISTAKES:
        if start.lstrip().startswith(beginning):
            raise CheckpointError(f"{path} holds no weights: {advice}")


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip file does, which torch.save has written since PyTorch 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
