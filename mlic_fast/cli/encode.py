# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast encode`: a picture to a compressed file, or a folder of pictures to a folder of files."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import batch, common, folders
from mlic_fast.cli.shards import Shard
from mlic_fast.errors import MlicError, TargetError

if TYPE_CHECKING:
    from mlic_fast.limits import Limits
    from mlic_fast.nn.network import Network
    from mlic_fast.pictures.image import Picture
    from mlic_fast.rate_control import Hit, Target

DESCRIPTION = """\
Compress a picture (anything Pillow reads: PNG, JPEG, WebP, …; grey or RGB, with or without transparency) to an .mlic \
file. Colour profile, EXIF, XMP, comments and resolution are kept; orientation is applied. What cannot be kept is \
named in a warning (and in --json): further pictures of an animation or document, deeper samples, inks. The file \
appears whole or not at all.

If IN is a folder, all pictures in it and in its subfolders are compressed to a tree of the same shape in the folder \
OUT, which may be IN itself. Files get the times of their pictures. A file that was made of the same picture with the \
same model and options is done (hidden files in OUT, .mlic-fast-record-*, say so; without them its time and the model \
that it names decide), so the same command goes on after it was stopped, and does only what has changed when it is \
run again. Pictures are known by the endings of their names; hidden files, other files and links to folders are left \
out. If two names would give one (a.png, a.jpg), both keep their ending (a.png.mlic, a.jpg.mlic); what an earlier run \
called otherwise is named. A picture that fails does not stop the others: failures are listed at the end. A folder \
without any picture is an error (exit code 4).
"""

EPILOG = """several GPUs or machines:
  Started by torchrun or srun, each process takes its own part of a folder, by RANK and
  WORLD_SIZE or SLURM_PROCID and SLURM_STEP_NUM_TASKS (else SLURM_NTASKS), and with --device
  auto or cuda the GPU that LOCAL_RANK or SLURM_LOCALID says.

examples:
  mlic-fast encode photo.png -o photo.mlic --measure
  mlic-fast encode photo.png -o photo.mlic --target-bpp 0.5
  mlic-fast encode photos -o coded --in-flight 4
  torchrun --nproc-per-node 8 --no-python mlic-fast encode photos -o coded
  mlic-fast encode - -o - < photo.png | mlic-fast decode - -o - > decoded.png

environment:
  MLIC_FAST_MODELS       files and folders of weights, separated as in PATH
  MLIC_FAST_BACKEND      torch, cpu, triton or auto (default: auto)
  MLIC_FAST_ENGINE       off: do without the compiled engine
  RANK, WORLD_SIZE, …    see above; RANK=0 WORLD_SIZE=1 takes a whole folder whatever started it
"""

_ENDINGS = {"mlic": ".mlic", "official": ".bin"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN", help="picture or folder; - for standard input")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="file, or folder if IN is one; - for standard output"
    )
    parser.add_argument("--format", choices=("mlic", "official"), default="mlic", help="layout (default: %(default)s)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="decode again and report PSNR and MS-SSIM of the colours (of a single picture)",
    )
    common.add_model_arguments(parser)
    common.add_json_argument(parser)

    kept = parser.add_argument_group("what the file holds")
    kept.add_argument(
        "--strip-metadata", action="store_true", help="leave out EXIF, XMP, comments and resolution; not the profile"
    )
    kept.add_argument(
        "--thumbnail",
        type=common.positive_of(512),
        default=0,
        metavar="N",
        help="put in a thumbnail with a longer side of N pixels, at most 512 (default: none)",
    )
    kept.add_argument("--reduce-depth", action="store_true", help="reduce 16-bit samples to 8 bits, not refuse them")
    kept.add_argument(
        "--frame",
        type=common.positive_of(2**31),
        metavar="N",
        help="which picture of an animation or a document to take, from 1 (default: the first, with a warning)",
    )
    kept.add_argument(
        "--strict", action="store_true", help="refuse a picture of which something cannot be kept, not warn about it"
    )
    kept.add_argument(
        "--no-guard",
        action="store_true",
        help="leave out what protects decoding elsewhere against rounding differences; saves some bytes",
    )

    target = parser.add_argument_group(
        "rate control", "Choose among models at hand that were trained for several λ; see `mlic-fast models`."
    )
    one = target.add_mutually_exclusive_group()
    one.add_argument(
        "--target-bpp", type=common.positive_number, metavar="X", help="best file of at most X bits a pixel"
    )
    one.add_argument("--target-size", type=common.positive_of(2**48), metavar="N", help="best file of at most N bytes")
    one.add_argument("--target-psnr", type=common.positive_number, metavar="X", help="smallest file of at least X dB")
    target.add_argument(
        "--best-effort",
        action="store_true",
        help="if no model reaches the target, write the nearest, with a warning, instead of failing (exit code 9)",
    )
    common.add_limit_arguments(parser)
    batch.add_folder_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Encode; raises this package's errors and OSError."""
    common.set_threads(options)
    with common.limits(options) as limits:
        if Path(options.input).is_dir():
            _folder(options, limits)
        else:
            _file(options, limits)


