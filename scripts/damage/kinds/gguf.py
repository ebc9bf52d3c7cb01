"""GGUF files: tiny models of several tensor types, with and without a vocabulary, damaged in header, table and data."""

import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, Keys
from gguf.quants import dequantize, quantize

from scripts.damage.kinds.kind import Files, Kind, digest
from scripts.damage.kinds.mutations import of_bytes

_NAME = "model.gguf"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
_WHOLE = ("embedding_length", "feed_forward_length", "block_count", "context_length")
_TEXTS = ("", "ab c", "a\u00e9 \U0001f600\n<s>")


class Tensor(NamedTuple):
    """A tensor: name in bytes, axes as stored, ggml type, offset in the tensor data, and its bytes."""

    name: bytes
    axes: tuple[int, ...]
    type: int
    offset: int
    content: bytes


class Parts(NamedTuple):
    """A GGUF file in parts. Fields are (key, type, value); an array's value is (type of items, items)."""

    fields: list[tuple[bytes, int, Any]]
    tensors: list[Tensor]


def samples() -> list[Files]:
    """Returns models of 2 layers: LLaMA and Qwen2, tied and not, of all block sizes, most without a vocabulary."""
    return [
        {_NAME: _model(0, "llama", ["F32"], vocabulary=_sentencepiece())},
        {_NAME: _model(1, "llama", ["Q8_0", "Q4_0"], untied=True)},
        {_NAME: _model(2, "qwen2", ["F16"], biases=True)},
        {_NAME: _model(3, "llama", ["BF16", "Q5_0", "Q5_1", "Q4_1"], factors=True)},
        {_NAME: _model(4, "llama", ["F32", "Q8_0"], vocabulary=_byte_level(), untied=True)},
    ]


def _model(
    seed: int, architecture: str, types: list[str], *, vocabulary=(), untied=False, biases=False, factors=False
) -> bytes:
    rng = np.random.default_rng(seed)
    rows = len({key: value for key, _, value in vocabulary}[b"tokenizer.ggml.tokens"][1]) if vocabulary else 40
    d, f, layers = 32, 64, 2
    numbers: list[tuple[str, int, float]] = [("embedding_length", _U32, d), ("feed_forward_length", _U32, f)]
    numbers += [("block_count", _U32, layers), ("context_length", _U32, 128), ("rope.dimension_count", _U32, 8)]
    numbers += [("attention.head_count", _U32, 4), ("attention.head_count_kv", _U32, 2), ("vocab_size", _U32, rows)]
    numbers += [("attention.layer_norm_rms_epsilon", _F32, 1e-5), ("rope.freq_base", _F32, 1e10)]
    fields = [(b"general.architecture", _STRING, architecture.encode()), (b"general.alignment", _U32, 32)]
    fields += [(f"{architecture}.{key}".encode(), kind, value) for key, kind, value in numbers]
    fields += [(b"general.tags", _ARRAY, (_STRING, [b"tiny", b"test"])), *vocabulary]
    matrices = {"token_embd": (rows, d)} | ({"output": (rows, d)} if untied else {})
    vectors = {"output_norm.weight": d} | ({"rope_freqs.weight": 4} if factors else {})
    for layer in range(layers):
        block = f"blk.{layer}."
        matrices |= {block + "attn_q": (d, d), block + "attn_k": (16, d), block + "attn_v": (16, d)}
        matrices |= {block + "attn_output": (d, d), block + "ffn_gate": (f, d), block + "ffn_up": (f, d)}
        matrices |= {block + "ffn_down": (d, f)}
        vectors |= {block + "attn_norm.weight": d, block + "ffn_norm.weight": d}
        if biases:
            vectors |= {block + "attn_q.bias": d, block + "attn_k.bias": 16, block + "attn_v.bias": 16}
    tensors: list[Tensor] = []
    for i, (name, shape) in enumerate(matrices.items()):
        kind = GGMLQuantizationType[types[i % len(types)]]
        content = quantize(rng.standard_normal(shape, np.float32), kind).tobytes()
        tensors.append(Tensor(f"{name}.weight".encode(), shape[::-1], kind, 0, content))
    for name, size in vectors.items():
        values = np.array([1, 1, 8, 8], "<f4") if name.startswith("rope") else rng.standard_normal(size, np.float32)
        tensors.append(Tensor(name.encode(), (size,), GGMLQuantizationType.F32, 0, values.astype("<f4").tobytes()))
    return written(Parts(fields, placed(tensors)))


def _vocabulary(kind: bytes, tokens: list[bytes], types: list[int]) -> list[tuple[bytes, int, Any]]:
    return [
        (b"tokenizer.ggml.model", _STRING, kind),
        (b"tokenizer.ggml.tokens", _ARRAY, (_STRING, tokens)),
        (b"tokenizer.ggml.token_type", _ARRAY, (_I32, types)),
        (b"tokenizer.ggml.bos_token_id", _U32, 1),
        (b"tokenizer.ggml.eos_token_id", _U32, 2),
    ]


