# SPDX-License-Identifier: Apache-2.0
"""The engine against the plain path: the same indexes for given symbols, the same latents, the same pictures."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlic_fast import MLICPlusPlus, ModelConfig, engine, load
from mlic_fast.checkerboard import Parity, unpack
from mlic_fast.codec import open_model
from mlic_fast.compute import backend
from mlic_fast.compute.precision import no_autocast
from mlic_fast.compute.private_torch import has_bfloat16
from mlic_fast.engine import Engine, Options, engine_for
from mlic_fast.entropy.coders import Reader, Writer, code
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import BackendError, BitstreamError, ConfigError, GuardError, NonFiniteError
from mlic_fast.evaluate.calibration import Quantizer
from mlic_fast.passes import passes

Images = Callable[..., torch.Tensor]
FLOAT32 = Options(transform_dtype="float32")


class GivenPacked:
    """conftest's GivenSymbols, which also looks at the maps' layout."""

    def __init__(self, model: Any, symbols: np.ndarray) -> None:
        self.indexes: list[torch.Tensor] = []
        self._gaussian = model.gaussian_conditional
        self._symbols = torch.from_numpy(symbols.astype(np.int32))
        self._position = 0

    def begin(self, scales: torch.Tensor) -> None:
        assert scales.is_contiguous()
        self.indexes.append(self._gaussian.build_indexes(scales))

    def finish(self, means: torch.Tensor) -> torch.Tensor:
        assert means.is_contiguous()
        end = self._position + means.numel()
        symbols = self._symbols[self._position : end].view(means.shape)
        self._position = end
        return symbols + means


def compiled(model: Any, options: Options = FLOAT32) -> Engine:
    found = engine_for(model, options)
    assert found is not None
    return found


@torch.no_grad()
def latent_and_symbols(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """y, decoded z and the symbols in coding order, by the plain path."""
    with backend.plain_path():
        y = model.g_a(x)
        z_hat = torch.round(model.h_a(y))
        quantizer = Quantizer(passes(y, model.slice_num))
        code(model.walk(z_hat), quantizer)
    return y, z_hat, torch.cat([symbols.flatten() for symbols in quantizer.symbols]).numpy()


@torch.no_grad()
def drive(own: Engine, z_hat: torch.Tensor, coder: Any) -> torch.Tensor:
    with no_autocast(z_hat.device):
        return code(own.walk(z_hat), coder)


def check_walk(model: Any, x: torch.Tensor, given_symbols: Any) -> None:
    _, z_hat, symbols = latent_and_symbols(model, x)
    with backend.plain_path():
        expected, plain = given_symbols(model, z_hat, symbols)
    seen = GivenPacked(model, symbols)
    y_hat = drive(compiled(model), z_hat, seen)
    differ = sum(int((a != b).sum()) for a, b in zip(seen.indexes, plain.indexes, strict=True))
    assert differ <= 1 + len(symbols) // 100_000
    assert len(seen.indexes) == 2 * model.slice_num
    assert (y_hat - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", ["new", "old"])
@pytest.mark.parametrize(
    ("height", "width", "batch"),
    [
        pytest.param(64, 64, 1, id="smallest"),
        pytest.param(64, 192, 3, id="batch-3-flat"),
        pytest.param(128, 64, 1, id="high"),
    ],
)
def test_walk_finds_the_plain_path_s_indexes(
    small_models: Any, test_image: Images, given_symbols: Any, variant: str, height: int, width: int, batch: int
) -> None:
    check_walk(small_models[variant], test_image(height, width, 50, batch), given_symbols)


def test_walk_of_the_bundled_weights(test_image: Images, given_symbols: Any) -> None:
    check_walk(load("mlicpp-s-0.0067"), test_image(64, 128, 51, 2), given_symbols)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "batch"), [(256, 256, 3), (512, 768, 1)], ids=["256-batch-3", "768x512"])
def test_walk_of_the_full_model(
    full_model: Any, test_image: Images, given_symbols: Any, height: int, width: int, batch: int
) -> None:
    check_walk(full_model, test_image(height, width, 52, batch), given_symbols)


@torch.no_grad()
def check_transforms(model: Any, x: torch.Tensor, options: Options, tolerance: float) -> None:
    y = model.g_a(x)
    z = model.h_a(y)
    own, own_z = compiled(model, options).analyse(x)
    assert own.dtype == own_z.dtype == torch.float32
    assert (own - y).abs().max() <= tolerance * y.abs().max()
    assert (own_z - z).abs().max() <= 2 * tolerance * z.abs().max()
    x_hat = model.g_s(y)
    own_x = compiled(model, options).synthesise(y)
    assert own_x.dtype == torch.float32
    assert (own_x - x_hat).abs().max() <= tolerance * max(1, x_hat.abs().max())
    z_hat = torch.round(z)
    hyper = model.h_s(z_hat)
    assert (compiled(model, options).hyper(z_hat) - hyper).abs().max() <= 1e-5 * hyper.abs().max()


@pytest.mark.parametrize("variant", ["new", "old"])
def test_transforms_are_the_model_s(small_models: Any, test_image: Images, variant: str) -> None:
    check_transforms(small_models[variant], test_image(64, 128, 53, 2), FLOAT32, 1e-5)


@pytest.mark.parametrize("budget", [1, 2 * 2**20, 2**40], ids=["one-row-strips", "two-strips", "whole"])
def test_strips_change_nothing(
    small_model: Any, test_image: Images, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    from mlic_fast.engine import budget as budgets

    x = test_image(128, 64, 54, 2)
    monkeypatch.setattr(budgets, "PREFERRED_MAP", 2**40)
    whole, own = (compiled(small_model, Options("float32", bytes_)) for bytes_ in (2**50, budget))
    y, z = whole.analyse(x)
    own_y, own_z = own.analyse(x)
    assert (own_y - y).abs().max() <= 1e-5 * y.abs().max()
    assert (own_z - z).abs().max() <= 1e-5 * z.abs().max()
    assert (own.synthesise(y) - whole.synthesise(y)).abs().max() <= 1e-5


def test_memory_given_back_on_the_way_changes_nothing(
    small_model: Any, test_image: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is with large pictures, here in the middle of a small one."""
    from mlic_fast.engine import map_memory, transforms
    from mlic_fast.engine import walk as walks

    x = test_image(128, 128, 56, 1)
    options = Options("float32", 1)  # low strips
    expected = coded(small_model, x, options)
    own = compiled(small_model, options)
    x_hat = own.synthesise(expected[3])
    releases: list[int] = []
    release = map_memory.MapMemory.release
    monkeypatch.setattr(map_memory.MapMemory, "release", lambda self: (releases.append(1), release(self)))
    monkeypatch.setattr(transforms, "_LARGE", 1)
    monkeypatch.setattr(walks, "_MANY_POSITIONS", 1)
    found = coded(small_model, x, options)
    assert found[0] == expected[0]
    assert torch.equal(found[3], expected[3])
    assert torch.equal(own.synthesise(found[3]), x_hat)
    assert len(releases) == 2 + small_model.slice_num


