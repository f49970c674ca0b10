# SPDX-License-Identifier: Apache-2.0
"""What a torch.save pickle would build, found out without building it.

`torch.load(weights_only=True)` runs no code of the file's, but what it may call is still too much for a file
that nobody vouches for: `bytearray` of any size, codecs that double a string at each call, attributes set on
tensors and dictionaries, and keys so deeply nested that hashing them ends the process. So the opcodes are
followed first with stand-ins for the values, and whatever no checkpoint needs is refused. What is left makes
plain dictionaries, lists, numbers, strings and tensors, of a size that the file's own bounds.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field
from typing import IO, Any

_MAX_TUPLE_DEPTH = 8  # of a tensor's arguments: 2

# Opcodes of protocol 2 that torch.save writes, by what they do to the stack.
_ATOMS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

_ORDERED_DICT = "collections.OrderedDict"
_COUNTER = "collections.Counter"  # learning-rate schedules keep their milestones in one
_CALLED = {
    _ORDERED_DICT,
    _COUNTER,
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
}
_NAMED = re.compile(r"torch(\.storage)?\.\w+Storage|torch\.(bool|b?float\d+|u?int\d+|complex\d+)")
_ATOM_TYPES = (str, bytes, int, float, type(None))


class ScanError(Exception):
    """The pickle holds something else than a checkpoint does, or is damaged."""


class ForeignObjectError(ScanError):
    """The pickle names a Python object that no checkpoint needs; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it holds a Python object, {name}")
        self.name = name


@dataclass(eq=False)
class _Global:
    name: str


@dataclass(eq=False)
class _Tuple:
    items: list[Any]
    depth: int


@dataclass(eq=False)
class _Mapping:
    keys: set[Any] = field(default_factory=set)
    ordered: bool = False


@dataclass(eq=False)
class _Other:
    """A list, a tensor, a storage, …"""

    kind: str


class _Scan:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[Any, int] = {}

    def pop(self) -> Any:
        if not self.stack:
            raise ScanError("its pickle takes more from the stack than is there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise ScanError("its pickle closes what it has not opened")
        items, self.stack = self.stack, self.marked.pop()
        return items

    def step(self, name: str, argument: Any) -> None:
        if name in _ATOMS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            self.stack.append(_named(argument))
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name in _SHORT_TUPLES:
            items = [self.pop() for _ in range(_SHORT_TUPLES[name])]
            self.stack.append(_tuple(items[::-1]))
        elif name == "TUPLE":
            items = self.pop_mark()  # which replaces the stack
            self.stack.append(_tuple(items))
        elif name == "EMPTY_TUPLE":
            self.stack.append(_tuple([]))
        elif name == "EMPTY_LIST":
            self.stack.append(_Other("list"))
        elif name == "EMPTY_DICT":
            self.stack.append(_Mapping())
        elif name in {"BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = self.pop()
            self.stack.append(self.memo[argument])
        elif name in {"BINGET", "LONG_BINGET"}:
            if argument not in self.memo:
                raise ScanError(f"its pickle refers to object {argument}, which is not there")
            self.stack.append(self.memo[argument])
        elif name in {"APPEND", "APPENDS"}:
            if name == "APPEND":
                self.pop()
            else:
                self.pop_mark()
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self._set([key, value])
        elif name == "SETITEMS":
            self._set(self.pop_mark())
        elif name == "BINPERSID":
            self._storage(self.pop())
        elif name == "REDUCE":
            arguments, called = self.pop(), self.pop()
            self.stack.append(_called(called, arguments))
        elif name == "BUILD":
            self._build(self.pop())
        elif name != "PROTO":
            raise ScanError(f"its pickle uses {name}, which torch.save does not write")

    def _set(self, items: list[Any]) -> None:
        target = self.pop()
        self.stack.append(target)
        if not isinstance(target, _Mapping) or len(items) % 2:
            raise ScanError("its pickle sets items of what is no dictionary")
        for key in items[::2]:
            # anything else would have to be hashed, which for nested tuples can take for ever or end the process
            if not isinstance(key, _ATOM_TYPES):
                raise ScanError("a dictionary in it has a key that is neither text nor a number")
            target.keys.add(key)

    def _storage(self, identity: Any) -> None:
        """("storage", kind, key, location, count) and in old files a view: None or (key, offset, count)."""
        if not isinstance(identity, _Tuple) or len(identity.items) not in (5, 6):
            raise ScanError("its pickle refers to data in a way that torch.save does not")
        word, kind, key, location, count = identity.items[:5]
        view = identity.items[5] if len(identity.items) == 6 else None
        view_items = view.items if isinstance(view, _Tuple) else [view]
        atoms = [word, key, location, count, *view_items]
        if not isinstance(kind, _Global) or not all(isinstance(atom, _ATOM_TYPES) for atom in atoms):
            raise ScanError("its pickle refers to data in a way that torch.save does not")
        if not isinstance(count, int) or count < 0:
            raise ScanError(f"one of its tensors has {count!r} values")
        self.storages[key] = max(count, self.storages.get(key, 0))
        self.stack.append(_Other("storage"))

    def _build(self, state: Any) -> None:
        """Attributes of an object. PyTorch gives state dicts one; set on a tensor they could replace its methods."""
        target = self.pop()
        self.stack.append(target)
        if not (isinstance(target, _Mapping) and target.ordered):
            raise ScanError("its pickle sets attributes of what is no ordered dictionary")
        if not isinstance(state, _Mapping) or state.keys - {"_metadata"}:
            raise ScanError("its pickle sets other attributes of a dictionary than PyTorch does")


def scan_pickle(file: IO[bytes]) -> tuple[Any, int]:
    """Follow the pickle that begins at the file's position, to its end; nothing is built.

    Returns its value if that is a number, text or None (else a stand-in), and how many values the storages
    that it refers to have together. Raises ForeignObjectError or ScanError.
    """
    scan = _Scan()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                break
            scan.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ScanError(f"its pickle is damaged ({error})") from error
    return scan.pop(), sum(scan.storages.values())


def _named(argument: str) -> _Global:
    name = argument.replace(" ", ".", 1)
    if name not in _CALLED and _NAMED.fullmatch(name) is None:
        raise ForeignObjectError(name)
    return _Global(name)


def _tuple(items: list[Any]) -> _Tuple:
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > _MAX_TUPLE_DEPTH:
        raise ScanError(f"its pickle nests tuples more than {_MAX_TUPLE_DEPTH} deep")
    return _Tuple(items, depth)


def _called(called: Any, arguments: Any) -> Any:
    if not isinstance(called, _Global) or called.name not in _CALLED or not isinstance(arguments, _Tuple):
        raise ScanError("its pickle calls what cannot be called")
    if called.name == _ORDERED_DICT and not arguments.items:
        return _Mapping(ordered=True)
    if called.name == _COUNTER and (not arguments.items or isinstance(arguments.items[0], _Mapping)):
        return _Mapping()
    if called.name in {_ORDERED_DICT, _COUNTER}:
        raise ScanError(f"its pickle fills a {called.name} in a way that torch.save does not")
    return _Other(called.name)
