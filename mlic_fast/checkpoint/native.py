# SPDX-License-Identifier: Apache-2.0
"""The native form of weights: a safetensors file that says which model it is.

Its metadata has one key, "mlic_fast", with a JSON object (one key, so that the same weights make the same
bytes): "format" (1, 2 or 3), "name", "lmbda" (number or null), "metric" ("mse", "ms-ssim" or null), "config" (N, M,
slice_num, context_window, variant), "fingerprint" (hex), and for calibrated models "guard_deltas" (a list for
each pass with a multiple of 1e-7 for each channel). Readers ignore keys that they do not know and refuse a
larger "format". Tensors have official names; floats are float32, or float16 where `halved` says so; coding tables
are int32 and always there. In format 2 the tables of bounds are int16: the lower half of each bound, so that
65536, with which every row ends, is 0.

Format 3 is for what older releases would decode wrongly: whatever else is in the file, they refuse it. "config" then
may have an "architecture" (absent: "mlicpp"), and the key "rates" is kept for weights that take a quantisation step
(absent: the step is 1); this release writes none, and refuses files that have it. The tables' form is as in 1 or 2.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mlic_fast.checkpoint.fingerprint import FINGERPRINT_SIZE, fingerprint
from mlic_fast.checkpoint.shapes import Shape
from mlic_fast.checkpoint.validate import CDF_TOTAL, check_finite, check_position_indexes, check_shapes, check_tables
from mlic_fast.config import LossMetric, ModelConfig
from mlic_fast.entropy.guard import DELTA_UNIT, delta_code
from mlic_fast.errors import CheckpointError, ConfigError, GuardError
from mlic_fast.output import write_whole

if TYPE_CHECKING:
    from torch import Tensor

# δ of the guard, in log-scale: for each pass, of each channel of a slice
Deltas = tuple[tuple[float, ...], ...]

SUFFIX = ".safetensors"
FORMAT = 3
MAX_NAME_LENGTH = 255

_KEY = "mlic_fast"
_BOUNDS = tuple(f"{prefix}._quantized_cdf" for prefix in ("entropy_bottleneck", "gaussian_conditional"))
# The full model's header has 150 kB; safetensors itself allows 100 MB.
_MAX_HEADER = 1 << 24
# What the format allows in a dtype field and we can use.
_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"})


@dataclass(frozen=True)
class NativeHeader:
    """What a native file says about its weights; nothing of it is checked against the tensors yet.

    name: the model's name; lmbda: rate-distortion λ; metric: what it was trained for; config: the
    model's shape; fingerprint: 32 bytes, see `checkpoint.fingerprint`; shapes: every tensor's; guard_deltas: what
    `mlic-fast calibrate` found that files must allow for, in log-scale, for each pass and channel; None if it has
    not been run.
    """

    name: str
    config: ModelConfig
    fingerprint: bytes
    lmbda: float | None
    metric: LossMetric | None
    shapes: dict[str, Shape]
    guard_deltas: Deltas | None = None


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a safetensors file does (of this package or not)."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    # a length of at most _MAX_HEADER, then JSON
    return len(start) == 9 and int.from_bytes(start[:8], "little") <= _MAX_HEADER and start[8:] == b"{"


def read_header(path: str | os.PathLike[str]) -> NativeHeader | None:
    """Read what a native file says about itself, without torch; None for a safetensors file of others.

    Raises CheckpointError if the header is damaged, of a newer format, or says something impossible,
    and OSError if there is no such file.
    """
    path = Path(path)
    header = _read_json_header(path)
    metadata = header.pop("__metadata__", {})
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: metadata {_KEY!r} is not a string; the file is damaged")
    return _parse_metadata(
        path, _parse_json(path, text), {name: _shape(path, name, entry) for name, entry in header.items()}
    )


def read_native(path: Path) -> tuple[dict[str, Tensor], NativeHeader | None]:
    """Tensors as stored, and the header, None for a safetensors file of others. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or was not copied completely: {error}") from error
    return (tensors if header is None else _unpacked(tensors)), header


