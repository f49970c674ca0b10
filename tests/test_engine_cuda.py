# SPDX-License-Identifier: Apache-2.0
"""The engine on a GPU: CUDA graphs against plain launches, golden data, the CPU's strings, threads and failures."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from device_codec import Codec
from test_engine import GivenPacked

from mlic_fast.engine import Options
from mlic_fast.engine.gpu.graphs import CudaRecorder, Parts
from mlic_fast.engine.gpu.recordings import VARIABLE, RecordedPrograms
from mlic_fast.entropy.factorized import decode_hyper_latent

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Images = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def on_gpu(small_models: Any) -> Iterator[Any]:
    yield copy.deepcopy(small_models["new"]).to("cuda")
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ["auto", "float32"])
def test_cuda_graphs_equal_plain_launches(on_gpu: Any, test_image: Images, name: Any) -> None:
    instances = RecordedPrograms(CudaRecorder(torch.device("cuda", torch.cuda.current_device())))
    recorded, plain = Codec(on_gpu, instances, Options(name)), Codec(on_gpu, None, Options(name))
    shapes = [(64, 128, 1), (192, 64, 1), (128, 128, 3)]
    for number in range(9):
        height, width, batch = shapes[number % 3]
        x = test_image(height, width, 130 + number, batch).cuda()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, "0")
            coded, x_hat = plain.both(x)
        own, own_x = recorded.both(x)
        assert own == coded
        assert torch.equal(own_x, x_hat)
    assert instances.count() == 6
    assert instances.nbytes() > 0


def test_cuda_reads_what_the_cpu_wrote_and_the_other_way_round(
    on_gpu: Any, small_models: Any, test_image: Images
) -> None:
    x, here, there = test_image(128, 192, 140), Codec(small_models["new"], None), Codec(on_gpu, None)
    coded, x_hat = here.both(x)
    other, other_x = there.both(x.cuda())
    assert (there.decompress(coded, x.shape).cpu() - x_hat).abs().max() <= 1e-4
    assert (here.decompress(other, x.shape) - other_x.cpu()).abs().max() <= 1e-4
    assert abs(len(coded.y) - len(other.y)) <= 0.001 * len(coded.y) + 4


def test_cuda_golden_indexes(on_gpu: Any, small_models: Any, golden: Any, given_symbols: Any) -> None:
    """Decoding the official code's symbols, the engine on the GPU finds the official code's indexes."""
    data, model = golden("small_128x192_b1"), small_models["new"]
    medians = model.entropy.medians()
    strings = [data["z_string.0"].tobytes()]
    z_hat = decode_hyper_latent(model.entropy_bottleneck, medians, strings, tuple(data["shape"]))
    symbols = data["symbols"]
    own = Codec(on_gpu, None).engine

    class OnGpu(GivenPacked):
        def finish(self, parity: Any, y: Any, means: torch.Tensor) -> torch.Tensor:
            return super().finish(parity, y, means.cpu()).cuda()

    seen = OnGpu(on_gpu, symbols)
    y_hat = own.walk(z_hat.cuda(), None, seen)
    indexes = torch.cat([index.flatten().cpu() for index in seen.indexes]).numpy()
    assert (indexes != data["indexes"]).sum() <= 1
    expected, _ = given_symbols(model, z_hat, symbols)
    assert (y_hat.cpu() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_cuda_threads_on_streams_of_their_own(on_gpu: Any, test_image: Images) -> None:
    instances = RecordedPrograms(CudaRecorder(torch.device("cuda", torch.cuda.current_device())))
    recorded, plain = Codec(on_gpu, instances), Codec(on_gpu, None)
    pictures = [test_image(64, 64 * (1 + number % 2), 150 + number).cuda() for number in range(8)]
    expected = [plain.both(x) for x in pictures]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for step in range(20):
                    own, own_x = recorded.both(pictures[(number + step) % 8])
                    coded, x_hat = expected[(number + step) % 8]
                    assert own == coded
                    assert torch.equal(own_x, x_hat)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert instances.count() >= 2


def test_cuda_recording_that_fails_ends(on_gpu: Any) -> None:
    recorder = CudaRecorder(torch.device("cuda", torch.cuda.current_device()))
    a, runs = torch.ones(3, device="cuda"), 0

    def start() -> Parts:
        nonlocal runs
        runs += 1
        if runs == 2:  # the first run prepares
            a.sum().item()
        yield

    with pytest.raises(RuntimeError):
        recorder.record(start)
    assert not torch.cuda.is_current_stream_capturing()
    assert a.sum().item() == 3

    def double() -> Parts:
        a.mul_(2)
        yield

    recording = recorder.record(double)
    a.fill_(1)
    next(recording.replay())
    assert a.sum().item() == 6
