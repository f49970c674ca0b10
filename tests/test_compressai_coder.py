# SPDX-License-Identifier: Apache-2.0
"""CompressAI's models with this package's range coder: the strings and the pictures of their own coder."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import one_thread
from compressai import ans
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.entropy_models.entropy_models import _EntropyCoder
from compressai.models import google, vbr
from compressai_samples import seeded_model
from torch import nn

from mlic_fast.entropy import compressai_coder
from mlic_fast.entropy.compressai_coder import use_range_coder
from mlic_fast.errors import BitstreamError, CodecError, CodingError

__all__ = ["one_thread"]

SMALL = {"N": 32, "M": 48}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bmshj2018-factorized": SMALL,
    "bmshj2018-factorized-relu": SMALL,
    "bmshj2018-hyperprior": {},
    "mbt2018-mean": SMALL,
    "mbt2018": SMALL,
    "cheng2020-anchor": {"N": 32},
    "cheng2020-attn": {"N": 32},
    "cheng2020-anchor-checkerboard": {"N": 32},
    "elic2022-official": {"N": 32, "M": 144},
    "elic2022-chandelier": {"N": 32, "M": 144},
    "bmshj2018-hyperprior-vbr": SMALL,
    "mbt2018-mean-vbr": SMALL,
    "mbt2018-vbr": SMALL,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_strings_and_pictures_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded_model(name, **ARCHITECTURES[name])
    fast = copy.deepcopy(model)
    use_range_coder(fast)
    x = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    expected = model.compress(x)
    x_hat = model.decompress(expected["strings"], expected["shape"])["x_hat"]
    assert sum(len(string) for strings in expected["strings"] for string in strings) > 500

    def none(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CompressAI's coder is used")

    for module in (google, vbr):
        for coder in ("BufferedRansEncoder", "RansDecoder"):
            monkeypatch.setattr(module, coder, none)
    for method in ("encode_with_indexes", "decode_with_indexes"):
        monkeypatch.setattr(_EntropyCoder, method, none)
    with pytest.raises(RuntimeError, match="CompressAI's coder is used"):
        model.compress(x)
    found = fast.compress(x)
    assert found["strings"] == expected["strings"]
    assert found["shape"] == expected["shape"]
    assert torch.equal(fast.decompress(found["strings"], found["shape"])["x_hat"], x_hat)


@torch.no_grad()
def test_a_copy_codes_with_its_own_weights() -> None:
    model = seeded_model("mbt2018", N=32, M=48)
    use_range_coder(model)
    use_range_coder(model)  # twice is once
    other = copy.deepcopy(model)
    x = torch.rand(1, 3, 64, 64)
    before = model.compress(x)["strings"]
    for parameter in other.parameters():
        parameter.mul_(1.01)
    other.update(force=True)
    assert other.compress(x)["strings"] != before
    assert model.compress(x)["strings"] == before
    assert isinstance(other, google.JointAutoregressiveHierarchicalPriors)


@torch.no_grad()
def test_new_tables_are_noticed() -> None:
    model = seeded_model("mbt2018-mean", **SMALL)
    fast = copy.deepcopy(model)
    use_range_coder(fast)
    x = torch.rand(1, 3, 64, 64)
    for table in ([0.2, 1.0, 30.0], [0.5, 60.0]):
        for one in (model, fast):
            one.update(scale_table=table, force=True)
        assert fast.compress(x)["strings"] == model.compress(x)["strings"]


def test_the_library_is_left_alone() -> None:
    names = ("BufferedRansEncoder", "RansDecoder")
    methods = [
        vars(cls)[name]
        for cls, name in (
            (google.JointAutoregressiveHierarchicalPriors, "_compress_ar"),
            (GaussianConditional.__mro__[1], "compress"),
        )
    ]
    other = seeded_model("mbt2018", N=32, M=48)
    classes = [type(module) for module in other.modules()]
    served = seeded_model("mbt2018", N=32, M=48)
    use_range_coder(served)
    assert [getattr(google, name) for name in names] == [getattr(ans, name) for name in names]
    assert methods == [google.JointAutoregressiveHierarchicalPriors._compress_ar, GaussianConditional.compress]
    assert [type(module) for module in other.modules()] == classes
    assert type(served) is not type(other)
    assert type(served.gaussian_conditional) is not GaussianConditional


@torch.no_grad()
def test_damaged_strings_are_noticed() -> None:
    model = seeded_model("mbt2018-mean", **SMALL)
    use_range_coder(model)
    coded = model.compress(torch.rand(1, 3, 64, 64))
    (y,), (z,) = coded["strings"]
    for strings in ([[y[:-4]], [z]], [[y[4:]], [z]], [[y], [z + bytes(4)]], [[y], [b""]]):
        with pytest.raises(BitstreamError):
            model.decompress(strings, coded["shape"])
    with pytest.raises(CodingError, match="2 strings for 1 items"):
        model.gaussian_conditional.decompress([y, y], torch.zeros(1, 48, 4, 4, dtype=torch.int32))
    with pytest.raises(CodingError, match="indexes"):
        model.gaussian_conditional.compress(torch.zeros(1, 2, 3), torch.zeros(1, 2, 2, dtype=torch.int32))


class OwnCoding(GaussianConditional):
    def compress(self, *arguments: Any, **options: Any) -> Any:
        return [bytes(8)]


class WithHelper(GaussianConditional):
    """Changes what is coded, not how."""

    def quantize(self, inputs: Any, mode: str, means: Any = None) -> Any:
        return super().quantize(inputs * 2, mode, means)


class NoCodec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Holder(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Decorated(nn.Module):
    @torch.no_grad()
    def compress(self, x: Any) -> Any:
        return ans.BufferedRansEncoder()


def with_precision(bits: int) -> GaussianConditional:
    return GaussianConditional(None, entropy_coder_precision=bits)


def with_coder(name: str) -> GaussianConditional:
    model = GaussianConditional(None)
    model.entropy_coder.name = name
    return model


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: OwnCoding(None), r"bad \(OwnCoding\) codes in a way of its own"),
        (lambda: with_precision(12), r"bad \(GaussianConditional\) has tables of 12 bits"),
        (lambda: with_coder("rangecoder"), "codes with rangecoder"),
        (Decorated, "Decorated.compress drives compressai.ans under a decorator"),
    ],
    ids=["own coding", "precision", "coder", "decorator"],
)
def test_refused_by_name_and_nothing_is_changed(bad: Callable[[], nn.Module], words: str) -> None:
    model = Holder(good=GaussianConditional(None), bad=bad(), more=EntropyBottleneck(2))
    classes = [type(module) for module in model.modules()]
    with pytest.raises(CodecError, match=words):
        use_range_coder(model)
    assert [type(module) for module in model.modules()] == classes


def test_models_that_code_nothing_are_refused() -> None:
    with pytest.raises(CodecError, match="NoCodec has neither"):
        use_range_coder(NoCodec())


def test_variable_steps_are_refused() -> None:
    model = seeded_model("bmshj2018-hyperprior-vbr", **SMALL, vr_entbttlnck=True)
    with pytest.raises(CodecError, match=r"entropy_bottleneck \(EntropyBottleneckVbr\)"):
        use_range_coder(model)


def test_what_a_subclass_changes_still_counts() -> None:
    table = [0.2, 1.0, 30.0]
    models = [Holder(g=WithHelper(table)), Holder(g=WithHelper(table))]
    for model in models:
        model.g.update()  # type: ignore[operator, union-attr]
    use_range_coder(models[1])
    y, indexes = torch.randn(2, 3, 5) * 9, torch.randint(0, 3, (2, 3, 5), dtype=torch.int32)
    plain, fast = (model.g.compress(y, indexes) for model in models)  # type: ignore[operator, union-attr]
    assert plain == fast


def make_lists(seed: int) -> tuple[list[int], list[int], list[list[int]], list[int], list[int]]:
    """Symbols, a quarter of them escapes, indexes, and tables as CompressAI's coder takes them."""
    model = GaussianConditional([0.11, 0.5, 3.0, 40.0])
    model.update()
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, 4, 300)
    symbols = rng.normal(0, np.where(rng.random(300) < 0.25, 5000, 3), 300).round().astype(int)
    return (
        symbols.tolist(),
        indexes.tolist(),
        model._quantized_cdf.tolist(),
        model._cdf_length.tolist(),
        model._offset.tolist(),
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_classes_do_as_compressais(seed: int) -> None:
    symbols, indexes, *tables = make_lists(seed)
    expected = ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)
    assert compressai_coder.RansEncoder().encode_with_indexes(symbols, indexes, *tables) == expected
    assert compressai_coder.RansDecoder().decode_with_indexes(expected, indexes, *tables) == symbols

    theirs, ours = ans.BufferedRansEncoder(), compressai_coder.BufferedRansEncoder()
    for _ in range(2):  # an encoder is used again after flush
        for begin, end in ((0, 1), (1, 1), (1, 200), (200, 300)):
            for encoder in (theirs, ours):
                encoder.encode_with_indexes(symbols[begin:end], indexes[begin:end], *tables)
        assert ours.flush() == theirs.flush() == expected

    decoder = compressai_coder.RansDecoder()
    for _ in range(2):
        decoder.set_stream(expected)
        assert decoder.decode_stream(indexes[:7], *tables) == symbols[:7]
        assert decoder.decode_stream([], *tables) == []
        # equal tables in other lists
        assert decoder.decode_stream(indexes[7:], *copy.deepcopy(tables)) == symbols[7:]


