# SPDX-License-Identifier: Apache-2.0
"""Models in forked processes: they code in one thread, with a warning, and never wait for threads that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mlic_fast.compute import forks, private_torch
from mlic_fast.errors import ForkError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")

ROOT = Path(__file__).resolve().parent.parent

HEAD = """
import multiprocessing, os, sys, threading, warnings
import numpy as np
import torch
import mlic_fast
torch.set_num_threads(2)
picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
def busy():  # OpenMP's threads exist afterwards
    return torch.rand(600, 600) @ torch.rand(600, 600)
def work(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = mlic_fast.encode(picture, model)
    mlic_fast.decode(data, model)
    print(len(data), torch.get_num_threads(), sum("forked" in str(one.message) for one in caught), flush=True)
def forked(function, *arguments):
    pid = os.fork()
    if not pid:
        try:
            function(*arguments)
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""

CASES = {
    "loaded before": ("model = mlic_fast.load('mlicpp-s-0.0067'); forked(work, model)", "1 1"),
    "used before": ("model = mlic_fast.load('mlicpp-s-0.0067'); work(model); forked(work, model)", "1 1"),
    "PyTorch used before": ("busy(); forked(work, None)", "1 1"),
    "in a pool": (
        "model = mlic_fast.load('mlicpp-s-0.0067'); work(model)\n"
        "pool = multiprocessing.get_context('fork').Pool(1, initializer=torch.set_num_threads, initargs=(2,))\n"
        "pool.map(work, [None]); pool.close(); pool.join()",
        "1 1",
    ),
    "in a thread of the child": (
        "model = mlic_fast.load('mlicpp-s-0.0067'); work(model)\n"
        "def threaded():\n"
        "    thread = threading.Thread(target=work, args=(model,)); thread.start(); thread.join()\n"
        "forked(threaded)",
        "2 0",
    ),
    "with one thread": (
        "model = mlic_fast.load('mlicpp-s-0.0067'); work(model)\n"
        "def alone():\n"
        "    torch.set_num_threads(1); work(model)\n"
        "forked(alone)",
        "1 0",
    ),
    "while another thread loads": (
        "from mlic_fast import codec\n"
        "held, go = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with codec._loading:\n"
        "        held.set(); go.wait()\n"
        "thread = threading.Thread(target=hold); thread.start(); held.wait()\n"
        "forked(work, None); go.set(); thread.join()",
        "1 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_forked_child_codes(name: str) -> None:
    body, expected = CASES[name]
    # with the time limit that a hanging child would run into
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *_, last = done.stdout.splitlines()
    size, *rest = last.split()
    assert int(size) > 100
    assert " ".join(rest) == expected


def test_a_forked_child_cannot_use_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_survivor", forks.threading.get_ident())
    monkeypatch.setattr(private_torch, "is_cuda_lost", lambda: True)
    with pytest.raises(ForkError, match="spawn"):
        forks.settle(torch.device("cuda"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.warns(RuntimeWarning, match="forked"):
        forks.settle(torch.device("cpu"))