def write_native(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    name: str,
    lmbda: float | None = None,
    metric: LossMetric | None = None,
    guard_deltas: Deltas | None = None,
    half: bool = False,
) -> NativeHeader:
    """Write canonical weights (as `read_checkpoint` returns them) with their coding tables, whole or not at all.

    half: store the weights of convolutions and linear layers in float16, and the tables of bounds in 16 bits, which
        takes nothing from them. The fingerprint is that of what a reader gets, so it differs from the unrounded
        weights' one.
    Raises CheckpointError for weights that would be refused on reading, OSError where the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    _check_labels(name, lmbda, metric)
    _check_deltas(guard_deltas, config)
    check_shapes({key: tuple(tensor.shape) for key, tensor in state_dict.items()}, config)
    check_finite(state_dict)
    check_position_indexes(state_dict, config)
    check_tables(state_dict, config)
    stored = {}
    for key, tensor in state_dict.items():
        kept = tensor.detach().to("cpu").contiguous()
        if half and halved(key, tensor):
            kept = kept.to(torch.float16)
            if not bool(kept.isfinite().all()):
                raise CheckpointError(f"{key} reaches {tensor.abs().max().item():g}, too large for half precision")
        stored[key] = kept
    loaded = {key: value.float() if value.dtype == torch.float16 else value for key, value in stored.items()}
    if half:
        stored |= {name: stored[name].to(torch.int16) for name in _BOUNDS}
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    header = NativeHeader(name, config, fingerprint(loaded, config.architecture), lmbda, metric, shapes, guard_deltas)
    labels: dict[str, Any] = {
        # what older releases can read says so
        "format": FORMAT if config.architecture != "mlicpp" else 2 if half else 1,
        "name": name,
        "lmbda": lmbda,
        "metric": metric,
        "config": _config_values(config),
        "fingerprint": header.fingerprint.hex(),
    }
    if guard_deltas is not None:
        labels["guard_deltas"] = _codes(guard_deltas)
    write_whole(path, save(stored, metadata={_KEY: json.dumps(labels)}))
    return header


def with_deltas(source: str | os.PathLike[str], target: str | os.PathLike[str], guard_deltas: Deltas) -> None:
    """Copy a native file, tensors byte by byte, and put these δ into its header; the target appears whole or not.

    Raises CheckpointError if the source is damaged or not native, or the δ do not fit it, and OSError.
    """
    source = Path(source)
    known = read_header(source)
    if known is None:
        raise CheckpointError(f"{source} has no header of ours: convert it first")
    _check_deltas(guard_deltas, known.config)
    header = _read_json_header(source)
    labels = json.loads(header["__metadata__"][_KEY])
    labels["guard_deltas"] = _codes(guard_deltas)
    header["__metadata__"][_KEY] = json.dumps(labels)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns what follows
    content = source.read_bytes()
    tensors = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    write_whole(target, b"".join((len(text).to_bytes(8, "little"), text, tensors)))


def halved(name: str, tensor: Tensor) -> bool:
    """Whether `half` applies: to weights of convolutions and linear layers and to nothing else."""
    return name.endswith(".weight") and tensor.dim() >= 2  # GDN's are called gamma, a norm's have one dimension


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bounds of 16 bits as int32. Rows that do not end where their length says stay what they are, to be refused."""
    import numpy as np
    import torch

    for name in _BOUNDS:
        bounds, lengths = tensors.get(name), tensors.get(name.replace("_quantized_cdf", "_cdf_length"))
        if bounds is None or lengths is None or bounds.dtype != torch.int16 or bounds.dim() != 2:
            continue
        whole = bounds.numpy().view(np.uint16).astype(np.int32)
        if lengths.shape == bounds.shape[:1] and lengths.dtype == torch.int32:
            ends = np.arange(whole.shape[1]) == lengths.numpy()[:, None].astype(np.int64) - 1
            whole[ends & (whole == 0)] = CDF_TOTAL
        tensors[name] = torch.from_numpy(whole)
    return tensors


def check_name(name: str) -> None:
    """Raise CheckpointError unless the name can go into files: 1 to 255 bytes of UTF-8, printable, no slashes."""
    size = len(name.encode(errors="replace"))
    if not 1 <= size <= MAX_NAME_LENGTH or not name.isprintable() or set(name) & {"/", "\\"} or name.strip() != name:
        raise CheckpointError(
            f"{name[:80]!r} cannot be a model's name: 1 to {MAX_NAME_LENGTH} bytes, printable, without slashes or "
            "spaces around"
        )


