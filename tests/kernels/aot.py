# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels ahead of time for GPUs that need not be here, and say what they take of one.

    python tests/kernels/aot.py [STEM ...]           prints the table as JSON
    python tests/kernels/aot.py --write [STEM ...]   puts it into aot_table.json

STEM is a file of kernels/ with AOT_CONFIGS, a list of (kernel, signature, constants, options): the types
of its arguments by name, what is known when it is compiled by name, and its launch options.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("aot_table.json")
CAPABILITIES = (80, 90, 100)
# the oldest Triton that knows a GPU, where not all that we support do
FIRST_TRITON = {100: (3, 3)}


def stems() -> list[str]:
    """Files of kernels/ that say how to compile theirs."""
    return sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if "\nAOT_CONFIGS" in path.read_text())


def name_of(kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: dict[str, Any]) -> str:
    """What a configuration is called in the table; float32 pointers and i32 are not mentioned."""
    types = [f"{name}: {kind}" for name, kind in signature.items() if kind not in ("*fp32", "i32")]
    parts = [f"{name}={value}" for name, value in (*constants.items(), *options.items())]
    return f"{kernel.__name__.strip('_')}({', '.join(types + parts)})"


def capabilities() -> list[int]:
    """Those of CAPABILITIES that the installed Triton can compile for."""
    import triton

    return [c for c in CAPABILITIES if _version(triton.__version__) >= FIRST_TRITON.get(c, (0, 0))]


def compile_for(
    capability: int, kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: Any
) -> Any:
    """Registers a thread, bytes of shared memory a program, bytes of stack (spilled registers) a thread."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # at run time Triton finds that PyTorch's pointers are multiples of 16, and compiles for that
    pointers = [i for i, name in enumerate(kernel.arg_names) if signature.get(name, "").startswith("*")]
    aligned: Any
    if _version(triton.__version__) >= (3, 3):
        types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    else:
        from triton.backends.compiler import AttrsDescriptor

        types, aligned = signature, AttrsDescriptor.from_hints(dict.fromkeys(pointers, 16))
    # by position: the third argument's name has changed between versions
    source = ASTSource(kernel, types, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = resource_usage(compiled.asm["cubin"])
    return {
        "registers": usage["REG"],
        "shared": compiled.metadata.shared,
        "stack": usage["STACK"] + usage["LOCAL"],
    }


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump, which comes with Triton, reads from a compiled kernel."""
    import tempfile

    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).with_name("bin") / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def table(chosen: Sequence[str]) -> dict[str, Any]:
    """Stem → configuration → GPU → what it takes, for this version of Triton."""
    import triton

    from mlic_fast.compute import triton_language as language

    rows: dict[str, Any] = {}
    for stem in chosen:
        configs = importlib.import_module(f"mlic_fast.kernels.{stem}").AOT_CONFIGS
        language.load()
        rows[stem] = {
            name_of(kernel, *config): {
                f"sm_{capability}": compile_for(capability, kernel.compiled, *config) for capability in capabilities()
            }
            for kernel, *config in configs
        }
    return {"triton": triton.__version__, "kernels": rows}


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels ahead of time.")
    parser.add_argument("stems", nargs="*", metavar="STEM", help="files of kernels/ (default: all)")
    parser.add_argument("--write", action="store_true", help="put the result into aot_table.json")
    chosen = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"
    sys.path.insert(0, str(ROOT))
    found = table(chosen.stems or stems())
    if chosen.write:
        saved = json.loads(TABLE.read_text()) if TABLE.exists() else {"kernels": {}}
        if saved.get("triton") != found["triton"]:
            saved["kernels"] = {}
        saved["triton"] = found["triton"]
        known = {stem: rows for stem, rows in saved["kernels"].items() if stem in stems()}
        saved["kernels"] = dict(sorted({**known, **found["kernels"]}.items()))
        TABLE.write_text(json.dumps(saved, indent=1) + "\n")
    else:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
