"""Converts a tokenizer to the metadata of a GGUF file, as llama.cpp's converter does, and checks the result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aligner_jax.data import tokenizer_gguf
from aligner_jax.data.gguf_metadata import GGUFHeader, Value, read_gguf_header
from aligner_jax.data.tokenizer import END_TOKENS, Tokenizer
from aligner_jax.data.tokenizer_gguf import CUTS, GPT2, PREFIX, WHOLE
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.data.tokenizer_sentencepiece import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    SentencePieceBackend,
    read_model,
)
from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder

_BPE = 2
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
_ENDS = ("eot", "eom")
_DEFAULT_EOS = {"gpt2": 11, "llama": 2}
"""Ids that llama.cpp takes for the end token of a vocabulary that names none, by tokenizer.ggml.model."""
_CHECKED = (
    "The year 1984: 33 333 3333, don't WE'LL  two  spaces\n\n\tand\r\n tabs.",
    "Zwölf Boxkämpfer 你好 नमस्ते 🚀 ½ a\u0301 café... ------======= '''```def f(x):\n    return x**2",
    " leading",
)


def gguf_vocabulary(tokenizer: Tokenizer, path: Path, rows: int) -> tuple[dict[str, Value], list[str]]:
    """Returns the fields `tokenizer.*` of a GGUF file with this tokenizer, and sentences for the user.

    Args:
      tokenizer: the tokenizer.
      path: folder or file that it was loaded from.
      rows: rows of the model's embedding; tokens named [PAD…] stand for those beyond the vocabulary.

    Raises:
      InputError: llama.cpp has no tokenizer that would give the same tokens, or none that is known here.
    """
    if is_file(path / "tokenizer.gguf"):
        fields = read_gguf_header(path / "tokenizer.gguf").fields
        named = {key: value for key, value in fields.items() if key.startswith("tokenizer.")}
        return {key: value for key, value in named.items() if not _is_none(key, value)}, []
    if tokenizer.vocab_size > rows:
        raise InputError(f"{path} has {tokenizer.vocab_size:,} tokens, but the model's embedding {rows:,} rows")
    backend = tokenizer.backend
    assert isinstance(backend, HFBackend)
    state = _state(backend, path)
    model_file = path / "tokenizer.model" if is_folder(path) else path
    if isinstance(backend, SentencePieceBackend) or (state["model"].get("byte_fallback") and is_file(model_file)):
        vocabulary = _sentencepiece(backend, model_file, rows)
    else:
        vocabulary = _byte_level(backend, state, path, rows)
    fields = {PREFIX + name: value for name, value in (vocabulary | _named(tokenizer)).items()}
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields, _check(tokenizer, fields, path) + _other_ends(tokenizer, str(vocabulary["model"]))


def _is_none(key: str, value: Value) -> bool:
    """Returns True for the id of a special token that a vocabulary does not have."""
    return key.endswith("_token_id") and isinstance(value, int) and value < 0


def _state(backend: HFBackend, path: Path) -> dict[str, Any]:
    """Returns the contents of the backend's tokenizer.json."""
    text = backend.to_json()
    if text is None:
        raise InputError(f"the tokenizer of {path} gives some tokens other ids, which a GGUF file cannot hold")
    return json.loads(text)


