# SPDX-License-Identifier: Apache-2.0
"""Whole pictures through whole files and back, with the bundled weights."""

from __future__ import annotations

import copy
import threading
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mlic_fast
from mlic_fast import coding
from mlic_fast.bitstream import container, official
from mlic_fast.codec import decode_tensor, model_fingerprint, open_model
from mlic_fast.errors import BitstreamError, DeviceError, ImageError, LimitError, WrongWeightsError
from mlic_fast.evaluate.metrics import psnr
from mlic_fast.limits import Limits


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    path = resources.files("mlic_fast").joinpath("data", "coffee.png")
    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    image.info = {}  # it has a resolution, which arrays do not have
    return image


@pytest.fixture(scope="module")
def model() -> Any:
    return mlic_fast.load("mlicpp-s-0.0067")


# left, top, width, height
CROPS = [
    pytest.param((300, 200, 1, 1), id="1x1"),
    pytest.param((300, 200, 1, 97), id="1x97"),
    pytest.param((10, 10, 333, 1), id="333x1"),
    pytest.param((100, 50, 64, 64), id="64x64"),
    pytest.param((100, 50, 65, 63), id="65x63"),
    pytest.param((17, 5, 231, 173), id="231x173"),
    pytest.param((0, 0, 600, 400), id="600x400"),
]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("box", CROPS)
def test_photograph_through_a_file(
    photograph: Image.Image, model: Any, tmp_path: Path, box: tuple[int, int, int, int], mode: str
) -> None:
    left, top, width, height = box
    picture = photograph.crop((left, top, left + width, top + height)).convert(mode)
    path = tmp_path / "picture.mlic"
    path.write_bytes(mlic_fast.encode(picture, model))
    decoded = mlic_fast.decode(path.read_bytes())  # the weights are found by the fingerprint
    assert (decoded.size, decoded.mode) == (picture.size, mode)
    if width * height > 1000:
        assert psnr(np.asarray(picture), np.asarray(decoded)) > 22
        assert len(path.read_bytes()) * 8 < 1.5 * width * height + 8 * 200


def test_header_of_a_plain_picture(photograph: Image.Image, model: Any) -> None:
    data = mlic_fast.encode(photograph, model)
    file = container.read(data)
    assert container.describe(data)["overhead_bytes"] <= 60
    bare = mlic_fast.encode(photograph, model, guard=False)
    bare_file = container.read(bare)
    assert bare_file.guard is None
    assert file.guard is not None
    assert len(bare) - len(bare_file.y) - len(bare_file.z) <= 60
    assert file.fingerprint == model_fingerprint(model)[: container.FINGERPRINT_BYTES]
    assert (file.model_name, file.variant, file.mode) == ("mlicpp-s-0.0067", "new", "rgb")


def test_every_kind_of_source(photograph: Image.Image, model: Any, tmp_path: Path) -> None:
    picture = photograph.crop((0, 0, 70, 50))
    path = tmp_path / "picture.png"
    picture.save(path)
    pixels = np.asarray(picture)
    expected = mlic_fast.encode(picture, model)
    for source in (path, str(path), path.read_bytes(), pixels, torch.from_numpy(pixels.copy())):
        assert mlic_fast.encode(source, model) == expected


def test_without_naming_a_model(photograph: Image.Image, model: Any) -> None:
    picture = photograph.crop((0, 0, 64, 64))
    data = mlic_fast.encode(picture, device="cpu")
    assert data == mlic_fast.encode(picture, model)
    assert np.array_equal(mlic_fast.decode(data, device="cpu"), mlic_fast.decode(data, model))


