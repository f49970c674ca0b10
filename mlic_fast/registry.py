# SPDX-License-Identifier: Apache-2.0
"""Finding weights: by name, by path, or by the fingerprint that a compressed file carries.

Looked at in this order: the weights bundled with the package, then the files and folders in the
environment variable MLIC_FAST_MODELS (separated as in PATH; folders are not searched recursively).
Native files are known by their headers, without torch; others have to be read as a whole for
their fingerprint, which is done last and remembered while the file does not change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from mlic_fast.checkpoint.files import read_checkpoint
from mlic_fast.checkpoint.labels import SUFFIXES, stem
from mlic_fast.checkpoint.native import SUFFIX, is_native, read_header
from mlic_fast.checkpoint.shapes import parameter_count
from mlic_fast.config import LossMetric, ModelConfig
from mlic_fast.contexts import Architecture, member_of
from mlic_fast.errors import CheckpointError, NotAModelError, WrongWeightsError

# Used where nobody names a model: the middle one of those that are bundled.
DEFAULT_MODEL = "mlicpp-s-0.0067"

ENVIRONMENT = "MLIC_FAST_MODELS"

# Fewer bytes of a fingerprint than this name no model: one chance in 2^32 that another one has them.
MIN_PREFIX = 4

Origin = Literal["bundled", "MLIC_FAST_MODELS", "path"]


@dataclass(frozen=True)
class KnownWeights:
    """Weights that are at hand: what they are called, where they are, what they say about themselves.

    fingerprint: 32 bytes, as the header says for native files (checked when they are loaded).
    lmbda, metric: the rate-distortion trade-off λ and what it was trained for, None where nobody says.
    guard_delta: largest difference in log-scale that the guard of its files covers, over passes and channels;
        None: not calibrated.
    size: the file's, in bytes.
    """

    name: str
    path: Path
    origin: Origin
    fingerprint: bytes
    config: ModelConfig
    lmbda: float | None
    metric: LossMetric | None
    guard_delta: float | None
    size: int

    @property
    def parameters(self) -> int:
        """How many trained numbers it has."""
        return parameter_count(self.config)

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint.hex()[:16]}, {self.path})"


@dataclass(frozen=True)
class Listing:
    """The models at hand, in the order of looking, and what could not be read: place and reason."""

    models: tuple[KnownWeights, ...]
    problems: tuple[tuple[Path, str], ...]


# (path, time of change, size) → what was found there; reading a full official file takes a second. Oldest first.
_read: dict[tuple[Path, int, int], KnownWeights | CheckpointError] = {}


_MOST_READ = 1024


def forget_files() -> None:
    """Look at every weights file anew at its next use."""
    _read.clear()


def available() -> Listing:
    """Everything at hand. Imports torch only where MLIC_FAST_MODELS has weights that are not native."""
    models: list[KnownWeights] = []
    problems: list[tuple[Path, str]] = []
    for path, origin in _places(problems):
        _look(path, origin, models, problems)
    return Listing(tuple(models), tuple(problems))


def resolve(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of a model given by name or path.

    A name is a native file's own name, or the stem of any weights file at hand ("mlicpp_mse_q5_2960000").
    What is the path of an existing file is that file; bundled names go before it.
    Raises FileNotFoundError for what looks like a path and does not exist, WrongWeightsError for
    a name that nothing at hand has.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise NotAModelError(f"the name or path of a model is wanted, not {type(path_or_name).__name__}")
    text = os.fspath(path_or_name)
    problems: list[tuple[Path, str]] = []
    places = list(_places(problems))
    if not isinstance(path_or_name, os.PathLike):
        for path, origin in places:
            if origin == "bundled" and stem(path) == text:
                return path
    path = _expanded(text)
    if path.is_file() or path.is_dir():
        return path  # a folder is refused, with advice, on reading
    if isinstance(path_or_name, os.PathLike) or path.name != text or text.lower().endswith(SUFFIXES):
        raise FileNotFoundError(f"there is no weights file {path}")
    names: list[str] = []
    for place, origin in places:
        own = _own_name(place, origin, problems)
        if text in (own, stem(place)):
            return place
        names.append(own)
    raise WrongWeightsError(
        f"there is no model called {text!r}; at hand are {', '.join(names) or 'none'}{_told(problems)}. "
        f"Give a path, or name the file or its folder in {ENVIRONMENT}"
    )


def find(path_or_name: str | os.PathLike[str]) -> KnownWeights:
    """The same as `resolve`, with all that is known of the model. Raises CheckpointError for an unreadable file."""
    path = resolve(path_or_name)
    problems: list[tuple[Path, str]] = []
    origins = dict(_places(problems))
    return _identify(path, origins.get(path, "path"))


def find_by_fingerprint(prefix: bytes, name: str | None = None, architecture: Architecture = "mlicpp") -> KnownWeights:
    """The model that a compressed file was written with.

    prefix: the first bytes of its fingerprint, at least MIN_PREFIX; name, architecture: what the file calls it, for the
        error's sake only: models are told apart by fingerprints.
    Raises WrongWeightsError, saying what the file wants and what is at hand.
    """
    if len(prefix) < MIN_PREFIX:
        raise WrongWeightsError(
            f"{len(prefix)} bytes of a fingerprint do not tell which weights are meant; it takes {MIN_PREFIX} at least"
        )
    models: list[KnownWeights] = []
    problems: list[tuple[Path, str]] = []
    places = list(_places(problems))
    # Native files first, whatever the order: their headers are cheap.
    for native in (True, False):
        for path, origin in places:
            if (path.suffix == SUFFIX) != native:
                continue
            model = _look(path, origin, models, problems)
            if model is not None and model.fingerprint.startswith(prefix):
                return model
    wanted = f"{name!r}, fingerprint {prefix.hex()}" if name else f"fingerprint {prefix.hex()}"
    if architecture != "mlicpp":
        title = member_of(architecture).title
        wanted += f", an {title} model (convert its weights with --architecture {architecture} if they do not say so)"
    raise WrongWeightsError(
        f"the file was written with other weights than those at hand. It wants {wanted}; at hand are "
        f"{', '.join(map(str, models)) or 'none'}{_told(problems)}. "
        f"Name the right weights, or put them where {ENVIRONMENT} points"
    )


def bundled_folder() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(resources.files("mlic_fast") / "weights"))


def _places(problems: list[tuple[Path, str]]) -> Iterator[tuple[Path, Origin]]:
    """Every weights file at hand, once."""
    seen: set[Path] = set()
    bundled = sorted(bundled_folder().glob(f"*{SUFFIX}"))
    named = [_expanded(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    for path in bundled:
        seen.add(path)
        yield path, "bundled"
    for place in named:
        try:
            files = sorted(_weights_in(place)) if place.is_dir() else [place]
        except OSError as error:
            problems.append((place, f"{ENVIRONMENT}: {error.strerror or error}"))
            continue
        if not place.exists():
            problems.append((place, f"{ENVIRONMENT}: there is no such file or folder"))
            continue
        for path in files:
            if path not in seen:
                seen.add(path)
                yield path, "MLIC_FAST_MODELS"


def _expanded(text: str) -> Path:
    """The path with "~" resolved; as it stands where there is no such user: "~backup.pth.tar" is a file's name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _weights_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and path.is_file()]


