"""Reads the pickles that `torch.save` writes for a dict of tensors. Builds plain records and runs nothing.

A pickle is a program, and Python's unpickler runs it. It can call any function, fill the memory with one integer, and
nest objects deeper than the stack. This reader accepts only the opcodes and names that torch writes, and limits their
counts and sizes. Everything else is refused before it is built. No container that the reader builds is hashed, compared
or printed. Opcodes: Python's Lib/pickletools.py, protocols 2 to 5.
"""

import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aligner_jax.errors import InputError

MAX_BYTES = 8 * 2**20
"""Largest pickle that is read, in bytes. That of a LLaMA of 80 layers has 150 kB."""
MAX_OPCODES = 300_000
"""Most opcodes of a pickle. Bounds the objects, the stack and the memo. A tensor takes about 30 opcodes."""
_MAX_TEXT = 4096
_MAX_ITEMS = 32

_OPCODES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_ENCODINGS = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"}


class Storage(NamedTuple):
    """A storage of the archive: `size` elements of one encoding, in the member `data/{key}`."""

    encoding: str
    key: str
    size: int


class Tensor(NamedTuple):
    """An unchecked view of a storage, in elements. Its integers may be negative or exceed the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state(content: bytes, path: Path) -> dict[str, Tensor]:
    """Returns the dict of tensors that a pickle builds.

    Args:
      path: path of the file that holds the pickle; errors begin with it.

    Raises:
      InputError: the pickle is anything but a dict of floating-point tensors by name, or exceeds a limit.
    """
    state = _Reader(content, path).read()
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {_kind(state)}, not a dict of tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: entry {name!r} is not a tensor of floating-point numbers")
        tensors[name] = value
    return tensors


class _Name(NamedTuple):
    module: str
    name: str


_REBUILD = _Name("torch._utils", "_rebuild_tensor_v2")
_ORDERED = _Name("collections", "OrderedDict")
_NAMES = {_REBUILD, _ORDERED, *(_Name("torch", name) for name in _ENCODINGS)}


class _OrderedDict(dict[str, object]):
    """Stands for a module's state dict, whose attributes (`_metadata`) say nothing about its tensors."""

    __slots__ = ()


