# SPDX-License-Identifier: Apache-2.0
"""Conversion of weights of any known kind to the native form."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlic_fast.checkpoint.files import Checkpoint, read_checkpoint
from mlic_fast.checkpoint.native import SUFFIX, Deltas, NativeHeader, write_native
from mlic_fast.config import LossMetric
from mlic_fast.contexts import Architecture
from mlic_fast.errors import CheckpointError


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: what it read, what it wrote, and whether λ and metric are only the file name's word."""

    source: Checkpoint
    written: NativeHeader
    labels_guessed: bool


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    architecture: Architecture | None = None,
    lmbda: float | None = None,
    metric: LossMetric | None = None,
    guard_deltas: Deltas | None = None,
    half: bool = False,
) -> Conversion:
    """Read weights of any kind and write them as native safetensors, with coding tables, whole or not at all.

    architecture: whose weights they are, as for `read_checkpoint`. name: default the source's name.
    lmbda, metric: default what the source says, in its header or its file name.
    guard_deltas: likewise, see NativeHeader; a model that is halved loses the source's.
    half: see `write_native`; the converted model then is another model than the source, with its own fingerprint.
    Raises FileNotFoundError, CheckpointError, ConfigError, and OSError where the target cannot be written.
    """
    target = Path(target)
    if target.suffix != SUFFIX:
        raise CheckpointError(f"{target}: native weights end in {SUFFIX}; models are found by it")
    checkpoint = read_checkpoint(source, architecture)
    guessed = checkpoint.guessed and (
        (lmbda is None and checkpoint.lmbda is not None) or (metric is None and checkpoint.metric is not None)
    )
    written = write_native(
        target,
        checkpoint.state_dict,
        checkpoint.config,
        name=checkpoint.name if name is None else name,
        lmbda=checkpoint.lmbda if lmbda is None else lmbda,
        metric=checkpoint.metric if metric is None else metric,
        guard_deltas=checkpoint.guard_deltas if guard_deltas is None and not half else guard_deltas,
        half=half,
    )
    return Conversion(checkpoint, written, guessed)