@dataclass(frozen=True)
class _Encoded:
    """model: its name; hit: what rate control did, if it was asked for."""

    data: bytes
    picture: Picture
    model: str
    seconds: float
    hit: Hit | None


def _file(options: argparse.Namespace, limits: Limits) -> None:
    common.refuse_same_file(options.input, options.output)
    common.try_output(options.output)
    source = common.read_input(options.input) if options.input == common.STANDARD_STREAM else options.input
    picture = _open(source, options, limits)
    for note in picture.notes:
        common.warn(options, f"{options.input}: {note}")
    with common.progress(f"encoding {picture.width} x {picture.height} pixels"):
        model = _open_model(options, options.device)
        done = _encode(picture, options, limits, model, options.device)
    common.write_output(options.output, done.data)

    facts: dict[str, Any] = {
        "input": options.input,
        "output": options.output,
        "model": done.model,
        "width": picture.width,
        "height": picture.height,
        "bytes": len(done.data),
        "bpp": 8 * len(done.data) / (picture.width * picture.height),
        "seconds": done.seconds,
        "notes": list(picture.notes),
    }
    lines = [
        f"{options.output}: {picture.width} x {picture.height} pixels in {len(done.data):,} bytes, "
        f"{facts['bpp']:.4f} bpp, {done.seconds:.2f} s with {done.model}"
    ]
    if done.hit is not None:
        facts.update(reached=done.hit.reached, psnr=done.hit.psnr and common.finite(done.hit.psnr))
        facts["tried"] = [{"model": t.model, "bytes": t.bytes, "bpp": t.bpp, "psnr": t.psnr} for t in done.hit.tried]
        if done.hit.reached:
            lines.append(f"target {done.hit.summary()}; {len(done.hit.tried)} models tried")
        else:
            common.warn(options, done.hit.summary())
    if options.measure:
        from mlic_fast.codec import decode_tensor
        from mlic_fast.evaluate.metrics import compare

        with common.progress("measuring"):
            network = model or options.model or done.model
            device = None if model else options.device
            quality = compare(picture, decode_tensor(done.data, network, device=device, limits=limits)[0])
        facts.update(
            psnr=common.finite(quality.psnr),
            ms_ssim=quality.ms_ssim,
            psnr_official=common.finite(quality.psnr_official),
            ms_ssim_official=quality.ms_ssim_official,
        )
        lines += common.quality_lines(quality)
    common.report(options, facts, "\n".join(lines))


