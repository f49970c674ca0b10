# SPDX-License-Identifier: Apache-2.0
"""From the names that weights have in files to the official ones: wrappers, older CompressAI, CompressAI's own family.

Official names here means those of the authors' code with the entropy bottleneck spelt as
CompressAI 1.2.8 spells it (`matrices.0`); `shapes.expected_shapes` lists them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mlic_fast.checkpoint.shapes import GAUSSIAN_TABLES, SCALE_TABLE
from mlic_fast.contexts import FAMILY, Architecture
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Name parts that a wrapper put in: DistributedDataParallel, torch.compile, FSDP, activation checkpoints. No official
# name has such a part.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# A name that every model's weights have once, in either layout: what stands before it stands before all of them.
_SIGN = re.compile(r"(?:(.*?)\.)??(?:latent_codec\.z\.)?entropy_bottleneck\.quantiles")

# How deep a state dict lies in what was saved: {"checkpoint": {"model": {…}}}, and deeper than anybody puts it.
_DEEPEST = 4

# CompressAI 1.2.0b3 wrote `_matrix0`; before that, parameter lists were `_matrices.0`.
_BOTTLENECK = re.compile(r"entropy_bottleneck\._(?:(matri|bia|facto)(?:x|s|r)|(matri|bias|facto)(?:ces|es|rs)\.)(\d)")
_BOTTLENECK_PLURAL = {"matri": "matrices", "bia": "biases", "bias": "biases", "facto": "factors"}

# CompressAI's own family → official.
_SLICE = r"latent_codec\.y\.latent_codec\.y(\d+)\."
_COMPRESSAI = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"latent_codec\.(h_[as])\.", r"\1."),
        (r"latent_codec\.z\.entropy_bottleneck\.", "entropy_bottleneck."),
        (r"latent_codec\.y\.channel_context\.y(\d+)\.channel_part\.", r"channel_context.\1."),
        (r"latent_codec\.y\.channel_context\.y(\d+)\.global_inter_part\.", r"global_inter_context.\1."),
        (_SLICE + r"spatial_context_nonanchor\.", r"local_context.\1."),
        (_SLICE + r"intra_channel_context_nonanchor\.", r"global_intra_context.\1."),
        (_SLICE + r"spatial_context_anchor\.hgcp\.", r"global_hyper_context.\1."),
        (_SLICE + r"selective_predictor\.", r"selective_predictor.\1."),
        (_SLICE + r"((?:entropy_parameters|lrp)_(?:anchor|nonanchor))\.", r"\2.\1."),
    )
)
_GAUSSIAN_COPY = re.compile(_SLICE + r"y\.(gaussian_conditional\..+)")


def weights_in(saved: Mapping[Any, Any]) -> tuple[Any, str]:
    """The one state dict in what was saved, without what stands before its names; and what was taken, in words.

    saved: a state dict, or a dictionary with one in it under any key ("state_dict", "model", "ema", …) beside other
    things. Names may have a prefix ("model." in PyTorch Lightning's files); names without it are left out then, and
    so is the count beside a moving average. What has no weights of the family is given back as it is.
    Raises CheckpointError if several fit.
    """
    if "mlic_fast" in saved:  # our own training's file, with the weights before averaging beside the others
        saved = {key: value for key, value in saved.items() if key != "trained_weights"}
    found = list(_fitting(saved, "", 0, set()))
    if len(found) > 1:
        places = " and ".join(_place(key, prefix) for key, prefix, _ in found)
        raise CheckpointError(f"there are weights of several models in it, {places}: save one of them alone")
    if not found:
        return saved.get("state_dict", saved), ""
    key, prefix, state_dict = found[0]
    if prefix:
        cut = f"{prefix}."
        check_names(state_dict)
        inside = [name for name in state_dict if unwrapped(name).startswith(cut)]
        named = {unwrapped(name).removeprefix(cut): state_dict[name] for name in inside}
        if len(named) < len(inside):
            raise CheckpointError(f"some names after {prefix!r} are there twice: save one model alone")
        state_dict = named
    return {name: value for name, value in state_dict.items() if name != "n_averaged"}, _place(key, prefix)


def architecture_in(saved: Mapping[Any, Any]) -> Architecture | None:
    """Which member of the family a file of our own training says that it trained; None for other files.

    Raises CheckpointError for one that there is not.
    """
    found: Any = saved
    for key in ("mlic_fast", "recipe", "model", "architecture"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if found is None:
        return None
    for architecture in FAMILY:
        if found == architecture:
            return architecture
    raise CheckpointError(f"it was trained as {found!r:.80}, which this release does not know: update mlic-fast")


def _fitting(
    saved: Mapping[Any, Any], key: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, str, Mapping[Any, Any]]]:
    """(key, prefix, state dict) of each model's weights; one dictionary under several keys counts once."""
    if id(saved) in seen:
        return
    seen.add(id(saved))
    prefixes = {
        match[1] or "" for name in saved if isinstance(name, str) and (match := _SIGN.fullmatch(unwrapped(name)))
    }
    for prefix in sorted(prefixes):
        yield key, prefix, saved
    if depth < _DEEPEST:
        for name, value in saved.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _fitting(value, f"{key}.{name}" if key else name, depth + 1, seen)


def _place(key: str, prefix: str) -> str:
    """Where weights lie, for people."""
    names = f"names after {prefix!r}" if prefix else "all names"
    return f"{names} under {key!r}" if key else names


def layout_of(state_dict: Mapping[str, Any]) -> Literal["official", "compressai"]:
    """Whose names these are, wrappers aside: the authors' or those of CompressAI's own family.

    Raises CheckpointError if a name is no string.
    """
    check_names(state_dict)
    return "compressai" if any(unwrapped(name).startswith("latent_codec.") for name in state_dict) else "official"


def official_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors under official names; names that no rule knows are kept as they are.

    Raises CheckpointError if two names become one, if a name is no string, or if the copies of the
    Gaussian tables that CompressAI's layout keeps for each slice differ.
    """
    check_names(state_dict)
    result: dict[str, Any] = {}
    origin: dict[str, str] = {}
    copies: dict[str, list[tuple[str, Any]]] = {}
    for name, value in state_dict.items():
        plain = unwrapped(name)
        if copy := _GAUSSIAN_COPY.fullmatch(plain):
            copies.setdefault(copy.group(2), []).append((name, value))
            continue
        official = _official(plain)
        if official in result:
            raise CheckpointError(
                f"the weights hold {official} twice, as {origin[official]} and as {name}: "
                "two models seem to have been saved in one dictionary; save one of them"
            )
        result[official], origin[official] = value, name
    if copies:
        _merge_gaussian_copies(copies, result)
    return result


def check_names(state_dict: Mapping[Any, Any]) -> None:
    """Raise CheckpointError if a name is no string."""
    strange = [name for name in state_dict if not isinstance(name, str)]
    if strange:
        raise CheckpointError(
            f"a state dict maps names to tensors; here one key is {strange[0]!r}, a {type(strange[0]).__name__}"
        )


def unwrapped(name: str) -> str:
    """The name without the parts that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _official(name: str) -> str:
    for pattern, replacement in _COMPRESSAI:
        name, count = pattern.subn(replacement, name, count=1) if pattern.match(name) else (name, 0)
        if count:
            break
    if match := _BOTTLENECK.fullmatch(name):
        plural = _BOTTLENECK_PLURAL[match.group(1) or match.group(2)]
        return f"entropy_bottleneck.{plural}.{match.group(3)}"
    return name


def _merge_gaussian_copies(copies: Mapping[str, list[tuple[str, Any]]], result: dict[str, Any]) -> None:
    counts = Counter({name: len(values) for name, values in copies.items()})
    if len(set(counts.values())) > 1:
        few = min(counts, key=lambda name: counts[name])
        raise CheckpointError(
            f"CompressAI's layout keeps one gaussian_conditional for each slice; {few} is there "
            f"{counts[few]} times, others {max(counts.values())} times: the file is incomplete"
        )
    for name, values in copies.items():
        first_name, first = values[0]
        for other_name, other in values[1:]:
            if not _same(first, other):
                advice = (
                    "one stream cannot be coded with several tables; call update(force=True) on that model and save it"
                    if name in (*GAUSSIAN_TABLES, SCALE_TABLE)
                    else "a model has one Gaussian model for all slices"
                )
                raise CheckpointError(f"{first_name} and {other_name} differ: {advice}")
        if name in result:
            raise CheckpointError(f"the weights hold {name} twice, as itself and as {first_name}")
        result[name] = first


def _same(a: Tensor, b: Tensor) -> bool:
    import torch

    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
