# SPDX-License-Identifier: Apache-2.0
"""From picture to bytes and back: the whole path, each step one call."""

from __future__ import annotations

import threading
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from mlic_fast import coding
from mlic_fast.bitstream import container, official, sniff
from mlic_fast.checkpoint import fingerprint
from mlic_fast.compute.derived import tensors_of
from mlic_fast.compute.device import memory_errors, resolve_device
from mlic_fast.compute.forks import after_fork, settle
from mlic_fast.contexts import member_of
from mlic_fast.errors import BitstreamError, DeviceError, ImageError, WrongWeightsError
from mlic_fast.limits import Limits
from mlic_fast.nn.network import Network, fingerprints
from mlic_fast.pictures.image import (
    Mode,
    Padding,
    crop,
    open_image,
    pack_alpha,
    pad_to_64,
    to_pillow,
    to_pixels,
    to_tensor,
    unpack_alpha,
)
from mlic_fast.pictures.metadata import info_of, to_chunks
from mlic_fast.registry import DEFAULT_MODEL, find_by_fingerprint, resolve
from mlic_fast.wrappers import unwrapped

if TYPE_CHECKING:
    from PIL import Image

FileFormat = Literal["mlic", "official"]
# a module: MLICPlusPlus or another member of the family, or a wrapper of PyTorch's around one
ModelOrName = nn.Module | str | PathLike[str] | None


def encode(
    image: Any,
    model: ModelOrName = None,
    *,
    device: str | torch.device | None = None,
    format: FileFormat = "mlic",
    limits: Limits | None = None,
    guard: bool = True,
    metadata: bool = True,
    thumbnail: int = 0,
    reduce_depth: bool = False,
    frame: int | None = None,
    strict: bool = False,
) -> bytes:
    """Compress a picture.

    image: path, PIL image, bytes of an image file, or uint8 array or tensor [H, W, 3] or [H, W], with
        2 or 4 channels if the last is alpha.
    model: a model (in torch.compile or DataParallel too), or the name or path of one; None: the default one of the
        bundled models.
    device: where a named model runs; None: the first CUDA device, or else the CPU. A model that is
        handed in runs where it is.
    format: "mlic", or "official" for the layout of the official test script, which holds no alpha and no metadata.
    limits: what the picture may measure; None: Pillow's pixel limit.
    guard: protect the .mlic file against rounding differences between machines (docs/portability.md); without it
        the file is some 0.2 % smaller, and is only sure to decode where it was written.
    metadata: False leaves EXIF, XMP, comments and the resolution out. The colour profile stays: colours need it.
    thumbnail: pixels of the longer side of a thumbnail to put into the file, at most 512; 0: none.
    reduce_depth: 16-bit samples become 8-bit ones instead of being refused.
    frame: which picture of an animation or a document, from 1; None: the first.
    strict: refuse a picture of which something cannot be kept, which otherwise is said with a NotKeptWarning.

    Raises FileNotFoundError, ImageError, LimitError, CheckpointError, WrongWeightsError, DeviceError, NotAModelError.
    """
    if format not in get_args(FileFormat):
        raise BitstreamError(f"there is no file format {format!r}: use one of {', '.join(get_args(FileFormat))}")
    picture = open_image(image, limits, reduce_depth, frame=frame, strict=strict)
    if format == "official":
        if picture.alpha is not None or thumbnail:
            raise ImageError("the official layout holds neither alpha nor a thumbnail: use the format mlic")
        extras: tuple[container.Metadata, ...] = ()
    else:
        extras = to_chunks(picture, metadata, thumbnail, Limits.of(limits))
    with memory_errors(f"encoding {picture.width} x {picture.height} pixels"):
        network = open_model(model, device)
        if format == "official" and network.config.architecture != "mlicpp":
            raise BitstreamError(
                f"the official layout is MLIC++'s and names no weights: use the format mlic for {_title(network)}"
            )
        # before the work: a model whose weights cannot be named is refused
        own = b"" if format == "official" else model_fingerprint(network)[: container.FINGERPRINT_BYTES]
        # The official rule is zeros. Fading out costs fewer bits, and decoding does not depend on it.
        padding: Padding = "zero" if format == "official" else "fade"
        x = pad_to_64(to_tensor(picture).to(_device_of(network)), padding)
        deltas = network.guard_deltas if guard and format == "mlic" else None
        y, (z,), moves = coding.compress(network, x, exact=format == "official", deltas=deltas)
    if format == "official":
        return official.write(official.OfficialFile(height=picture.height, width=picture.width, y=y, z=z))
    return container.write(
        container.Mlic(
            width=picture.width,
            height=picture.height,
            mode=picture.mode,
            architecture=network.config.architecture,
            variant=network.config.variant,
            model_name=container.fit_name(network.name),
            fingerprint=own,
            z=z,
            y=y,
            padding=padding,
            guard=moves,
            alpha=None if picture.alpha is None else pack_alpha(picture.alpha),
            metadata=extras,
        )
    )