class _Reader:
    """Interprets the opcodes of one pickle, with a stack, the marks in it, and a memo."""

    def __init__(self, content: bytes, path: Path) -> None:
        self._content, self._path, self._at = content, path, 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def read(self) -> object:
        for _ in range(MAX_OPCODES):
            code = self._take(1)
            if code == b".":
                return self._result()
            if code not in _STEPS:
                raise self._error(
                    f"has the opcode {_OPCODES.get(code, f'0x{code.hex()}')} at byte {self._at - 1}, which torch does "
                    "not write of a dict of tensors"
                )
            _STEPS[code](self)
        raise self._error(f"has more than the {MAX_OPCODES:,} opcodes that a dict of tensors may have")

    def _result(self) -> object:
        value = self._pop()
        if self._stack or self._marks or self._at != len(self._content):
            raise self._error(f"ends at byte {self._at} with something left over")
        return value

    # The pickle's bytes, the stack and the memo.

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._path} is not a whole torch file: its data.pkl {problem}")

    def _take(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) != count:
            raise self._error(f"ends inside an opcode, after {len(self._content)} bytes")
        self._at += count
        return taken

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _decode(self, encoded: bytes) -> str:
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            raise self._error(f"has text that is not UTF-8 before byte {self._at}") from None

    def _line(self) -> str:
        end = self._content.find(b"\n", self._at, self._at + _MAX_TEXT)
        if end < 0:
            raise self._error(f"has a name without an end at byte {self._at}")
        line = self._take(end - self._at)
        self._at += 1
        return self._decode(line)

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _top(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._error(f"takes something from an empty stack before byte {self._at}")
        return self._stack[-1]

    def _pop(self) -> object:
        value = self._top()
        self._stack.pop()
        return value

    def _since_mark(self) -> list[object]:
        if not self._marks:
            raise self._error(f"takes something up to a mark that is not there before byte {self._at}")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _keep(self, number: int) -> None:
        self._memo[number] = self._top()

    def _recall(self, number: int) -> None:
        if number not in self._memo:
            raise self._error(f"asks for object {number} before byte {self._at}, which it did not keep")
        self._push(self._memo[number])

    # One method per opcode that does more than push a constant.

    def _protocol(self) -> None:
        if not 2 <= (version := self._number("<B")) <= 5:
            raise self._error(f"is of protocol {version}, not of 2 to 5")

    def _long(self) -> None:
        if (count := self._number("<B")) > 8:
            raise self._error(f"has an integer of {count} bytes at byte {self._at}")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _text(self, form: str) -> None:
        if (count := self._number(form)) > _MAX_TEXT:
            raise self._error(f"has text of {count:,} bytes at byte {self._at}, which is no tensor's name")
        self._push(self._decode(self._take(count)))

    def _tuple(self, items: list[object]) -> None:
        if len(items) > _MAX_ITEMS:
            raise self._error(f"has a tuple of {len(items):,} items before byte {self._at}, more than any of a tensor")
        if any(type(y) is tuple for x in items if type(x) is tuple for y in x):
            raise self._error(f"has tuples nested deeper before byte {self._at} than any of a tensor")
        self._push(tuple(items))

    def _append(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self._error(f"appends to a {_kind(target)} before byte {self._at}")
        target += items

    def _set(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise self._error(f"sets items of a {_kind(target)} before byte {self._at}, or half an item")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if type(name) is not str:
                raise self._error(f"has a dict with a key that is a {_kind(name)}, not text, before byte {self._at}")
            if name in target:
                raise InputError(f"{self._path} names {name!r} twice")
            target[name] = value

    def _name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise self._error(f"has a name that is no text before byte {self._at}")
        if (named := _Name(module, name)) not in _NAMES:
            raise InputError(f"{self._path} asks for {module}.{name}, which is no tensor; it was not run")
        self._push(named)

    def _global_of_stack(self) -> None:
        name = self._pop()
        self._name(self._pop(), name)

    def _storage(self) -> None:
        match self._pop():
            case tuple(("storage", _Name("torch", kind), str(key), str(), size)) if type(size) is int:
                self._push(Storage(_ENCODINGS[kind], key, size))
            case _:
                raise InputError(f"{self._path} refers to something that is no tensor storage")

    def _call(self) -> None:
        arguments, called = self._pop(), self._pop()
        match called, arguments:
            case _Name("collections"), tuple(()):
                self._push(_OrderedDict())
            # Hooks are functions, and metadata marks negated or conjugated views. Both are refused.
            case _Name("torch._utils"), tuple(
                (Storage() as storage, offset, shape, strides, bool(), dict(hooks), *more)
            ) if not hooks and len(more) < 2 and not any(more):
                if not all(
                    type(numbers) is tuple and all(type(n) is int for n in numbers)
                    for numbers in ((offset,), shape, strides)
                ):
                    raise self._error(f"has a tensor before byte {self._at} whose shape and place are not integers")
                self._push(Tensor(storage, offset, shape, strides))
            case _:
                raise self._error(f"makes a tensor or a dict before byte {self._at} in a way that torch does not")

    def _set_attributes(self) -> None:
        attributes = self._pop()
        if type(attributes) is not dict or type(self._top()) is not _OrderedDict:
            raise self._error(f"sets attributes of a {_kind(self._top())} before byte {self._at}")


def _kind(value: object) -> str:
    return "dict" if isinstance(value, dict) else "name of a function" if type(value) is _Name else type(value).__name__


type _Step = Callable[[_Reader], object]

_STEPS: dict[bytes, _Step] = {
    b"\x80": _Reader._protocol,
    b"\x95": lambda reader: reader._take(8),  # Frames are only hints for reading ahead.
    b"(": lambda reader: reader._marks.append(len(reader._stack)),
    b"N": lambda reader: reader._push(None),
    b"\x88": lambda reader: reader._push(True),
    b"\x89": lambda reader: reader._push(False),
    b"}": lambda reader: reader._push({}),
    b"]": lambda reader: reader._push([]),
    b")": lambda reader: reader._push(()),
    b"J": lambda reader: reader._push(reader._number("<i")),
    b"K": lambda reader: reader._push(reader._number("<B")),
    b"M": lambda reader: reader._push(reader._number("<H")),
    b"\x8a": _Reader._long,
    b"X": lambda reader: reader._text("<I"),
    b"\x8c": lambda reader: reader._text("<B"),
    b"q": lambda reader: reader._keep(reader._number("<B")),
    b"r": lambda reader: reader._keep(reader._number("<I")),
    b"\x94": lambda reader: reader._keep(len(reader._memo)),
    b"h": lambda reader: reader._recall(reader._number("<B")),
    b"j": lambda reader: reader._recall(reader._number("<I")),
    b"t": lambda reader: reader._tuple(reader._since_mark()),
    b"\x85": lambda reader: reader._tuple([reader._pop()]),
    b"\x86": lambda reader: reader._tuple([reader._pop() for _ in range(2)][::-1]),
    b"\x87": lambda reader: reader._tuple([reader._pop() for _ in range(3)][::-1]),
    b"a": lambda reader: reader._append([reader._pop()]),
    b"e": lambda reader: reader._append(reader._since_mark()),
    b"s": lambda reader: reader._set([reader._pop() for _ in range(2)][::-1]),
    b"u": lambda reader: reader._set(reader._since_mark()),
    b"c": lambda reader: reader._name(reader._line(), reader._line()),
    b"\x93": _Reader._global_of_stack,
    b"R": _Reader._call,
    b"Q": _Reader._storage,
    b"b": _Reader._set_attributes,
}
