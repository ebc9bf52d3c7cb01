"""Pickles of torch files: torch's output is read in every protocol; everything else is refused before it is built."""

import io
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from torch_files import pickled

from aligner_jax.errors import InputError
from aligner_jax.weights.torch_pickle import MAX_OPCODES, Storage, Tensor, read_state

PATH = Path("file.pth")
TENSORS = {"a": np.zeros((6, 4), np.float32), "b": np.zeros(5, np.float16), "none": np.zeros((0, 3), np.float32)}
EXPECTED = {
    "a": Tensor(Storage("F32", "0", 24), 0, (6, 4), (4, 1)),
    "b": Tensor(Storage("F16", "1", 5), 0, (5,), (1,)),
    "none": Tensor(Storage("F32", "2", 0), 0, (0, 3), (3, 1)),
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x08tQ"


def state(arguments: bytes) -> bytes:
    """Returns the pickle of a dict of one tensor "a" with these arguments."""
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def test_the_state_that_tests_write():
    # NumPy's strides of an empty array are 0.
    assert read_state(pickled(TENSORS), PATH) == EXPECTED | {"none": EXPECTED["none"]._replace(strides=(0, 0))}


@pytest.fixture
def fake_torch(monkeypatch):
    """Installs a module under torch's name, so that Python's own pickler writes torch's output."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_):
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    vars(utils)["_rebuild_tensor_v2"] = rebuild
    for name in ("FloatStorage", "HalfStorage"):
        vars(torch)[name] = type(name, (), {"__module__": "torch"})
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch, rebuild


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("of_module", [False, True])
def test_every_protocol(fake_torch, protocol: int, of_module: bool):
    """`torch.save` pickles a dict, or a module's state dict, which is an OrderedDict with an attribute."""
    import collections

    torch, rebuild = fake_torch

    class Described:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def __reduce__(self):
            storage, *place = self.tensor
            return rebuild, (storage, *place, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                kind = {"F32": torch.FloatStorage, "F16": torch.HalfStorage}[obj.encoding]
                return ("storage", kind, obj.key, "cuda:0", obj.size)
            return None

    content = io.BytesIO()
    saved = {name: Described(tensor) for name, tensor in EXPECTED.items()}
    if of_module:
        saved = collections.OrderedDict(saved)
        vars(saved)["_metadata"] = collections.OrderedDict({"": {"version": 1}})
    Pickler(content, protocol).dump(saved)
    assert read_state(content.getvalue(), PATH) == EXPECTED


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x80\x02}" + b"K\x01" + b"\x85" * 250_000 + b"K\x01s.", "has tuples nested deeper"),
        (b"\x80\x02}" + b"K\x01" + b"q\x05h\x05\x86" * 40 + b"K\x01s.", "has tuples nested deeper"),
        (b"\x80\x02(" + b"K\x01" * 100_000 + b"t.", "has a tuple of 100,000 items"),
        (b"\x80\x02" + b"}0" * 10, "has the opcode POP at byte 3, which torch does not write"),
        (b"\x80\x02" + b"}" * MAX_OPCODES, "has more than the 300,000 opcodes"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "has the opcode BYTEARRAY8 at byte 2"),
        (b"\x80\x02X" + struct.pack("<I", 2**31) + b"a.", "has text of 2,147,483,648 bytes"),
        (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", "has an integer of 255 bytes"),
        (b"\x80\x02\x8b" + struct.pack("<I", 2**30) + b".", "has the opcode LONG4"),
        (b"\x80\x02\x00.", "has the opcode 0x00 at byte 2"),
        (b"\x80\x01}.", "is of protocol 1, not of 2 to 5"),
        (b"\x80\x02c" + b"x" * 5000, "has a name without an end"),
        (b"\x80\x02}", "ends inside an opcode"),
        (b"\x80\x02J\x01", "ends inside an opcode"),
        (b"\x80\x02}}.", "ends at byte 5 with something left over"),
        (b"\x80\x02}..", "ends at byte 4 with something left over"),
        (b"\x80\x02(}.", "ends at byte 5 with something left over"),
        (b"\x80\x02.", "takes something from an empty stack"),
        (b"\x80\x02}(s.", "takes something from an empty stack"),
        (b"\x80\x02}t.", "up to a mark that is not there"),
        (b"\x80\x02h\x07.", "asks for object 7"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "has text that is not UTF-8"),
        (b"\x80\x02}K\x01Ns.", "has a dict with a key that is a int, not text"),
        (b"\x80\x02}(" + text("a") + b"u.", "or half an item"),
        (b"\x80\x02]" + text("a") + b"Ns.", "sets items of a list"),
        (b"\x80\x02}Na.", "appends to a dict"),
        (b"\x80\x02}}b.", "sets attributes of a dict"),
        (b"\x80\x02ccollections\nOrderedDict\n]R.", "in a way that torch does not"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "in a way that torch does not"),
        (b"\x80\x02K\x01K\x01\x93.", "has a name that is no text"),
        (state(STORAGE + b"K\x00" + text("4") + b")\x89}"), "whose shape and place are not integers"),
        (state(STORAGE + b"K\x00(\x88K\x04t(K\x04K\x01t\x89}"), "whose shape and place are not integers"),
        # Backward hooks, and values that are negated lazily.
        (state(STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}" + text("x") + b"Ns"), "in a way that torch does not"),
        (state(STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}}" + text("neg") + b"\x88s"), "in a way that torch does not"),
    ],
)  # fmt: skip
def test_what_torch_does_not_write_is_refused_at_once(content: bytes, sentence: str):
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(InputError, match=f"^file.pth is not a whole torch file: its data.pkl .*{sentence}"):
        read_state(content, PATH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - begun < 20
    assert peak < 64 * 2**20 + 2 * len(content)


def test_a_memo_number_takes_no_memory():
    tracemalloc.start()
    assert read_state(b"\x80\x02}r\xff\xff\xff\x7f.", PATH) == {}
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x80\x02}(" + text("a") + b"N" + text("a") + b"Nu.", "^file.pth names 'a' twice"),
        (b"\x80\x02}" + text("a") + b"K\x01s.", "entry 'a' is not a tensor of floating-point numbers"),
        (b"\x80\x02].", "holds a list, not a dict of tensors"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "holds a name of a function, not a dict"),
        (b"\x80\x04" + b"\x8c\x02os\x8c\x06system\x93.", "asks for os.system, which is no tensor; it was not run"),
        (b"\x80\x02" + STORAGE.replace(b"K\x08", b"\x88") + b".", "refers to something that is no tensor storage"),
        (b"\x80\x02" + STORAGE.replace(text("0"), b"K\x00") + b".", "refers to something that is no tensor storage"),
    ],
)  # fmt: skip
def test_what_is_no_dict_of_tensors_is_refused(content: bytes, sentence: str):
    with pytest.raises(InputError, match=sentence):
        read_state(content, PATH)