def _sentencepiece() -> list[tuple[bytes, int, Any]]:
    tokens = [b"<unk>", b"<s>", b"</s>", *("▁ a b c d e ab bc ▁a ▁b".encode().split(b" "))]
    fields = _vocabulary(b"llama", tokens, [2, 3, 3] + [1] * (len(tokens) - 3))
    scores = [0.0, 0.0, 0.0, *(-float(i) for i in range(len(tokens) - 3))]
    template = b"{% for m in messages %}{{ m.content }}{% endfor %}"
    return [
        *fields,
        (b"tokenizer.ggml.scores", _ARRAY, (_F32, scores)),
        (b"tokenizer.ggml.add_bos_token", _BOOL, True),
        (b"tokenizer.chat_template", _STRING, template),
    ]


def _byte_level() -> list[tuple[bytes, int, Any]]:
    letters = ["<unk>", "<s>", "</s>", *"abcdeĠĊ", "ab", "Ġc"]
    fields = _vocabulary(b"gpt2", [letter.encode() for letter in letters], [3, 3, 3] + [1] * (len(letters) - 3))
    merges = [b"a b", "Ġ c".encode()]
    return [*fields, (b"tokenizer.ggml.pre", _STRING, b"smollm"), (b"tokenizer.ggml.merges", _ARRAY, (_STRING, merges))]