def coded(model: Any, x: torch.Tensor, options: Options = FLOAT32, delta: float | None = None) -> tuple[Any, ...]:
    """y string, decoded z, guard and ŷ, all by the engine."""
    own = compiled(model, options)
    y, z = own.analyse(x)
    z_hat = torch.round(z)
    encoder = Encoder(coding_tables(model.gaussian_conditional))
    guard = None if delta is None else GuardWriter(model.gaussian_conditional.scale_table, delta)
    y_hat = drive(own, z_hat, Writer(encoder, model.gaussian_conditional, y, model.slice_num, guard))
    return encoder.finish(), z_hat, None if guard is None else guard.finish(), y_hat


def read(model: Any, string: bytes, z_hat: torch.Tensor, guard: bytes | None, options: Options = FLOAT32) -> Any:
    own = compiled(model, options)
    decoder = Decoder(coding_tables(model.gaussian_conditional), string)
    reader = None if guard is None else GuardReader(model.gaussian_conditional.scale_table, guard)
    y_hat = drive(own, z_hat, Reader(decoder, model.gaussian_conditional, reader))
    decoder.finish()
    if reader is not None:
        reader.finish()
    return y_hat


@pytest.mark.parametrize("delta", [None, 5e-5], ids=["unguarded", "guarded"])
def test_what_it_writes_it_reads(small_model: Any, test_image: Images, delta: float | None) -> None:
    string, z_hat, guard, y_hat = coded(small_model, test_image(128, 64, 55, 3), delta=delta)
    assert torch.equal(read(small_model, string, z_hat, guard), y_hat)
    with pytest.raises((BitstreamError, GuardError)):
        read(small_model, string[:-8], z_hat, guard)


