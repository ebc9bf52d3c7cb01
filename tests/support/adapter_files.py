"""Adapter files to tamper with, and the errors of reading them."""

import json
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.artifact import load_adapter


class NamedBase(NamedTuple):
    """A base with a given fingerprint in place of a computed one."""

    config: LlamaConfig
    fingerprint: str = "0123456789abcdef" * 4


def parts(path: Path) -> tuple[dict, bytes]:
    """Returns the header and the content of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict, body: bytes, *, keep_digest: bool = False) -> None:
    """Writes a file without a digest, as before digests existed, so that the reader checks its content."""
    if not keep_digest:
        header["__metadata__"].pop("digest", None)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def refusal(path: Path, base: NamedBase | None) -> str:
    """Returns the error of loading a file: one sentence that names it."""
    with pytest.raises(InputError) as caught:
        load_adapter(path, base)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence
