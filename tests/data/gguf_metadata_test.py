"""Headers of GGUF files: damage is named, and reading is bounded in time and memory by the file's size."""

import re
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import entry, field, header, text

from aligner_jax.data.gguf_metadata import read_gguf_header
from aligner_jax.errors import InputError

STRING, ARRAY = 8, 9


def array(item: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + content


def read(folder: Path, content: bytes):
    (folder / "model.gguf").write_bytes(content)
    return read_gguf_header(folder / "model.gguf")


def test_each_type_of_value_is_read(tmp_path):
    kinds = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60_000), 3: ("h", -9), 4: ("I", 2**32 - 1), 5: ("i", -1),
             6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -(2**40)), 12: ("d", 0.1)}  # fmt: skip
    fields = [field(f"k{kind}".encode(), kind, struct.pack("<" + code, x)) for kind, (code, x) in kinds.items()]
    fields.append(field(b"text", STRING, text("Ġ 😀".encode())))
    fields.append(field(b"texts", ARRAY, array(STRING, 2, text(b"") + text("Ġ".encode()))))
    fields.append(field(b"numbers", ARRAY, array(5, 2, struct.pack("<ii", -7, 7))))
    found = read(tmp_path, header(fields, [entry(b"t", (3, 2), 1, 64)]))
    for kind, (_, value) in kinds.items():
        assert found.fields[f"k{kind}"] == value
        assert type(found.fields[f"k{kind}"]) is type(value)
    assert (found.fields["text"], found.fields["texts"]) == ("Ġ 😀", ["", "Ġ"])
    np.testing.assert_array_equal(found.fields["numbers"], [-7, 7])
    assert (found.tensors["t"].shape, found.tensors["t"].type, found.tensors["t"].offset) == ((3, 2), 1, 64)
    assert found.data_offset == -(-(tmp_path / "model.gguf").stat().st_size // 32) * 32


ONE = field(b"a", 0, b"\1")
DEEP = struct.pack("<IQ", ARRAY, 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a GGUF file: its first four bytes are not 'GGUF'"),
        (b"GGUF", "is cut off within its metadata, at the version"),
        (b"GGML" + bytes(40), "is not a GGUF file"),
        (b"GGUF\0\0\0\3" + bytes(40), "is a GGUF file big-endian"),
        (b"GGUF\4\0\0\0" + bytes(40), "is a GGUF file of version 4"),
        (header(counts=(0, 2**60)), "it says that it has 1,152,921,504,606,846,976 metadata fields"),
        (header(counts=(2**60, 0)), "it says that it has 1,152,921,504,606,846,976 tensors"),
        (header([ONE], counts=(0, 2)), "is cut off within its metadata, at metadata field 2 of 2"),
        (header([ONE, ONE]), "is damaged: a appears twice"),
        (header([field(b"", 0, b"\1")]), "metadata field 1 of 1 has an empty name"),
        (header([field(b"\xff\xfe", 0, b"\1")]), "metadata field 1 of 1 is not UTF-8 text"),
        (header([text(b"a" * 70_000)]), "metadata field 1 of 1 has a name of 70,000 bytes; names have at most 65,535"),
        (header([struct.pack("<Q", 2**64 - 1)]), "has a name of 18,446,744,073,709,551,615 bytes"),
        (header([field(b"a", 13, b"\1")]), "metadata field a has the unknown type 13"),
        (header([field(b"a", 7, b"\2")]), "metadata field a is a truth value other than 0 and 1"),
        (header([field(b"a", ARRAY, array(7, 2, b"\0\xff"))]), "metadata field a is a truth value other than 0 and 1"),
        (header([field(b"a", STRING, struct.pack("<Q", 2**62))]), "is cut off within its metadata, at metadata field"),
        (header([field(b"a", STRING, text(b"\xff"))]), "metadata field a is not UTF-8 text"),
        (header([field(b"a", ARRAY, array(STRING, 1, text(b"\xc3")))]), "metadata field a is not UTF-8 text"),
        (header([field(b"a", ARRAY, array(STRING, 2**60))]), "is cut off within its metadata, at metadata field a"),
        (header([field(b"a", ARRAY, array(4, 2**62))]), "is cut off within its metadata, at metadata field a"),
        (header([field(b"a", ARRAY, array(77, 0))]), "metadata field a is an array of the unknown type 77"),
        (header([field(b"a", ARRAY, DEEP * 100_000)]), "metadata field a is an array of arrays"),
        (header([], [entry(b"t", ())]), "tensor t has 0 axes, not from 1 to 4"),
        (header([], [entry(b"t", (1,) * 100_000)]), "tensor t has 100,000 axes, not from 1 to 4"),
        (header([], [entry(b"t", (64, 0))]), "tensor t has shape [64, 0], which holds no number"),
        (header([], [entry(b"t", (1,)), entry(b"t", (1,))]), "t appears twice"),
        (header([], [entry(b"", (1,))]), "entry 1 of 1 of its tensor table has an empty name"),
        (header([], [entry(b"\xff", (1,))]), "entry 1 of 1 of its tensor table is not UTF-8 text"),
        (header([], [entry(b"t" * 65, (1,))]), "entry 1 of 1 of its tensor table has a name of 65 bytes"),
        *(
            (header([field(b"general.alignment", kind, value)]), "general.alignment is ")
            for kind, value in [
                (4, bytes(4)), (4, b"\x30\0\0\0"), (5, b"\xff" * 4), (6, struct.pack("<f", 32.0)), (7, b"\1"),
                (STRING, text(b"32")), (ARRAY, array(4, 1, b"\x20\0\0\0")),
            ]
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_damage_is_named(tmp_path, content, sentence):
    began = time.monotonic()
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        read(tmp_path, content)
    assert str(tmp_path / "model.gguf") in str(error.value)
    assert time.monotonic() - began < 1


MEBIBYTE = 2**20


@pytest.mark.parametrize(
    "fields",
    [
        [field(b"t", STRING, text("😀".encode() + b"a" * (28 * MEBIBYTE)))],
        [field(b"t", ARRAY, array(STRING, 1, text("😀".encode() + b"a" * (28 * MEBIBYTE))))],
        [field(b"t", ARRAY, array(STRING, 2**20, text("ĀĀ".encode()) * 2**20))],
        [field(b"%d" % i, ARRAY, array(STRING, 2**17, text(b"ab") * 2**17)) for i in range(16)],
        [field(b"t", ARRAY, array(0, 33 * MEBIBYTE, bytes(33 * MEBIBYTE)))],
    ],
    ids=["wide text", "wide text in an array", "many strings", "many arrays", "large"],
)
def test_no_header_takes_more_memory_than_twice_its_size_and_64_mb(tmp_path, fields):
    content = header(fields)
    (tmp_path / "model.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"its metadata (take more memory|go on beyond)"):
            read_gguf_header(tmp_path / "model.gguf")
        # One file size is for the pages of the file itself, which count elsewhere.
        assert tracemalloc.get_traced_memory()[1] < len(content) + 64 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_the_vocabulary_of_the_largest_models_is_read(tmp_path):
    tokens, merges = 160_000, 330_000
    fields = [
        field(b"tokens", ARRAY, array(STRING, tokens, b"".join(text("Ġt%06d".encode() % i) for i in range(tokens)))),
        field(b"merges", ARRAY, array(STRING, merges, text("Ġth e token".encode()) * merges)),
        field(b"template", STRING, text(b"x" * 100_000 + "é".encode())),
    ]
    found = read(tmp_path, header(fields))
    assert (len(found.fields["tokens"]), len(found.fields["merges"])) == (tokens, merges)
    assert (found.fields["tokens"][-1], found.fields["merges"][-1]) == ("Ġt159999", "Ġth e token")