def _check_labels(name: str, lmbda: float | None, metric: str | None) -> None:
    check_name(name)
    if lmbda is not None and not (math.isfinite(lmbda) and lmbda > 0):
        raise CheckpointError(f"λ must be a finite positive number, not {lmbda!r}")
    if metric is not None and metric not in get_args(LossMetric):
        raise CheckpointError(f"metric must be one of {', '.join(get_args(LossMetric))}, not {metric!r}")


def _check_deltas(deltas: Deltas | None, config: ModelConfig) -> None:
    if deltas is None:
        return
    if len(deltas) != 2 * config.slice_num or any(len(channels) != config.slice_width for channels in deltas):
        raise CheckpointError(
            f"the guard's δ are not of {2 * config.slice_num} passes with {config.slice_width} channels each"
        )
    try:
        for delta in {delta for channels in deltas for delta in channels}:
            delta_code(delta)
    except GuardError as error:
        raise CheckpointError(str(error)) from None


def _config_values(config: ModelConfig) -> dict[str, Any]:
    values = asdict(config)
    if config.architecture == "mlicpp":  # as every release has written it
        del values["architecture"]
    return values


def _config(version: int, values: Any) -> ModelConfig:
    """Raises ConfigError; TypeError for an architecture in a format that older releases read without looking at it."""
    if version < 3 and isinstance(values, dict) and "architecture" in values:
        raise TypeError(f"an architecture in format {version}")
    return ModelConfig.from_object(values)


def _codes(deltas: Deltas) -> list[list[int]]:
    return [[delta_code(delta) for delta in channels] for channels in deltas]


def _deltas(values: Any) -> Deltas | None:
    """Raises TypeError for what is not lists of whole numbers."""
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(channels, list) for channels in values):
        raise TypeError("the guard's δ are not lists of lists")
    if not all(type(code) is int and 0 <= code <= 10**6 for channels in values for code in channels):
        raise TypeError("the guard's δ are not whole numbers")
    return tuple(tuple(code * DELTA_UNIT for code in channels) for channels in values)


def _read_json_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is no safetensors file, or was not copied completely ({size} bytes)")
        data = file.read(length)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: its header is not UTF-8; the file is damaged") from error
    return _parse_json(path, text)


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is no JSON ({error}); the file is damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: its header is a JSON {type(value).__name__}, not an object; the file is damaged"
        )
    return value


def _shape(path: Path, name: str, entry: Any) -> Shape:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(f"{path}: the header gives no shape for {name}; the file is damaged")
    if entry.get("dtype") not in _DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {entry.get('dtype')!r}, which weights cannot have")
    return tuple(shape)


def _parse_metadata(path: Path, values: dict[str, Any], shapes: dict[str, Shape]) -> NativeHeader:
    version = values.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: metadata {_KEY!r} has no format number; the file is damaged")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this release reads up to {FORMAT}: a newer one wrote it, update mlic-fast"
        )
    if "rates" in values:
        raise CheckpointError(
            f'{path}: these weights take a quantisation step (metadata "rates"), which this release cannot apply: '
            "update mlic-fast"
        )
    name, lmbda, metric = values.get("name"), values.get("lmbda"), values.get("metric")
    if not isinstance(name, str) or not (lmbda is None or type(lmbda) in (int, float)):
        raise CheckpointError(f"{path}: name {name!r} or λ {lmbda!r} is of the wrong type; the file is damaged")
    try:
        lmbda = None if lmbda is None else float(lmbda)
        _check_labels(name, lmbda, metric)
        digest = bytes.fromhex(values["fingerprint"])
        config = _config(version, values["config"])
        deltas = _deltas(values.get("guard_deltas"))
        _check_deltas(deltas, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be used ({error}); the file is damaged") from error
    if len(digest) != FINGERPRINT_SIZE:
        raise CheckpointError(f"{path}: its fingerprint has {len(digest)} bytes, not {FINGERPRINT_SIZE}")
    return NativeHeader(name, config, digest, lmbda, metric, shapes, deltas)