def _byte_level(backend: HFBackend, state: Mapping, path: Path, rows: int) -> dict[str, Value]:
    tokens, types = _tokens(backend, state, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"].get("merges", [])]
    pre = _pre(state, path)
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": _whole(types), "merges": merges}


def _sentencepiece(backend: HFBackend, path: Path, rows: int) -> dict[str, Value]:
    model = read_model(path)
    normalizer = model.normalizer_spec
    if model.trainer_spec.model_type != _BPE:
        raise InputError(f"{path} is a Unigram model, and llama.cpp's SentencePiece vocabularies are BPE")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise InputError(f"{path} normalizes texts ({normalizer.name}, extra spaces), which llama.cpp does not")
    state = {"added_tokens": _state(backend, path)["added_tokens"]}
    tokens, types = _tokens(backend, state, rows)
    scores = [_UNUSED_SCORE if kind == UNUSED else _ADDED_SCORE for kind in types]
    for i, piece in enumerate(model.pieces):
        tokens[i], types[i], scores[i] = piece.piece, piece.type, piece.score
    first = backend.token(backend.encode("a", None)[0])
    return {
        "model": "llama", "pre": "default", "tokens": tokens, "token_type": _whole(types),
        "scores": np.asarray(scores, np.float32), "add_space_prefix": first.startswith("▁"),
        "unknown_token_id": types.index(2),
    }  # fmt: skip


def _tokens(backend: HFBackend, state: Mapping, rows: int) -> tuple[list[str], list[int]]:
    """Returns text and type of every row of the embedding."""
    added = {token["content"] for token in state["added_tokens"]}
    tokens, types = [], []
    for i in range(rows):
        token = backend.token(i)
        tokens.append(token or f"[PAD{i}]")
        special = CONTROL if i in backend.special_ids else USER_DEFINED if token in added else NORMAL
        types.append(special if token else UNUSED)
    return tokens, types


def _whole(types: list[int]) -> np.ndarray:
    return np.asarray(types, np.int32)


def _pre(state: Mapping, path: Path) -> str:
    """Returns llama.cpp's name of a byte-level pre-tokenizer."""
    normalizer = state.get("normalizer")
    kind = "" if normalizer is None else normalizer.get("type")
    cuts = _cuts(state.get("pre_tokenizer"))
    name = next((name for name, known in CUTS.items() if cuts == known), None)
    whole = state["model"].get("ignore_merges", False)
    if state["model"].get("type") != "BPE" or kind not in ("", "NFC") or name is None or (whole and name not in WHOLE):
        raise InputError(
            f"{path}: its pre-tokenizer is none of those of llama.cpp that are known here, {', '.join(CUTS)}: write "
            "--to=hf, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    return name


def _cuts(step: Mapping | None) -> tuple[str, ...] | None:
    """Returns the patterns by which a pre-tokenizer of tokenizer.json splits a text; None if they are unknown."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            inner = [_cuts(one) for one in steps]
            return None if None in inner else tuple(cut for cuts in inner if cuts for cut in cuts)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (r"\p{N}",)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (GPT2,) if step.get("use_regex", True) else ()
    return None


def _named(tokenizer: Tokenizer) -> dict[str, Value]:
    """Returns the ids of special tokens and `add_bos_token`."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if tokenizer.pad_id != (0 if tokenizer.eos_id is None else tokenizer.eos_id):
        ids["padding"] = tokenizer.pad_id
    ids |= dict(zip(_ENDS, _unusual_ends(tokenizer), strict=False))
    fields: dict[str, Value] = {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    return fields | {"add_bos_token": tokenizer.add_bos}


def _unusual_ends(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of end tokens that llama.cpp does not know by their texts."""
    usual = {tokenizer.eos_id, *(tokenizer.backend.token_id(name) for name in END_TOKENS)}
    return sorted(tokenizer.stop_ids - usual)


def _other_ends(tokenizer: Tokenizer, model: str) -> list[str]:
    """Returns sentences about tokens that end an answer in one of this project and llama.cpp alone."""
    sentences, taken = [], _DEFAULT_EOS[model]
    if tokenizer.eos_id is None and (token := tokenizer.backend.token(taken)):
        sentences.append(f"tokenizer: it has no end token, so llama.cpp takes token {taken}, {token!r}, for one")
    if lost := _unusual_ends(tokenizer)[len(_ENDS) :]:
        tokens = ", ".join(repr(tokenizer.backend.token(i)) for i in lost)
        sentences.append(
            f"tokenizer: llama.cpp does not end an answer at {tokens}, since its files name few end tokens"
        )
    return sentences


def _check(tokenizer: Tokenizer, fields: dict[str, Value], path: Path) -> list[str]:
    """Compares the tokens of texts; refuses other tokens, and says so if only texts with special tokens differ."""
    again = tokenizer_gguf.load(path, GGUFHeader(fields, {}, 0, 0, 32))
    assert again is not None
    for text in _CHECKED:
        if again.encode(text) != tokenizer.encode(text):
            raise InputError(f"{path}: as a GGUF file's vocabulary, it would give {text!r} other tokens")
    special = "" if tokenizer.eos_id is None else tokenizer.backend.token(tokenizer.eos_id)
    text = f"One.{special}Two. {special} three"
    if again.encode(text) != tokenizer.encode(text):
        return [f"tokenizer: in llama.cpp, spaces around special tokens such as {special} give other tokens"]
    return []