def test_official_layout(photograph: Image.Image, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")
    picture = photograph.crop((20, 30, 120, 100))
    data = mlic_fast.encode(picture, model, format="official")
    file = official.read(data)
    assert (file.width, file.height) == (100, 70)
    assert psnr(np.asarray(picture), np.asarray(mlic_fast.decode(data, model))) > 22
    whole = photograph.crop((0, 0, 128, 64))  # needs no padding, so both formats hold the same streams
    both = [mlic_fast.decode(mlic_fast.encode(whole, model, format=kind), model) for kind in ("mlic", "official")]
    assert np.array_equal(*both)
    with pytest.raises(WrongWeightsError, match="official"):
        mlic_fast.decode(data)


def test_other_weights_are_refused_by_name(photograph: Image.Image, model: Any, small_model: Any) -> None:
    data = mlic_fast.encode(photograph.crop((0, 0, 64, 64)), model)
    other = copy.deepcopy(small_model)
    other.name = "another"
    with pytest.raises(WrongWeightsError, match=r"mlicpp-s-0.0067.*another"):
        mlic_fast.decode(data, other)
    foreign = mlic_fast.encode(photograph.crop((0, 0, 64, 64)), other)
    with pytest.raises(WrongWeightsError, match=r"another.*mlicpp-s-0.0067"):
        mlic_fast.decode(foreign)
    assert mlic_fast.decode(foreign, other).size == (64, 64)


def test_changed_weights_have_another_fingerprint(model: Any) -> None:
    changed = copy.deepcopy(model)
    assert model_fingerprint(changed) == model_fingerprint(model)
    with torch.no_grad():
        changed.h_s.increase[0].bias[0] += 1
    assert model_fingerprint(changed) != model_fingerprint(model)
    for convert in ("half", "bfloat16", "double"):
        with pytest.raises(WrongWeightsError, match="autocast"):
            mlic_fast.encode(Image.new("RGB", (8, 8)), getattr(copy.deepcopy(model), convert)())


def test_refresh_notices_what_pytorch_does_not(model: Any) -> None:
    changed = copy.deepcopy(model)
    before = model_fingerprint(changed)
    changed.h_s.increase[0].bias.data.add_(0.5)
    changed.refresh()
    assert model_fingerprint(changed) != before


def test_damaged_files_raise(photograph: Image.Image, model: Any) -> None:
    data = mlic_fast.encode(photograph.crop((0, 0, 100, 64)), model)
    for damaged in (data[:-1], data[: len(data) // 2], data[:20], b"", b"rubbish", data + b"\0"):
        with pytest.raises(BitstreamError):
            mlic_fast.decode(damaged, model)
    for position in range(0, len(data), max(1, len(data) // 50)):
        flipped = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        with pytest.raises((BitstreamError, WrongWeightsError)):
            mlic_fast.decode(flipped, model)


def test_damage_that_checksums_do_not_see_raises(photograph: Image.Image, model: Any) -> None:
    file = container.read(mlic_fast.encode(photograph.crop((0, 0, 100, 64)), model))
    for y, z in ((file.y[:-4], file.z), (file.y, file.z[:-4]), (b"", file.z), (file.z, file.y)):
        with pytest.raises(BitstreamError):
            mlic_fast.decode(container.write(replace(file, y=y, z=z)), model)


def test_limits(photograph: Image.Image, model: Any) -> None:
    tight = Limits(pixels=1000)
    with pytest.raises(LimitError, match="1,000"):
        mlic_fast.encode(photograph, model, limits=tight)
    data = mlic_fast.encode(photograph.crop((0, 0, 64, 64)), model)
    with pytest.raises(LimitError):
        mlic_fast.decode(data, model, limits=tight)


def test_refused_pictures(photograph: Image.Image, model: Any) -> None:
    for mode in ("I", "F"):
        with pytest.raises(ImageError):
            mlic_fast.encode(photograph.convert("L").convert(mode), model)
    transparent = photograph.crop((0, 0, 8, 8)).convert("RGBA")
    with pytest.raises(ImageError, match="official"):
        mlic_fast.encode(transparent, model, format="official")
    with pytest.raises(ImageError, match="official"):
        mlic_fast.encode(transparent.convert("RGB"), model, format="official", thumbnail=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_without_loss_and_colours_as_without_it(photograph: Image.Image, model: Any, mode: str) -> None:
    plain = photograph.crop((20, 30, 90, 80)).convert("RGB" if mode == "RGBA" else "L")
    alpha = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    picture = plain.copy()
    picture.putalpha(Image.fromarray(alpha))
    decoded = mlic_fast.decode(mlic_fast.encode(picture, model), model)
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded)[..., -1], alpha)
    expected = np.atleast_3d(np.asarray(mlic_fast.decode(mlic_fast.encode(plain, model), model)))
    assert np.array_equal(np.asarray(decoded)[..., :-1], expected)
    opaque = mlic_fast.encode(plain.convert(mode), model)
    assert len(opaque) == len(mlic_fast.encode(plain, model)) + 3


def test_a_damaged_alpha_chunk_is_found_before_the_weights_are_looked_for(photograph: Image.Image, model: Any) -> None:
    picture = photograph.crop((0, 0, 64, 64)).convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 4))
    file = container.read(mlic_fast.encode(picture, model))
    assert file.alpha is not None
    # from the compressed pixels on: other pixels, with the PNG's own checksums right
    pixels = b"no deflated data"
    part = b"IDAT" + pixels
    chunk = len(pixels).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
    damaged = replace(file, alpha=file.alpha[:33] + chunk + file.alpha[-12:], fingerprint=bytes(8))
    with pytest.raises(BitstreamError, match="alpha"):
        mlic_fast.decode(container.write(damaged))


def test_what_comes_with_a_picture(photograph: Image.Image, model: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", 6
    xmp = b'<rdf:Description tiff:Orientation="6" a="b"/>'
    path = tmp_path / "photo.jpg"
    stored = photograph.crop((0, 0, 80, 50))
    stored.save(path, exif=exif, xmp=xmp, icc_profile=b"profile", comment="hello")
    data = mlic_fast.encode(path, model, thumbnail=40)
    decoded = mlic_fast.decode(data, model)
    assert decoded.size == (50, 80)
    assert {name: decoded.info[name] for name in ("icc_profile", "xmp", "comment")} == {
        "icc_profile": b"profile",
        "xmp": b'<rdf:Description a="b"/>',
        "comment": b"hello",
    }
    assert dict(decoded.getexif()) == {0x010F: "a maker"}
    file = container.read(data)
    assert file.find(container.ChunkKind.THUMBNAIL) is not None
    # encoding what was decoded keeps it all once more
    again = mlic_fast.decode(mlic_fast.encode(decoded, model), model)
    assert again.info == decoded.info
    bare = mlic_fast.decode(mlic_fast.encode(path, model, metadata=False), model)
    assert bare.info == {"icc_profile": b"profile"}
    official_file = mlic_fast.decode(mlic_fast.encode(path, model, format="official"), model)
    assert official_file.info == {}
    assert np.array_equal(bare, decoded)


def test_16_bits(photograph: Image.Image, model: Any) -> None:
    grey = np.asarray(photograph.crop((0, 0, 40, 30)).convert("L"))
    deep = grey.astype(np.uint16) * 257
    with pytest.raises(ImageError, match="reduce_depth"):
        mlic_fast.encode(Image.fromarray(deep), model)
    assert mlic_fast.encode(Image.fromarray(deep), model, reduce_depth=True) == mlic_fast.encode(grey, model)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: mlic_fast.decode("picture.mlic"), BitstreamError),
        (lambda: mlic_fast.decode(None), BitstreamError),
        (lambda: mlic_fast.encode(Image.new("RGB", (8, 8)), format="Official"), BitstreamError),
        (lambda: mlic_fast.encode(Image.new("RGB", (8, 8)), limits=10), LimitError),
        (lambda: mlic_fast.load("mlicpp-s-0.0067", device="abacus"), DeviceError),
        (lambda: mlic_fast.load("mlicpp-s-0.0067", device="cuda:99"), DeviceError),
        (lambda: mlic_fast.load("mlicpp-s-0.0067").compress(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), ImageError),
        (lambda: mlic_fast.load("mlicpp-s-0.0067", "cpu").decompress(None, (1, 1)), BitstreamError),
        (lambda: mlic_fast.load("mlicpp-s-0.0067", "cpu").decompress([1, 2], (1, 1)), BitstreamError),
    ],
    ids=["path", "none", "format", "limits", "device", "cuda", "uint8", "no strings", "numbers"],
)
def test_wrong_arguments_raise_errors_of_ours(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


def test_devices(photograph: Image.Image, model: Any) -> None:
    for name in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(DeviceError):
            mlic_fast.encode(photograph.crop((0, 0, 8, 8)), device=name)


def test_out_of_memory_is_an_error_of_ours(
    photograph: Image.Image, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        torch.empty(2**62, dtype=torch.uint8)

    monkeypatch.setattr(coding, "compress", exhausted)
    with pytest.raises(DeviceError, match=r"out of memory.*64 x 64"):
        mlic_fast.encode(photograph.crop((0, 0, 64, 64)), model)


def test_a_weights_file_that_changes_is_read_again(photograph: Image.Image, tmp_path: Path, small_model: Any) -> None:
    from mlic_fast.checkpoint import checkpoint_from_state_dict, write_native

    path = tmp_path / "model.safetensors"
    fingerprints = set()
    for shift in (0.0, 1.0):
        changed = copy.deepcopy(small_model)
        with torch.no_grad():
            changed.g_s.synthesis_transform[7][0].bias += shift
        canonical = checkpoint_from_state_dict(changed.state_dict())
        write_native(path, canonical.state_dict, canonical.config, name="changing")
        fingerprints.add(model_fingerprint(open_model(path, "cpu")))
    assert len(fingerprints) == 2


def test_threads_code_different_pictures_at_once(photograph: Image.Image, model: Any) -> None:
    pictures = [photograph.crop((0, 0, 64, 64)), photograph.crop((64, 0, 200, 60))]
    expected = [mlic_fast.encode(picture, model) for picture in pictures]
    decoded = [decode_tensor(data, model)[0] for data in expected]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(4):
            data = mlic_fast.encode(pictures[which], model)
            if data != expected[which] or not torch.equal(decode_tensor(data, model)[0], decoded[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
