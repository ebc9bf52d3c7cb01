"""Mutations and reference reading of safetensors files, for the kinds that hold such files."""

import json
import random
import struct

import safetensors

from scripts.damage.kinds import mutations

_DTYPES = ("F32", "F16", "BF16", "F64", "I32", "U32", "I64", "BOOL", "F8_E4M3", "F4", "C64", "f32", "F33", "", None, 1)
_NUMBERS = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00")

type Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def split(content: bytes) -> tuple[dict, bytes]:
    """Returns header and data of an undamaged file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: bytes | dict, data: bytes) -> bytes:
    """Returns a file with a header, which may be any bytes, and data."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text)) + text + data


def tensors_of(content: bytes) -> Tensors | None:
    """Returns dtype, shape and bytes by name, as the safetensors library reads them; None if it refuses the file."""
    try:
        found = safetensors.deserialize(content)
    except (safetensors.SafetensorError, ValueError, OverflowError):
        return None
    return {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in found}


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Returns a file with a changed byte, number, header, header entry or length."""
    change = rng.randrange(8)
    if change < 2:
        return mutations.of_bytes(rng, content)
    header, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    if change == 2:
        at = 4 * rng.randrange(max(1, len(data) // 4))
        return joined(header, data[:at] + rng.choice(_NUMBERS) + data[at + 4 :])
    if change == 3 or not names:
        return joined(mutations.of_json(rng, json.dumps(header).encode()), data)
    if change == 4:
        header[rng.choice(names)]["dtype"] = rng.choice(_DTYPES)
    elif change == 5:
        entry = header[rng.choice(names)]
        place = entry[rng.choice(("shape", "data_offsets"))]
        at = rng.randrange(max(1, len(place)))
        place[at : at + 1] = rng.choice(([], [0], [1], [-1], [2**63], [place[at] + 4] if place else [4], [1, *place]))
    elif change == 6:
        one, other = rng.choice(names), rng.choice(names)
        header[one], header[other] = header[other], header[one]
    else:
        text = json.dumps(header).encode()
        length = rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + text + data
    return joined(header, data)