def decode(
    data: bytes | bytearray | memoryview,
    model: ModelOrName = None,
    *,
    device: str | torch.device | None = None,
    limits: Limits | None = None,
) -> Image.Image:
    """Decompress what `encode` wrote, in either format, to a PIL image of mode "L", "LA", "RGB" or "RGBA".

    Its `info` has what the file carries, under Pillow's names: icc_profile, exif, xmp, comment, dpi.

    model: the model it was written with; None: found by the file's fingerprint among the bundled
        models and the files in MLIC_FAST_MODELS. Files in the official layout name no weights,
        so for them it must be given.
    device, limits: as for `encode`.

    Raises BitstreamError for damaged data (NotMlicFileError, TruncatedFileError, and GuardError where the scales
    computed here differ from the encoder's by more than the file allows for), WrongWeightsError where the weights are
    not those of the file or are not at hand, LimitError, DeviceError.
    """
    file = _read(data, limits)
    # before the work: a damaged alpha chunk costs no run of the network
    alpha = unpack_alpha(file) if isinstance(file, container.Mlic) else None
    x_hat, mode = _decode_tensor(file, model, device, limits)
    with memory_errors("making a picture"):
        image = to_pillow(to_pixels(x_hat, mode), alpha)
    if isinstance(file, container.Mlic):
        image.info.update(info_of(file))
    return image


def decode_tensor(
    data: bytes | bytearray | memoryview,
    model: ModelOrName = None,
    *,
    device: str | torch.device | None = None,
    limits: Limits | None = None,
) -> tuple[Tensor, Mode]:
    """As `decode`, but the model's own output: float [1, 3, H, W], neither clamped nor rounded, without alpha."""
    return _decode_tensor(_read(data, limits), model, device, limits)


def _decode_tensor(
    file: container.Mlic | official.OfficialFile,
    model: ModelOrName,
    device: str | torch.device | None,
    limits: Limits | None,
) -> tuple[Tensor, Mode]:
    height, width = file.height, file.width
    guard = file.guard if isinstance(file, container.Mlic) else None
    with memory_errors(f"decoding {width} x {height} pixels"):
        network = open_model_of(file, model, device)
        exact = isinstance(file, official.OfficialFile)
        x_hat = coding.decompress(network, coding.Coded(file.y, [file.z], guard), file.z_shape, exact=exact)
    return crop(x_hat, height, width), file.mode if isinstance(file, container.Mlic) else "rgb"


def model_fingerprint(model: nn.Module) -> bytes:
    """SHA-256 over the model's architecture, weights and coding tables (32 bytes), remembered until they change.

    Raises WrongWeightsError for a model whose weights are not float32: they are others than those that
    whoever decodes has. Writing to weights through `.data` is not noticed: call the model's refresh().
    """
    network = unwrapped(model)
    state = network.state_dict(keep_vars=True)
    other = {str(tensor.dtype) for tensor in state.values() if tensor.is_floating_point()} - {"torch.float32"}
    if other:
        raise WrongWeightsError(
            f"the model has {', '.join(sorted(other))} weights, which files cannot be written or read with: keep the "
            "weights in float32, and for 16-bit arithmetic run the model under torch.autocast"
        )
    architecture = network.config.architecture
    return fingerprints.get(network, tensors_of(network), lambda: fingerprint(state, architecture))


