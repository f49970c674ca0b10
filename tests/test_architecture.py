# SPDX-License-Identifier: Apache-2.0
"""The arrows of docs/architecture.md, checked at every import: none leads upwards, and there is no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mlic_fast.checkerboard import Parity, pack
from mlic_fast.contexts import FAMILY, Source, contexts_of, member_of

ROOT = Path(__file__).parent.parent

# Modules and packages of mlic_fast from top to bottom. One imports from lower lines and from its own room alone.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("pillow", "train"),
    ("rate_control",),
    ("evaluate",),
    ("concurrent", "caches"),
    ("codec",),
    ("model", "pictures"),
    ("coding", "registry", "bitstream"),
    ("wrappers", "engine"),
    ("nn",),
    ("checkpoint",),
    ("entropy",),
    ("ops",),
    ("kernels",),
    # what everybody may use
    ("passes", "output"),
    ("compute",),
    ("checkerboard", "config", "limits"),
    ("contexts",),
    ("errors",),
)
HEIGHT = {room: -depth for depth, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    """Name → file of every Python module that is installed."""
    found = {}
    for top, name in ((ROOT / "mlic_fast", "mlic_fast"), (ROOT / "kernels", "mlic_fast.kernels")):
        for path in top.rglob("*.py"):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()
EXTENSIONS = {"mlic_fast._cpu_kernels", "mlic_fast._range_coder"}


def names_imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name that is imported, functions' own imports included, with its line; not what only types need."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        children: list[ast.AST] = list(tree.orelse)
    else:
        children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.Import):
        for alias in tree.names:
            yield alias.name, tree.lineno
    elif isinstance(tree, ast.ImportFrom):
        for alias in tree.names:
            yield "." * tree.level + f"{tree.module or ''}.{alias.name}", tree.lineno
    elif isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith("import_module"):
        (argument, *_) = tree.args
        if isinstance(argument, ast.Constant):
            yield str(argument.value), tree.lineno
    for child in children:
        yield from names_imported(child)


def arrows(source: str) -> Iterator[tuple[str, int]]:
    """The project's modules that this source imports, and the lines on which it does."""
    for name, line in names_imported(ast.parse(source)):
        assert not name.startswith("."), f"line {line}: relative imports are not used here"
        if name.split(".")[0] != "mlic_fast" or name in EXTENSIONS:
            continue
        while name not in MODULES:  # a name in a module
            name = name.rpartition(".")[0]
        yield name, line


ARROWS = {name: sorted(set(arrows(path.read_text()))) for name, path in MODULES.items()}


def room(module: str) -> str:
    """Where a module belongs: `python -m mlic_fast.train` is a way into the command line."""
    parts = module.split(".")
    return "__main__" if parts[-1] == "__main__" else parts[1]


def test_every_module_has_a_place() -> None:
    rooms = {room(name) for name in MODULES if name != "mlic_fast"}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"mlic_fast"}))
def test_no_arrow_leads_upwards(module: str) -> None:
    own = room(module)
    wrong = [
        f"line {line}: {target}"
        for target, line in ARROWS[module]
        # the package's own names, __version__ for instance, need nothing
        if target != "mlic_fast" and room(target) != own and HEIGHT[room(target)] >= HEIGHT[own]
    ]
    assert wrong == []


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The strongly connected parts of more than one node, sorted (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: set[tuple[str, ...]] = set()

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for following in graph[node]:
            if following not in number:
                visit(following)
                lowest[node] = min(lowest[node], lowest[following])
            elif following in stack:
                lowest[node] = min(lowest[node], number[following])
        if lowest[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.add(tuple(sorted(part)))

    for node in graph:
        if node not in number:
            visit(node)
    return found


def test_no_circle() -> None:
    graph = {name: {target for target, _ in targets if target != name} for name, targets in ARROWS.items()}
    assert circles(graph) == set()


def test_circles_and_arrows_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == {("b", "c")}
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mlic_fast.codec import encode
else:
    import mlic_fast.config
def f():
    from mlic_fast import coding, _cpu_kernels
    from mlic_fast.nn.network import Network
"""
    assert [name for name, _ in arrows(source)] == ["mlic_fast.config", "mlic_fast.coding", "mlic_fast.nn.network"]


def test_the_document_shows_these_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = re.search(r"## Layers\n.*?```\n(.*?)```", text, re.DOTALL)
    assert drawn is not None
    lines = [line.split("  ")[0].split(", ") for line in drawn[1].splitlines()]
    assert [tuple(line) for line in lines] == [tuple(layer) for layer in LAYERS]


def test_the_document_has_the_table_of_contexts() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d)C \| (\d) \| (.*?) \| (.*?) \|$", (ROOT / "docs/architecture.md").read_text(), re.M
    )
    feeds = {Source.DECODED: "both", Source.ANCHORS: "non-anchors", Source.PREVIOUS_AND_ANCHORS: "non-anchors"}
    assert rows == [
        (context.name, str(context.width), str(context.first), context.source.value, feeds[context.source])
        for context in contexts_of("mlicpp")
    ]


def test_the_document_has_the_members() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    table = re.search(r"^\| member ((?:\| `\w+` )+)\|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert table is not None
    names = re.findall(r"`(\w+)`", table[1])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2].splitlines()]
    members = {member.title: member for member in FAMILY.values()}
    members |= {
        f"{member.title}, {variant}": member_of(architecture, variant)
        for architecture, member in FAMILY.items()
        for variant in member.variants
        if contexts_of(architecture, variant) != member.contexts
    }
    assert [title for title, *_ in rows] == list(members)
    for (_, *forms), member in zip(rows, members.values(), strict=True):
        own = {context.name: context.form for context in member.contexts}
        assert set(own) <= set(names)
        assert forms == [own.get(name, "–") for name in names]


def test_the_document_draws_the_checkerboard() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(
        r"^ row (\d)  ((?:[An] ?)+?) +row \1  columns ([\d ]+?) +row \1  columns ([\d ]+)$", text, re.MULTILINE
    )
    columns = torch.arange(8).expand(1, 1, 4, 8)
    anchors, others = (pack(columns, parity)[0, 0].tolist() for parity in Parity)
    assert len(rows) == 4
    for row, drawn, packed, packed_others in rows:
        assert [int(column) for column in packed.split()] == anchors[int(row)]
        assert [int(column) for column in packed_others.split()] == others[int(row)]
        assert [column for column, kind in enumerate(drawn.split()) if kind == "A"] == anchors[int(row)]