def test_the_classes_refuse_what_they_do_not_do() -> None:
    symbols, indexes, cdfs, lengths, offsets = make_lists(0)
    tables = (cdfs, lengths, offsets)
    encoder = compressai_coder.BufferedRansEncoder()
    encode = functools.partial(encoder.encode_with_indexes, symbols, indexes)
    encode(*tables)
    with pytest.raises(CodingError, match="tables change inside of a string"):
        encode(cdfs, lengths, [offset + 1 for offset in offsets])
    for bad, words in (
        (([0.5], [0], *tables), "not whole numbers"),
        (([2**31], [0], *tables), "32 bits"),
        (([2**70], [0], *tables), "not whole numbers"),
        (([1], [4], *tables), "index"),
        (([1, 2], [0], *tables), "shape"),
        (([1], [0], [[0, 65536], [0]], lengths, offsets), "rectangular"),
        (([2**30], [0], *tables), "symbol"),
    ):
        with pytest.raises(CodingError, match=words):
            compressai_coder.RansEncoder().encode_with_indexes(*bad)  # type: ignore[arg-type]
    with pytest.raises(CodingError, match="set_stream"):
        compressai_coder.RansDecoder().decode_stream(indexes, *tables)
    with pytest.raises(CodingError, match="nothing was encoded"):
        compressai_coder.BufferedRansEncoder().flush()
    with pytest.raises(BitstreamError):
        compressai_coder.RansDecoder().decode_with_indexes(bytes(12), indexes, *tables)
