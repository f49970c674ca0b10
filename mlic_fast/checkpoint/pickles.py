# SPDX-License-Identifier: Apache-2.0
"""Weights written by torch.save: read as data, never as code.

`torch.load(weights_only=True)` builds tensors, numbers and dictionaries and refuses everything
else; there is no way round it here. Around it stand the checks that it lacks: entries' checksums,
compressed entries (a small file could ask for any amount of memory), tensors larger than the file, and what
`pickle_scan` says.
"""

from __future__ import annotations

import io
import mmap
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from mlic_fast.checkpoint.layouts import architecture_in, weights_in
from mlic_fast.checkpoint.pickle_scan import ForeignObjectError, ScanError, scan_pickle
from mlic_fast.contexts import Architecture
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Tensors of a state dict may share memory (CompressAI's layout holds tables once for each slice);
# beyond this many bytes more than the file has, something is wrong.
_SHARED_BYTES = 1 << 26

# The file before there were zip files: four pickles (the first is this number, the next two the protocol and
# the writer's number sizes), the storages' keys, then their contents.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5


def read_pickle(
    path: Path, *, zipped: bool, choose: Callable[[Mapping[Any, Any]], tuple[Any, str]] = weights_in
) -> tuple[dict[str, Tensor], str, Architecture | None]:
    """Tensors of the state dict in a torch.save file, under the dtypes of the file, on the CPU; what was taken; and
    the architecture, where the file is one of our own training's.

    The file holds a state dict, or a dictionary with one in it that `choose` finds, see `layouts.weights_in` (what else
    is in there, optimizers for example, is left alone). Tensors may be views of the mapped file: copy what is kept.
    Raises CheckpointError if it is damaged, holds anything but data, or no state dict.
    """
    if zipped:
        _check_pickles(path, io.BytesIO(_checked_entries(path)), count=1)
    else:
        # mapped: reading a plain file allocates as much as it is asked for, whatever the file has
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_pickles(path, cast("IO[bytes]", content), count=_LEGACY_PICKLES)
    loaded = _load(path, mapped=zipped)
    state_dict, taken, architecture = loaded, "", None
    if isinstance(loaded, Mapping):
        try:
            architecture = architecture_in(loaded)
            state_dict, taken = choose(loaded)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError(f"{path} holds {_kind(state_dict)} where a state dict should be")
    return _tensors(state_dict, path), taken, architecture


def _checked_entries(path: Path) -> bytes:
    """The pickle in a zip file, all of whose entries are stored plainly and whole.

    torch.load itself does not compare checksums.
    """

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise CheckpointError(
                    f"{path}: entry {packed[0]} is compressed, which torch.save never does; unpack it and load "
                    "and save it with torch again"
                )
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path}: its entries are larger than the file; it is damaged")
            damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(
                    f"{path} is damaged: the checksum of entry {damaged} does not match its contents; get the file "
                    "again"
                )
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} is no PyTorch file: it is a zip file with {len(pickles)} entries data.pkl instead of one"
                )
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or was not downloaded completely: {error}") from error
    from mlic_fast.compute.private_torch import archive_record

    # Zip files can be made that two readers understand differently; the pickle looked at must be the one loaded.
    try:
        same = archive_record(path, "data.pkl") == content
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged or was not downloaded completely: {error}") from error
    if not same:
        raise CheckpointError(f"{path} is damaged or hostile: it is a zip file that reads in more than one way")
    return content


def _check_pickles(path: Path, file: IO[bytes], count: int) -> None:
    """Raise CheckpointError where a pickle holds what no checkpoint does."""
    values = 0
    try:
        for number in range(count):
            value, referred = scan_pickle(file)
            values += referred
            if count > 1 and number == 0 and value != _LEGACY_MAGIC:
                raise ScanError("it does not begin as torch.save begins")
    except ForeignObjectError as error:
        if error.name.startswith("torch._utils."):
            raise CheckpointError(
                f"{path} holds tensors of a kind that weights are not made of ({error.name}): make them plain"
            ) from error
        raise CheckpointError(
            f"{path} holds a Python object, {error.name}, beside its tensors. Reading such a file can run code, so "
            "it is refused. If you trust where it comes from, save its state dict alone, where the code of its classes "
            f"is at hand:\nimport torch\nsaved = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
            "is_model = isinstance(saved, torch.nn.Module)\n"
            "state = saved.state_dict() if is_model else {k: v for k, v in saved.items() if isinstance(v, (dict, "
            "torch.Tensor))}\ntorch.save(state, 'weights.pth')"
        ) from error
    except ScanError as error:
        raise CheckpointError(f"{path} is no PyTorch file that can be read safely: {error}") from error
    size = path.stat().st_size
    if values > size:
        raise CheckpointError(f"{path}: its tensors have {values:,} values, more than the {size:,} bytes of the file")


def _load(path: Path, *, mapped: bool) -> Any:
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            # about storage classes of the file, which its writer chose, not the reader
            warnings.simplefilter("ignore")
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[:1] or ["no reason given"]
        raise CheckpointError(f"{path} is no PyTorch file that can be read safely: {first[0][:300]}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is; it is damaged") from error
    # Anything at all can come out of an unpickler that is fed a damaged file.
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file ({reason}); it is damaged or of another kind"
        ) from error


def _tensors(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    import torch

    total = 0
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is {_kind(value)}, not a tensor: this is no state dict; "
                f"its keys begin with {', '.join(map(repr, list(state_dict)[:6]))}"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name!r} is a {value.layout} tensor on {value.device}, not a plain one")
        total += value.numel() * value.element_size()
    size = path.stat().st_size
    if total > size + _SHARED_BYTES:
        raise CheckpointError(
            f"{path}: its tensors would take {total:,} bytes, more than the {size:,} of the file; "
            "it is damaged or hostile"
        )
    return dict(state_dict)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an empty dictionary" if not value else f"a dictionary ({', '.join(map(repr, list(value)[:6]))} …)"
    return f"a {type(value).__name__}"