def test_its_strings_are_the_plain_path_s_within_rounding(small_model: Any, test_image: Images) -> None:
    x = test_image(128, 192, 56)
    string = coded(small_model, x)[0]
    plain = small_model.compress(x, exact=True)["strings"][0][0]
    assert abs(len(string) - len(plain)) <= 0.001 * len(plain) + 4


def test_guarded_strings_are_read_by_the_readable_model(small_model: Any, test_image: Images) -> None:
    string, z_hat, guard, y_hat = coded(small_model, test_image(128, 128, 57), delta=5e-5)
    decoder = Decoder(coding_tables(small_model.gaussian_conditional), string)
    reader = GuardReader(small_model.gaussian_conditional.scale_table, guard)
    with torch.no_grad(), backend.plain_path():
        expected = code(small_model.walk(z_hat), Reader(decoder, small_model.gaussian_conditional, reader))
    decoder.finish()
    assert (y_hat - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_values_that_are_not_finite_are_refused(small_model: Any, test_image: Images) -> None:
    x = test_image(64, 64, 58)
    x[0, 0, 5, 5] = torch.nan
    with pytest.raises(NonFiniteError):
        coded(small_model, x)


def test_large_symbols_are_coded(small_model: Any) -> None:
    gaussian = small_model.gaussian_conditional
    encoder = Encoder(coding_tables(gaussian))
    packed = torch.tensor([40_000.0, -40_000.0, 0.4, 1.6, 3, -3, 0, 1]).view(1, 2, 2, 2)
    y, scales = unpack(packed, Parity.ANCHOR), torch.ones(1, 2, 2, 2)
    writer = Writer(encoder, gaussian, y, 1)
    writer.begin(scales)
    values = writer.finish(torch.full_like(packed, 0.25))
    reader = Reader(Decoder(coding_tables(gaussian), encoder.finish()), gaussian)
    reader.begin(scales)
    assert torch.equal(reader.finish(torch.full_like(packed, 0.25)), values)
    assert torch.equal(values, torch.round(packed - 0.25) + 0.25)


def test_shorter_formats_do_not_reach_the_entropy_path(
    small_model: Any, test_image: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, z_hat, symbols = latent_and_symbols(small_model, test_image(64, 128, 59))
    own = compiled(small_model)
    expected = drive(own, z_hat, GivenPacked(small_model, symbols))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drive(own, z_hat, GivenPacked(small_model, symbols)), expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        lowered = drive(own, z_hat, GivenPacked(small_model, symbols))
    finally:
        torch.set_float32_matmul_precision(before)
    assert (lowered - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_transforms_cost_little(test_image: Images) -> None:
    weights = Path(__file__).parent / "golden" / "files" / "mlicpp-small.safetensors"
    model, x, short = open_model(weights, "cpu"), test_image(128, 192, 60), Options(transform_dtype="bfloat16")
    y, own_y = (compiled(model, options).analyse(x)[0] for options in (FLOAT32, short))
    assert 0 < (own_y - y).square().mean().sqrt() < 0.02  # of a quantisation step
    strings, y_hats = zip(*(coded(model, x, options)[::3] for options in (FLOAT32, short)), strict=True)
    assert abs(len(strings[1]) - len(strings[0])) <= 0.005 * len(strings[0]) + 4
    pictures = [compiled(model, options).synthesise(y_hats[0]) for options in (FLOAT32, short)]
    assert not torch.equal(*pictures)
    psnr, own_psnr = (-10 * torch.log10((picture.clamp(0, 1) - x).square().mean()) for picture in pictures)
    assert abs(own_psnr - psnr) <= 0.01


def test_an_engine_follows_its_weights(small_model: Any, test_image: Images) -> None:
    model = copy.deepcopy(small_model)
    first = compiled(model)
    assert compiled(model) is first
    x = test_image(64, 64, 61)
    before = first.analyse(x)[0]
    with torch.no_grad():
        model.g_a.analysis_transform[0].conv1.weight.mul_(1.5)
    after = compiled(model).analyse(x)[0]
    assert not torch.equal(before, after)
    assert (after - model.g_a(x)).abs().max() <= 1e-5 * after.abs().max()
    model.load_state_dict(small_model.state_dict())
    assert torch.equal(compiled(model).analyse(x)[0], before)
    own = compiled(model)
    model.g_a.analysis_transform[0].conv1.weight.data.mul_(2)
    assert compiled(model) is own  # writing through .data goes unnoticed
    engine.forget_engines(model)
    assert not torch.equal(compiled(model).analyse(x)[0], before)


def test_engines_do_not_keep_models_alive() -> None:
    model = MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2)).eval()
    own = compiled(model)
    own.analyse(torch.rand(1, 3, 64, 64))
    ghost = weakref.ref(model)
    del model, own
    gc.collect()
    assert ghost() is None


def test_few_engines_of_a_model_are_kept(small_model: Any) -> None:
    engines = [compiled(small_model, Options("float32", budget)) for budget in (1, 2, 3)]
    assert compiled(small_model, Options("float32", 3)) is engines[2]
    assert compiled(small_model, Options("float32", 1)) is not engines[0]


def test_options_that_mean_the_same_share_an_engine(small_model: Any) -> None:
    """Two sets of packed weights would be kept for nothing, and a third set of options would drop one of them."""
    first = compiled(small_model, Options())
    name = "bfloat16" if first.options.dtype(torch.device("cpu")) == torch.bfloat16 else "float32"
    assert compiled(small_model, Options(name)) is first
    assert compiled(small_model, Options(name, 512 * 2**20)) is first
    assert compiled(small_model, Options(name, 2**20)) is not first


def test_where_there_is_no_engine(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with backend.plain_path():
        assert engine_for(small_model) is None
    assert engine_for(MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2))) is None  # in training mode
    assert engine_for(copy.deepcopy(small_model).double()) is None
    assert engine_for(copy.deepcopy(small_model).half()) is None
    monkeypatch.setenv(engine.VARIABLE, "off")
    assert engine_for(small_model) is None
    monkeypatch.setenv(engine.VARIABLE, "sideways")
    with pytest.raises(BackendError, match="sideways"):
        engine_for(small_model)
    monkeypatch.delenv(engine.VARIABLE)
    with pytest.raises(ConfigError, match="float8"):
        engine_for(small_model, Options(transform_dtype="float8"))  # type: ignore[arg-type]


def test_threads_share_an_engine(small_model: Any, test_image: Images) -> None:
    pictures = [test_image(64, 64 * (1 + number), 62 + number) for number in range(4)]
    expected = [coded(small_model, x)[0] for x in pictures]
    engine.forget_engines(small_model)
    found: list[Any] = [None] * len(pictures)

    def work(number: int) -> None:
        found[number] = coded(small_model, pictures[number])[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_the_operators_that_every_pytorch_has(
    small_model: Any, test_image: Images, given_symbols: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlic_fast.engine import layers

    monkeypatch.setattr(layers, "has_packed_convolutions", lambda: False)
    engine.forget_engines(small_model)
    try:
        check_walk(small_model, test_image(64, 128, 66, 2), given_symbols)
        check_transforms(small_model, test_image(64, 128, 67), FLOAT32, 1e-5)
    finally:
        engine.forget_engines(small_model)
