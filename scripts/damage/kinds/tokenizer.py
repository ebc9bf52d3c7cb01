"""Folders with a tokenizer.json or tokenizer.model and their settings: changed values, names, numbers and bytes."""

import json
import pathlib
import random
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.errors import InputError
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

FOLDER = pathlib.Path(__file__).parents[3] / "tests" / "goldens" / "tokenizer_grid"
TEXTS = ("", "one two", " <|im_start|>user\nhi<|im_end|>  [X] é😀", "a" * 300, "</s>one <unk>\t\n")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['content'] + eos_token }}{% endfor %}"
SIZES = {"byte_level.json": 360}
STEPS: tuple[object, ...] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "b" * 99},
    {"type": "Replace", "pattern": {"Regex": "(" * 5000}, "content": ""},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
    {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}] * 200},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="},
    {"type": "Prepend", "prepend": "x" * 9999},
    {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "NFKC"}, {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}, {"type": "WordPiece"},
    {"type": "x"},
)  # fmt: skip
MODELS: tuple[object, ...] = (
    {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
    {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"},
    {"type": "Unigram", "vocab": [["a", -1.0], ["b", 0.0]], "unk_id": 1, "byte_fallback": True},
    {"type": "Unigram", "vocab": [["a", -1e308]], "unk_id": 9},
    {"type": "Unigram", "vocab": [], "unk_id": None},
    {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "u", "continuing_subword_prefix": "##",
     "max_input_chars_per_word": 0},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 1}, "merges": [["a", "b"]], "dropout": 0.5},
    {"type": "BPE", "vocab": {"a": 7}, "merges": []},
)  # fmt: skip
TOKENS: tuple[Any, ...] = (
    {"content": "a", "special": True, "rstrip": True}, {"content": ""}, {"content": " "}, {"content": "▁"},
    {"content": 5}, {},
    {"content": "one", "normalized": True, "single_word": True}, {"content": "x" * 9999},
    {"content": "<s>", "lstrip": 1}, "a",
)  # fmt: skip