def _folder(options: argparse.Namespace, limits: Limits) -> None:
    from mlic_fast.pictures.folder import picture_endings

    if options.measure:
        raise common.CommandError("--measure is for a single picture; `mlic-fast compare` measures files")
    if options.frame is not None:
        raise common.CommandError("--frame is for a single file; of each file in a folder the first picture is taken")
    ending = _ENDINGS[options.format]
    folders.check_folders(options.input, options.output, ending, apart=False)
    shard = Shard.of_environment()
    endings = picture_endings() - set(_ENDINGS.values())
    device = shard.device(options.device)
    model = _open_model(options, device)

    def work(source: Path) -> batch.Made:
        done = _encode(_open(source, options, limits), options, limits, model, device)
        if done.hit is not None and not done.hit.reached:
            common.warn(options, f"{source}: {done.hit.summary()}")
        for note in done.picture.notes:
            common.warn(options, f"{source}: {note}")
        picture = done.picture
        return batch.Made(done.data, picture.width * picture.height, len(done.data), picture.notes)

    direction = batch.Direction(
        done="encoded",
        ending=ending,
        is_wanted=lambda name: Path(name).suffix.lower() in endings,
        replaceable=True,
        wanted="picture of a kind that is read",
        settings=_settings(options, model),
        other_model=lambda target: model is not None and _is_of_another(target, model),
    )
    batch.run(options, shard, direction, work, None if model is None else model.name, device)


def _open(source: Any, options: argparse.Namespace, limits: Limits) -> Picture:
    from mlic_fast.pictures.image import read_picture

    return read_picture(source, limits, options.reduce_depth, frame=options.frame, strict=options.strict)


def _settings(options: argparse.Namespace, model: Network | None) -> dict[str, Any]:
    """What files depend on beside their pictures."""
    from mlic_fast.codec import model_fingerprint

    if model is not None:
        name = model_fingerprint(model).hex()
    else:
        from mlic_fast.rate_control import ladder

        name = " ".join(rung.fingerprint.hex()[:16] for rung in ladder(_models(options)))
    names = ("format", "strip_metadata", "thumbnail", "no_guard", "reduce_depth", "target_bpp", "target_size")
    return {"model": name, **{key: getattr(options, key) for key in (*names, "target_psnr")}}


def _is_of_another(target: Path, model: Network) -> bool:
    """Whether a file names another model; one that names none, or is no file of ours, does not."""
    from mlic_fast.bitstream import container
    from mlic_fast.codec import model_fingerprint

    try:
        file = container.read(target.read_bytes(), container.NO_LIMITS)
    except (MlicError, OSError):
        return False
    return file.fingerprint != model_fingerprint(model)[: container.FINGERPRINT_BYTES]


def _open_model(options: argparse.Namespace, device: str) -> Network | None:
    """The model that all pictures are encoded with; None if rate control chooses for each. Raises TargetError."""
    from mlic_fast.codec import open_model
    from mlic_fast.compute.device import resolve_device

    target = _target(options)
    if target is None:
        if options.best_effort:
            raise common.CommandError(
                "--best-effort says what to do about a target: name one, such as --target-bpp 0.5"
            )
        return open_model(options.model, device)
    from mlic_fast.rate_control import ladder

    # what would go wrong with each picture goes wrong before the first
    resolve_device(device)
    ladder(_models(options))
    return None


def _encode(
    picture: Picture, options: argparse.Namespace, limits: Limits, model: Network | None, device: str
) -> _Encoded:
    """Encode with the model, or with the one that reaches the target. Raises TargetError if none does."""
    from mlic_fast.codec import encode

    arguments: dict[str, Any] = {
        "format": options.format,
        "limits": limits,
        "guard": not options.no_guard,
        "metadata": not options.strip_metadata,
        "thumbnail": options.thumbnail,
        "reduce_depth": options.reduce_depth,
    }
    start = time.perf_counter()
    if model is not None:
        data = encode(picture, model, **arguments)
        return _Encoded(data, picture, model.name, time.perf_counter() - start, None)
    from mlic_fast.rate_control import encode_to_target

    target = _target(options)
    assert target is not None
    hit = encode_to_target(picture, target, models=_models(options), device=device, **arguments)
    if not hit.reached and not options.best_effort:
        raise TargetError(f"{hit.summary()}. --best-effort writes the nearest all the same")
    return _Encoded(hit.data, picture, hit.model, time.perf_counter() - start, hit)


def _models(options: argparse.Namespace) -> list[str] | None:
    return None if options.model is None else [options.model]


def _target(options: argparse.Namespace) -> Target | None:
    from mlic_fast.rate_control import Target

    given = (options.target_bpp, options.target_size, options.target_psnr)
    if given == (None, None, None):
        return None
    return Target(bpp=given[0], bytes=given[1], psnr=given[2])