def open_model(model: ModelOrName = None, device: str | torch.device | None = None) -> Network:
    """The model that `encode` uses for these arguments. Models from files are kept for later calls."""
    if model is not None and not isinstance(model, (str, PathLike)):
        network = unwrapped(model)
        wanted, here = None if device is None else resolve_device(device), _device_of(network)
        if wanted is not None and (wanted.type != here.type or wanted.index not in (None, here.index)):
            raise DeviceError(f"the model is on {here}, not on {device}: move it there with model.to()")
        settle(here)
        return network
    path = resolve(DEFAULT_MODEL if model is None else model)
    status = path.stat()
    with _loading:  # threads that want the same weights wait for one to read them
        place = resolve_device(device)
        settle(place)
        key = path, str(place), status.st_mtime_ns, status.st_size
        kept = _loaded.pop(key, None)
        if kept is None:
            for other in [other for other in _loaded if other[:2] == key[:2]]:
                del _loaded[other]  # the file has changed
            kept = Network.from_checkpoint(path, place)
        _loaded[key] = kept
        while len(_loaded) > 1 and sum(map(_size_of, _loaded.values())) > MOST_KEPT:
            del _loaded[next(iter(_loaded))]
        return kept


def open_model_of(
    data: Any, model: ModelOrName = None, device: str | torch.device | None = None, limits: Limits | None = None
) -> Network:
    """The model that `decode` uses for these arguments; data: a compressed file's bytes.

    Raises what `decode` raises, WrongWeightsError above all.
    """
    file = data if isinstance(data, (container.Mlic, official.OfficialFile)) else _read(data, limits)
    if isinstance(file, official.OfficialFile):
        if model is None:
            raise WrongWeightsError(
                "a file in the official layout does not say which weights it was written with: name them"
            )
        network = open_model(model, device)
        if network.config.architecture != "mlicpp":
            raise WrongWeightsError(f"files in the official layout are MLIC++'s; this model is {_title(network)}")
        return network
    if model is None:
        model = find_by_fingerprint(file.fingerprint, file.model_name, file.architecture).path
    network = open_model(model, device)
    if network.config.architecture != file.architecture:
        raise WrongWeightsError(
            f"the file was written with an {member_of(file.architecture).title} model, "
            f"{file.model_name or 'without a name'}; {network.name or 'this'} is an {_title(network)} one"
        )
    own = model_fingerprint(network)[: container.FINGERPRINT_BYTES]
    if own != file.fingerprint:
        raise WrongWeightsError(
            f"the file was written with the weights {file.model_name or 'without a name'} ({file.fingerprint.hex()}), "
            f"not with {network.name or 'these'} ({own.hex()}): name the right ones"
        )
    return network


def _read(data: bytes | bytearray | memoryview, limits: Limits | None) -> container.Mlic | official.OfficialFile:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BitstreamError(f"a compressed file's bytes are wanted, not {type(data).__name__}: read the file first")
    if sniff(data) == "official":
        return official.read(data, limits)
    return container.read(data, limits)  # also says best what is wrong with anything else


_loading = threading.RLock()


def _renew() -> None:
    global _loading
    _loading = threading.RLock()


after_fork(_renew)


# Bytes of weights from files that are kept, so that a loop over pictures reads them once: three full-size models, or
# all six of a family of small ones. The model that was used last is kept whatever its size.
MOST_KEPT = 2**30

# (path, device, time of change, size) → model, the one that was used last is last
_loaded: dict[tuple[Path, str, int, int], Network] = {}


def forget_models() -> None:
    """Read every model's file anew at its next use."""
    with _loading:
        _loaded.clear()


def _title(network: Network) -> str:
    return network.config.member.title


def _size_of(network: Network) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(network))


def _device_of(model: Network) -> torch.device:
    return next(model.parameters()).device