class _Reference(pickle.Unpickler):
    """Python's unpickler, with stand-ins for torch's names."""

    def find_class(self, module_name: str, global_name: str):
        if global_name == "OrderedDict":
            return type("Ordered", (dict,), {"__setstate__": lambda self, state: None})
        if global_name == "_rebuild_tensor_v2":
            return lambda storage, offset, shape, strides, *_: Tensor(storage, offset, shape, strides)
        return {"FloatStorage": "F32", "HalfStorage": "F16"}[global_name]

    def persistent_load(self, pid):
        return Storage(pid[1], pid[2], pid[4])


def test_a_changed_program_is_refused_or_means_what_python_makes_of_it():
    rng, whole, accepted = random.Random(0), pickled(TENSORS), 0
    starts = [start for _, _, start in pickletools.genops(whole) if start is not None]
    for _ in range(4000):
        opcodes = [whole[a:b] for a, b in zip(starts, [*starts[1:], len(whole)], strict=True)]
        at, other = rng.randrange(len(opcodes)), rng.choice((*opcodes, b"}", b"\x85", b"h\x00", b"q\x00", b"]", b"s"))
        opcodes[at : at + rng.randrange(3)] = [other] * rng.randrange(3)
        content = b"".join(opcodes)
        try:
            found = read_state(content, PATH)
        except InputError:
            continue
        accepted += 1
        assert found == _Reference(io.BytesIO(content)).load(), content
    assert accepted > 100