def _look(
    path: Path, origin: Origin, models: list[KnownWeights], problems: list[tuple[Path, str]]
) -> KnownWeights | None:
    """Identify a file and note it as a model or as a problem."""
    try:
        model = _identify(path, origin)
    except (CheckpointError, OSError) as error:
        problems.append((path, str(error)))
        return None
    models.append(model)
    return model


def _identify(path: Path, origin: Origin) -> KnownWeights:
    """Raises CheckpointError or OSError."""
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    known = _read.get(key)
    if known is None:
        try:
            known = _identify_anew(path, origin)
        except CheckpointError as error:
            known = error
        _read[key] = known
        for oldest in list(_read)[:-_MOST_READ]:
            _read.pop(oldest, None)
    if isinstance(known, CheckpointError):
        raise CheckpointError(str(known))
    return replace(known, origin=origin)


def _identify_anew(path: Path, origin: Origin) -> KnownWeights:
    header = read_header(path) if is_native(path) else None
    found = header if header is not None else read_checkpoint(path)
    return KnownWeights(
        name=found.name,
        path=path,
        origin=origin,
        fingerprint=found.fingerprint,
        config=found.config,
        lmbda=found.lmbda,
        metric=found.metric,
        guard_delta=None if found.guard_deltas is None else max(map(max, found.guard_deltas)),
        size=path.stat().st_size,
    )


def _own_name(path: Path, origin: Origin, problems: list[tuple[Path, str]]) -> str:
    """A native file's name, otherwise the stem; no weights are read."""
    if path.suffix == SUFFIX:
        try:
            header = read_header(path)
        except (CheckpointError, OSError) as error:
            problems.append((path, str(error)))
            header = None
        if header is not None:
            return header.name
    return stem(path)


def _told(problems: list[tuple[Path, str]]) -> str:
    if not problems:
        return ""
    # messages of a file's own begin with its path
    texts = [text if str(path) in text else f"{path}: {text}" for path, text in problems]
    return "; could not be read: " + "; ".join(texts)