def samples() -> list[Files]:
    """Returns a folder for each vocabulary, with every settings file that is read."""
    found = []
    for path in sorted([*FOLDER.glob("*.model"), *FOLDER.glob("[!g]*.json")]):
        size = SIZES.get(path.name, 400)
        decoder = {
            str(size): {"content": "<|im_end|>", "special": True, "normalized": False},
            str(size + 1): {"content": "<|im_start|>", "special": True, "lstrip": True},
            str(size + 2): {"content": "[X]", "special": False, "single_word": True},
        }
        config = {
            "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": True, "add_bos_token": True,
            "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE,
        }  # fmt: skip
        base = {
            "tokenizer" + path.suffix: path.read_bytes(),
            "config.json": b'{"model_type": "llama", "eos_token_id": 2}',
        }
        first = {**config, "added_tokens_decoder": decoder}
        second = {**config, "additional_special_tokens": ["<|im_start|>"]}
        rest = {
            "added_tokens.json": {"<|im_end|>": size, "[X]": size + 1},
            "special_tokens_map.json": {"pad_token": "<|im_end|>"},
            "generation_config.json": {"eos_token_id": [2, 5]},
        }
        found.append({**base, "tokenizer_config.json": json.dumps(first).encode()})
        found.append(
            {**base, **{n: json.dumps(v).encode() for n, v in {"tokenizer_config.json": second, **rest}.items()}}
        )
    return found


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the folder with one or two of its files damaged, removed or swapped."""
    changed = dict(files)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(changed))
        vocabulary = next((n for n in changed if n in ("tokenizer.json", "tokenizer.model")), name)
        how = rng.randrange(10)
        if how < 3:
            name = vocabulary
        if how == 9:
            changed["chat_template.jinja"] = mutations.of_bytes(rng, TEMPLATE.encode())
        elif name == "tokenizer.model":
            changed[name] = _model(rng, changed[name])
        elif name == "tokenizer.json" and how % 2:
            changed[name] = _steps(rng, changed[name])
        elif name == "tokenizer_config.json" and how % 2:
            changed[name] = _tokens(rng, changed[name])
        elif name.endswith(".json"):
            changed[name] = _json(rng, changed[name])
    return changed


def _json(rng: random.Random, content: bytes) -> bytes:
    try:
        return mutations.of_json(rng, content)
    except (ValueError, RecursionError):
        # The first damage has left no valid JSON.
        return mutations.of_bytes(rng, content)


def _model(rng: random.Random, content: bytes) -> bytes:
    """Returns a model with changed bytes, pieces or settings."""
    if rng.randrange(3) == 0:
        return mutations.of_bytes(rng, content)
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception:
        return mutations.of_bytes(rng, content)
    for _ in range(rng.choice((1, 1, 3))):
        if not model.pieces:
            break
        piece, other = rng.choice(model.pieces), rng.choice(model.pieces)
        change = rng.randrange(9)
        if change == 0:
            piece.type = rng.randrange(1, 7)
        elif change == 1:
            piece.score = rng.choice((float("nan"), float("inf"), 0.0, -1e38, 1.0))
        elif change == 2:
            piece.piece = rng.choice(("", other.piece, "a" * 3000, " ", "<0x00>", "▁", "\0", "one two"))
        elif change == 3:
            del model.pieces[rng.randrange(len(model.pieces))]
        elif change == 4:
            model.trainer_spec.model_type = rng.randrange(1, 5)
        elif change == 5:
            model.normalizer_spec.precompiled_charsmap = bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
        elif change == 6:
            name = rng.choice(("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"))
            setattr(model.normalizer_spec, name, rng.random() < 0.5)
        elif change == 7:
            setattr(
                model.trainer_spec, rng.choice(("bos_id", "eos_id", "unk_id", "pad_id")), rng.choice((-1, 0, 5, 10**6))
            )
        else:
            model.trainer_spec.byte_fallback = rng.random() < 0.5
    return model.SerializeToString()


def _steps(rng: random.Random, content: bytes) -> bytes:
    """Returns a tokenizer.json with one part replaced."""
    try:
        value = json.loads(content)
        name = rng.choice(
            ("normalizer", "pre_tokenizer", "decoder", "model", "post_processor", "added_tokens", "truncation")
        )
        if name == "model":
            value[name] = rng.choice((*MODELS, *STEPS, None))
        elif name == "added_tokens":
            value[name] = [
                {"id": rng.choice((0, 400, -1, 2**40)), **each} for each in TOKENS[:-1] if rng.random() < 0.3
            ]
        elif name == "truncation":
            value[name] = {
                "max_length": 2,
                "stride": rng.choice((0, 9)),
                "strategy": "LongestFirst",
                "direction": "Right",
            }
            value["padding"] = {"strategy": {"Fixed": 10**12}, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
        else:
            steps = [rng.choice(STEPS) for _ in range(rng.randrange(1, 4))]
            kind = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(name, "decoders")
            value[name] = rng.choice((steps[0], {"type": "Sequence", kind: steps}))
        return json.dumps(value).encode()
    except (ValueError, TypeError, RecursionError):
        return mutations.of_bytes(rng, content)


def _tokens(rng: random.Random, content: bytes) -> bytes:
    """Returns a tokenizer_config.json with other added tokens."""
    try:
        value = json.loads(content)
        name = rng.choice(
            ("added_tokens_decoder", "additional_special_tokens", "eos_token", "image_token", "bos_token")
        )
        if name == "added_tokens_decoder":
            keys = ("0", "400", "401", "600", "-1", "x", "1.5", "4294967296", "9" * 30)
            value[name] = {rng.choice(keys): rng.choice(TOKENS) for _ in range(rng.randrange(4))}
        else:
            several = name == "additional_special_tokens"
            value[name] = [rng.choice(TOKENS) for _ in range(3)] if several else rng.choice(TOKENS)
        return json.dumps(value).encode()
    except (ValueError, TypeError):
        return mutations.of_bytes(rng, content)


def read(folder: pathlib.Path) -> str:
    """Returns ids and texts of a few texts, the special ids, and a rendered chat."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise InputError("the folder has no vocabulary")
    ids = [tokenizer.encode(text, bos=tokenizer.add_bos) for text in TEXTS]
    ids += [tokenizer.encode(TEXTS[1], after=each) for each in (1, tokenizer.pad_id)]
    found = [
        ids,
        [tokenizer.decode(each) for each in ids],
        tokenizer.bos_id,
        tokenizer.eos_id,
        sorted(tokenizer.stop_ids),
    ]
    assert all(0 <= i < tokenizer.vocab_size for each in ids for i in each), "a token beyond the vocabulary"
    if tokenizer.chat_template is not None:
        found.append(tokenizer.render_chat([{"role": "user", "content": "hi"}]))
    return json.dumps(found)


def may_differ(before: Files, after: Files) -> bool:
    """Returns True: no file of a tokenizer has a checksum, and every valid setting is as good as another."""
    return True


KIND = Kind("tokenizer", samples, mutate, read, may_differ)