def placed(tensors: list[Tensor], alignment: int = 32) -> list[Tensor]:
    """Returns the tensors with the offsets that a writer gives them."""
    result, at = [], 0
    for tensor in tensors:
        result.append(tensor._replace(offset=at))
        at += -(-len(tensor.content) // alignment) * alignment
    return result


def written(parts: Parts, counts: tuple[int, int] | None = None, version: int = 3, alignment: int = 32) -> bytes:
    """Returns the bytes of a file; its header may contradict its data."""
    number_of_tensors, number_of_fields = counts or (len(parts.tensors), len(parts.fields))
    header = b"GGUF" + struct.pack("<IQQ", version, number_of_tensors, number_of_fields)
    for key, kind, value in parts.fields:
        header += _text(key) + struct.pack("<I", kind) + _value(kind, value)
    for name, axes, kind, offset, _ in parts.tensors:
        header += _text(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes) + struct.pack("<IQ", kind, offset)
    content = b"".join(t.content + bytes(-len(t.content) % alignment) for t in parts.tensors)
    return header + bytes(-len(header) % alignment) + content


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(kind: int, value: Any) -> bytes:
    if kind in _SCALARS:
        return struct.pack("<" + _SCALARS[kind], value)
    if kind == _STRING:
        return _text(value)
    item, values = value
    return struct.pack("<IQ", item, len(values)) + b"".join(_value(item, x) for x in values)


def parsed(content: bytes) -> Parts:
    """Returns a file's parts. Raises ValueError, struct.error or KeyError unless a writer could have written it."""
    at = 4

    def take(code: str) -> Any:
        nonlocal at
        (number,) = struct.unpack_from("<" + code, content, at)
        at += struct.calcsize("<" + code)
        return number

    def text() -> bytes:
        nonlocal at
        size = take("Q")
        at += size
        if at > len(content):
            raise ValueError
        content[at - size : at].decode()
        return content[at - size : at]

    def value(kind: int) -> Any:
        if kind == _STRING:
            return text()
        if kind != _ARRAY:
            return take(_SCALARS[kind])
        item, count = take("I"), take("Q")
        if item == _ARRAY or count > len(content):
            raise ValueError
        return item, [value(item) for _ in range(count)]

    if content[:4] != b"GGUF" or take("I") not in (2, 3):
        raise ValueError
    number_of_tensors, number_of_fields = take("Q"), take("Q")
    fields = []
    for _ in range(number_of_fields):
        key, kind = text(), take("I")
        fields.append((key, kind, value(kind)))
    table = []
    for _ in range(number_of_tensors):
        name, count = text(), take("I")
        if not 1 <= count <= 4:
            raise ValueError
        table.append((name, tuple(take("Q") for _ in range(count)), take("I"), take("Q")))
    alignment = {key: x for key, _, x in fields}.get(b"general.alignment", 32)
    reached = -(-at // alignment) * alignment
    begin, end, tensors = reached, reached, []
    for name, axes, kind, offset in table:
        block, size = _SIZES[kind]
        end = reached + math.prod(axes) // block * size
        if offset != reached - begin or axes[0] % block or not math.prod(axes) or end > len(content):
            raise ValueError
        tensors.append(Tensor(name, axes, kind, offset, content[reached:end]))
        reached = -(-end // alignment) * alignment
    names = [key for key, *_ in fields], [tensor.name for tensor in tensors]
    if len(content) > reached or any(len(set(x)) < len(x) for x in names):
        raise ValueError
    return Parts(fields, tensors)


_KEYS = [
    value.replace("{arch}", "llama").encode()
    for group in (Keys.LLM, Keys.Attention, Keys.Rope)
    for value in vars(group).values()
    if isinstance(value, str) and value.startswith("{arch}.")
] + [b"llama.rope.scale_linear", b"split.count", b"general.quantization_version", b"general.alignment", b"x"]
_NAMES = (b"", b"x", b"\xff\xfe", b"\x1b[2J", b"a" * 5000, "\u202e".encode(), b"rope_freqs.weight", b"output.weight")
_WHOLE_NUMBERS = (0, 1, 2, 3, 7, 31, 32, 33, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**63, 2**64 - 1)
_REALS = (0.0, -0.0, 1.0, 4.0, -1.0, 1e-30, 1e30, math.nan, math.inf, -math.inf, 1e-45)


def _any_value(rng: random.Random) -> tuple[int, Any]:
    """Returns the type and the value of an arbitrary field."""
    kind = rng.choice([*_SCALARS, _STRING, _ARRAY, _STRING, _ARRAY, _U32, _F32])
    if kind == _STRING:
        return kind, rng.choice((*_NAMES, b"linear", b"yarn", b"none", b"reference", b"qwen2", b"a\0b"))
    if kind == _ARRAY:
        item = rng.choice(list(_SCALARS))
        nested = (_ARRAY, [(_ARRAY, [(_U32, [])])] * rng.choice((1, 3)))
        plain = (item, [_scalar(rng, item) for _ in range(rng.choice((0, 1, 2, 500)))])
        return kind, rng.choice((plain, plain, (_STRING, [rng.choice(_NAMES) for _ in range(3)]), nested))
    return kind, _scalar(rng, kind)


def _scalar(rng: random.Random, kind: int) -> Any:
    code = _SCALARS[kind]
    if code in "fd":
        return rng.choice(_REALS)
    if code == "?":
        return rng.choice((True, False))
    bits = 8 * struct.calcsize(code)
    number = rng.choice(_WHOLE_NUMBERS) % 2**bits
    return number - 2**bits if code.islower() and number >= 2 ** (bits - 1) else number


def _of_fields(rng: random.Random, parts: Parts) -> bytes:
    fields = list(parts.fields)
    at = rng.randrange(len(fields))
    key, kind, value = fields[at]
    change = rng.randrange(8)
    if change == 0:
        del fields[at]
    elif change == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif change == 2:
        fields[at] = (rng.choice((*_NAMES, *_KEYS, rng.choice(fields)[0])), kind, value)
    elif change == 3:
        fields.append((rng.choice(_KEYS), *_any_value(rng)))
    elif change == 4 and kind in _SCALARS:
        fields[at] = (key, kind, _scalar(rng, kind))
    elif change == 5 and kind == _ARRAY and value[1]:
        items = list(value[1])
        items[rng.randrange(len(items))] = rng.choice(_NAMES) if value[0] == _STRING else _scalar(rng, value[0])
        fields[at] = (key, kind, (value[0], items[: rng.choice((len(items), len(items) - 1))]))
    else:
        fields[at] = (key, *_any_value(rng))
    return written(parts._replace(fields=fields))


def _of_table(rng: random.Random, parts: Parts) -> bytes:
    tensors = list(parts.tensors)
    at, other = rng.randrange(len(tensors)), rng.randrange(len(tensors))
    tensor = tensors[at]
    change = rng.randrange(12)
    if change == 0:
        tensors[at] = tensor._replace(type=rng.choice([*map(int, GGMLQuantizationType), 4, 5, 31, 255, 2**32 - 1]))
    elif change == 1:
        axes = list(tensor.axes)
        axes[rng.randrange(len(axes))] = rng.choice(_WHOLE_NUMBERS)
        tensors[at] = tensor._replace(axes=tuple(axes))
    elif change == 2:
        shapes = ((), tensor.axes[::-1], (*tensor.axes, 1), (1,) * 5, (1,) * 3000, (2**64 - 1,) * 4, (0, *tensor.axes))
        tensors[at] = tensor._replace(axes=rng.choice(shapes))
    elif change == 3:
        moved = (0, 1, tensor.offset + 1, max(0, tensor.offset - 32), tensor.offset + 32, tensors[other].offset)
        tensors[at] = tensor._replace(offset=rng.choice((*moved, *_WHOLE_NUMBERS)))
    elif change == 4:
        tensors[at] = tensor._replace(name=rng.choice((*_NAMES, tensors[other].name)))
    elif change == 5:
        tensors[at], tensors[other] = (
            tensor._replace(name=tensors[other].name),
            tensors[other]._replace(name=tensor.name),
        )
    elif change == 6:
        tensors[at], tensors[other] = tensors[other], tensor
        tensors = placed(tensors) if rng.random() < 0.5 else tensors
    elif change == 7:
        del tensors[at]
        tensors = placed(tensors) if rng.random() < 0.5 else tensors
    elif change == 8:
        tensors.append(tensors[other])
        tensors = placed(tensors) if rng.random() < 0.5 else tensors
    elif change == 9:
        size = rng.choice((0, 1, 32, len(tensor.content) - 1, len(tensor.content) + 32))
        tensors[at] = tensor._replace(content=tensor.content[:size].ljust(size, b"\0"))
    elif change == 10:
        tensors = [each._replace(offset=0) for each in tensors]
    else:
        numbers = bytearray(tensor.content)
        start = rng.randrange(len(numbers))
        numbers[start : start + 4] = rng.choice((b"\xff\xff", b"\0\0\x80\x7f", b"\0\x7c", b"\x80\x7f", b"\0\0\xc0\xff"))
        tensors[at] = tensor._replace(content=bytes(numbers[: len(tensor.content)]))
    return written(parts._replace(tensors=tensors))


def _of_layout(rng: random.Random, parts: Parts) -> bytes:
    change = rng.randrange(5)
    counts = [len(parts.tensors), len(parts.fields)]
    if change == 0:
        counts[rng.randrange(2)] = rng.choice((*_WHOLE_NUMBERS, counts[0] + 1, counts[0] - 1))
        return written(parts, counts=(counts[0], counts[1]))
    if change == 1:
        return written(parts, version=rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1)))
    if change == 2:
        return written(parts, alignment=rng.choice((1, 8, 16, 64, 4096)))
    content = written(parts)
    if change == 3:
        return (
            content[: len(content) - rng.randrange(1, 100)]
            if rng.random() < 0.5
            else content + bytes(rng.randrange(99))
        )
    # Eight bytes before its text hold a string's length.
    key = rng.choice(parts.fields)[0]
    at = content.index(key) - 8
    return content[:at] + struct.pack("<Q", rng.choice(_WHOLE_NUMBERS)) + content[at + 8 :]


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the file with changed fields, table or layout, or with damaged bytes."""
    content = files[_NAME]
    parts = parsed(content)
    change = rng.randrange(10)
    if change < 8:
        how: Callable[[random.Random, Parts], bytes] = (_of_fields, _of_table, _of_layout)[
            (0, 1, 2, 0, 1, 0, 1, 0)[change]
        ]
        return {_NAME: how(rng, parts)}
    if change == 8:
        return {_NAME: of_bytes(rng, content)}
    header = content.index(parts.tensors[-1].name) + 40
    return {_NAME: of_bytes(rng, content[:header]) + content[header:]}


def read(folder: Path) -> str:
    """Returns a digest of the configuration, the parameters and the token ids of some texts."""
    import jax

    import aligner_jax as aj

    base = aj.load_base(folder / _NAME)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(base.params)]
    told = []
    if base.tokenizer is not None:
        told = [base.tokenizer.bos_id, base.tokenizer.eos_id, base.tokenizer.add_bos, sorted(base.tokenizer.stop_ids)]
        told += [base.tokenizer.encode(text) for text in _TEXTS]
    return digest(base.config, told, *leaves)


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if a writer could have written the file of another model.

    Such a file has finite numbers, settings of the right types, and tensors at the offsets that the table gives.
    """
    before = parsed(sample[_NAME])
    try:
        after = parsed(damaged[_NAME])
    except (ValueError, KeyError, struct.error, OverflowError, TypeError, ZeroDivisionError, MemoryError):
        return False
    old = {key: (kind, value) for key, kind, value in before.fields}
    prefix = old[b"general.architecture"][1] + b"."
    for key, kind, value in after.fields:
        if old.get(key) == (kind, value) or not key.startswith(prefix):
            continue
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            return False
        if type(value) is float and any(key.decode().endswith(name) for name in _WHOLE):
            return False
    return all(_finite(tensor) for tensor in after.tensors)


def _finite(tensor: Tensor) -> bool:
    try:
        with np.errstate(all="ignore"):
            rows = dequantize(np.frombuffer(tensor.content, np.uint8).reshape(1, -1), GGMLQuantizationType(tensor.type))
            return bool(np.isfinite(rows.astype(np.float32)).all())
    except NotImplementedError:
        return False


KIND = Kind("gguf", samples, mutate, read, may_differ)
