# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast decode`: a compressed file to a picture, or a folder of files to a folder of pictures."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.cli import batch, common, folders
from mlic_fast.cli.shards import Shard
from mlic_fast.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

    from mlic_fast.limits import Limits

DESCRIPTION = """\
Decompress an .mlic file, or one in the layout of the official test script, to a picture. The picture's kind follows \
from OUT's ending. It is written without loss where that kind can (PNG, TIFF, WebP, JPEG 2000, …), else with little: \
JPEG with quality 95 and AVIF with 100, without subsampling colours; --quality says otherwise. A kind that cannot \
hold the picture (transparency in JPEG, more than 256 colours in GIF, another size in an icon) is refused. Colour \
profile, EXIF, XMP, comments and resolution are kept where it has a place for them; what it has none for is named. \
The weights are found by the fingerprint in the file. The file appears whole or not at all.

If IN is a folder, all .mlic files in it and in its subfolders (with --model also .bin files, in the official layout) \
are decompressed to a tree of the same shape in the folder OUT. Pictures get the times of their files. A picture that \
was made of the same file with the same options is done (hidden files in OUT, .mlic-fast-record-*, say so; without \
them its time decides), so the same command goes on after it was stopped. An older one that is not known from an \
earlier run, and may be an original, is replaced only with --overwrite. Hidden files, other files and links to \
folders are left out. A file that fails does not stop the others: failures are listed at the end. A folder without \
any file to decode is an error (exit code 4).
"""

EPILOG = """several GPUs or machines:
  As for `mlic-fast encode`: started by torchrun or srun, each process takes its own part of a
  folder, and its own GPU.

examples:
  mlic-fast decode photo.mlic -o photo.png
  mlic-fast decode photo.bin -o photo.png --model mlicpp-s-0.0067
  mlic-fast decode coded -o decoded --suffix .webp
  srun --ntasks 8 --gpus-per-task 1 mlic-fast decode coded -o decoded

environment:
  MLIC_FAST_MODELS       files and folders of weights, separated as in PATH
  MLIC_FAST_BACKEND      torch, cpu, triton or auto (default: auto)
  MLIC_FAST_ENGINE       off: do without the compiled engine
  RANK, WORLD_SIZE, …    see `mlic-fast encode --help`
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN", help="compressed file or folder; - for standard input")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="picture, or folder if IN is one; - for standard output"
    )
    parser.add_argument(
        "--suffix",
        default=".png",
        metavar=".EXT",
        help="the kind of pictures in a folder or to standard output (default: %(default)s)",
    )
    parser.add_argument(
        "--quality",
        type=common.positive_of(100),
        metavar="N",
        help="of JPEG, AVIF, PDF, and of WebP, which is written without loss otherwise: 1 to 100",
    )
    common.add_model_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)
    batch.add_folder_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Decode; raises this package's errors and OSError."""
    with common.limits(options) as limits:
        if Path(options.input).is_dir():
            _folder(options, limits)
        else:
            _file(options, limits)


def _file(options: argparse.Namespace, limits: Limits) -> None:
    common.refuse_same_file(options.input, options.output)
    common.try_output(options.output)
    to_stream = options.output == common.STANDARD_STREAM
    kind = _kind_of(options.suffix if to_stream else Path(options.output).suffix, options.output)
    saving = _saving(options, kind)
    data = common.read_input(options.input)
    from mlic_fast.codec import decode, open_model_of

    common.set_threads(options)
    with common.progress("decoding"):
        model = open_model_of(data, options.model, options.device, limits)
        start = time.perf_counter()
        image = decode(data, model, limits=limits)
        seconds = time.perf_counter() - start
    content, dropped = _saved(image, kind, options.output, saving)
    common.write_output(options.output, content)
    facts = {
        "input": options.input,
        "output": options.output,
        "model": model.name,
        "width": image.width,
        "height": image.height,
        "dropped": list(dropped),
        "seconds": seconds,
    }
    text = f"{options.output}: {image.width} x {image.height} pixels, {seconds:.2f} s with {model.name}"
    if dropped:
        text += f"; {kind} has no place for {', '.join(dropped)}"
    common.report(options, facts, text)


def _folder(options: argparse.Namespace, limits: Limits) -> None:
    kind = _kind_of(options.suffix, f"--suffix {options.suffix}")
    saving = _saving(options, kind)
    folders.check_folders(options.input, options.output, options.suffix.lower(), apart=True)
    shard = Shard.of_environment()
    common.set_threads(options)
    from mlic_fast.codec import decode, model_fingerprint, open_model
    from mlic_fast.compute.device import resolve_device
    from mlic_fast.concurrent import opener

    device = str(resolve_device(shard.device(options.device)))
    # what would go wrong with each file goes wrong before the first
    named = None if options.model is None else open_model(options.model, device)
    open_model_of = opener()
    endings = {".mlic"} if named is None else {".mlic", ".bin"}

    def work(source: Path) -> batch.Made:
        data = common.read_input(str(source))
        model = open_model_of(data, named, device, limits)
        image = decode(data, model, limits=limits)
        content, dropped = _saved(image, kind, str(source), saving)
        notes = tuple(f"{kind} has no place for {name}" for name in dropped)
        return batch.Made(content, image.width * image.height, len(data), notes)

    direction = batch.Direction(
        done="decoded",
        ending=options.suffix.lower(),
        is_wanted=lambda name: Path(name).suffix.lower() in endings,
        replaceable=False,
        wanted="compressed file (.mlic, and with --model .bin)",
        # which model decodes follows from the file, unless it names none
        settings={"model": None if named is None else model_fingerprint(named).hex(), "quality": options.quality},
    )
    batch.run(options, shard, direction, work, None if named is None else named.name, device)


def _kind_of(ending: str, name: str) -> str:
    """Pillow's name for what ends so. Raises ImageError."""
    from PIL import Image

    Image.init()
    kind = Image.EXTENSION.get(ending.lower())
    if kind is None or kind not in Image.SAVE:
        raise ImageError(f"{name}: no kind of picture ends in {ending!r}: use .png, .ppm, .tif, .webp, …")
    return kind


def _saving(options: argparse.Namespace, kind: str) -> dict[str, int]:
    """Options for saving a picture of this kind. Raises CommandError."""
    from mlic_fast.pictures.save import WITH_QUALITY

    if options.quality is None:
        return {}
    if kind not in WITH_QUALITY:
        raise common.CommandError(f"--quality is for {', '.join(sorted(WITH_QUALITY))}: {kind} has none")
    return {"quality": options.quality}


def _saved(image: Image.Image, kind: str, name: str, saving: dict[str, int]) -> tuple[bytes, tuple[str, ...]]:
    """Contents of the picture's file, and which metadata it has no place for. Raises ImageError."""
    from mlic_fast.pictures.save import save_picture

    content = io.BytesIO()
    try:
        dropped = save_picture(image, content, kind, **saving)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    return content.getvalue(), dropped
