"""Loads the tokenizer of a GGUF file: byte-level BPE, or SentencePiece pieces with scores."""

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from aligner_jax.data.gguf_metadata import GGUFHeader, read_gguf_header
from aligner_jax.data.tokenizer import END_TOKENS, Tokenizer, make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend, guarded
from aligner_jax.data.tokenizer_sentencepiece import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    ModelProto,
    SentencePieceBackend,
    new_model,
)
from aligner_jax.data.tokenizer_settings import AddedToken, Settings
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pre-tokenization patterns by tokenizer.ggml.pre. Each pattern splits the pieces that the previous one left. The names
# and the "default" patterns are llama.cpp's.
CUTS = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "tekken": (_TEKKEN,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
# Pre-tokenizers that keep a piece that is itself a token whole, regardless of merges, and add BOS by default.
WHOLE = ("llama-bpe", "tekken")


PREFIX = "tokenizer.ggml."
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_ENDS = ("eot", "eom")


def load(path: Path, header: GGUFHeader | None = None) -> Tokenizer | None:
    """Returns the tokenizer of a GGUF file, None if the file has no vocabulary.

    A padding token beyond the vocabulary is ignored, since nothing pads with it; llama.cpp does the same.

    Args:
      path: GGUF file.
      header: header of the file; None reads it.

    Raises:
      InputError: the file is truncated, or its vocabulary is damaged or of an unknown kind.
    """
    fields = Fields((header or read_gguf_header(path)).fields, path)
    ours = _Ours(fields)
    kind = ours.text("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise InputError(f"{path}: tokenizer.ggml.model is {kind!r}; 'gpt2' (BPE) and 'llama' (SentencePiece) are read")
    tokens, types = _vocabulary(ours)
    pre = ours.text("pre", "default")
    named = {name: _number(ours, given, len(tokens)) for name, given in _NAMED.items()}
    ends = [_number(ours, name, len(tokens)) for name in _ENDS]
    settings = _settings(tokens, types, [*named.values(), *ends])
    if kind == "llama":
        model = _sentencepiece(ours, tokens, types, named["unk"])
        backend, add_bos = SentencePieceBackend(model, settings, str(path)), True
    else:
        backend = HFBackend(_bpe(ours, tokens, pre), settings, str(path))
        add_bos = _SAME.get(pre, pre) in WHOLE
    return make_tokenizer(
        backend,
        bos_id=named["bos"],
        eos_id=named["eos"],
        pad_id=named["pad"],
        add_bos=ours.flag("add_bos_token", add_bos),
        stop_ids=[i for i in ends if i is not None],
        chat_template=fields.text("tokenizer.chat_template") if fields.has("tokenizer.chat_template") else None,
        unk_token="" if named["unk"] is None else tokens[named["unk"]],
    )


class _Ours(Fields):
    """The fields `tokenizer.ggml.*`, by their names without that prefix."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields.values, fields.file, PREFIX)

    def get(self, name: str) -> object:
        return self.values.get(PREFIX + name)


def _number(ours: _Ours, name: str, count: int) -> int | None:
    """Returns the id of a special token by its name, None if the file has none."""
    field = f"{name}_token_id"
    if not ours.has(field):
        return None
    number = ours.integer(field, least=-(2**31), most=2**32)
    if 0 <= number < count:
        return number
    if name == "padding":
        return None
    raise ours.error(field, f"is {number}, but there are {count} tokens")


def _settings(tokens: list[str], types: list[int], named: list[int | None]) -> Settings:
    """Returns settings with the vocabulary's added tokens, which are control and user-defined tokens as in llama.cpp.

    Named tokens, and those that end a turn in published models, are special regardless of their type.
    """
    special = {*named, *(i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN))}
    special |= {i for i, kind in enumerate(types) if kind == USER_DEFINED and tokens[i] in END_TOKENS}
    added = [i for i, kind in enumerate(types) if kind == USER_DEFINED or i in special]
    return Settings(
        added_tokens=tuple(AddedToken(tokens[i], i, i in special, normalized=False) for i in added), legacy=True
    )


def _vocabulary(ours: _Ours) -> tuple[list[str], list[int]]:
    tokens = ours.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{ours.file} has no tokenizer.ggml.tokens")
    if not all(tokens):
        raise ours.error("tokens", f"has no text as number {tokens.index('')}")
    if len(set(tokens)) < len(tokens):
        first = next(i for i, token in enumerate(tokens) if tokens.index(token) < i)
        raise ours.error("tokens", f"has {tokens[first]!r} twice, as number {tokens.index(tokens[first])} and {first}")
    types = ours.get("token_type")
    if types is None:
        types = np.ones(len(tokens), np.int32)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(tokens):
        raise ours.error("token_type", f"is not one number for each of the {len(tokens)} tokens, and whole")
    if len(strange := np.flatnonzero((types < 1) | (types > BYTE))):
        i = int(strange[0])
        raise ours.error("token_type", f"of {tokens[i]!r} is {types[i]}: it is from 1 to {BYTE}")
    return tokens, types.tolist()


def _bpe(ours: _Ours, tokens: list[str], pre: str) -> tokenizers.Tokenizer:
    name = _SAME.get(pre, pre)
    if name not in CUTS:
        raise ours.error("pre", f"is {pre!r}; known are {', '.join(CUTS)}")
    merges = ours.get("merges")
    if not isinstance(merges, list):
        raise InputError(f"{ours.file} has no tokenizer.ggml.merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for i, pair in enumerate(pairs):
        if len(pair) != 2 or "" in pair:
            raise ours.error("merges", f"has {merges[i][:100]!r} as number {i}, which is not two tokens and a space")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    with guarded(f"{ours.file}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens"):
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=name in WHOLE)
    tokenizer = tokenizers.Tokenizer(model)
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in CUTS[name]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(ours: _Ours, tokens: list[str], types: list[int], unknown: int | None) -> ModelProto:
    """Returns the SentencePiece model that the file was converted from, with the fields that encoding needs."""
    scores = ours.get("scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or len(scores) != len(tokens):
        raise ours.error("scores", f"is not one number for each of the {len(tokens)} tokens")
    if UNKNOWN not in types and unknown is not None:
        types = [UNKNOWN if i == unknown else kind for i, kind in enumerate(types)]
    model = new_model()
    for token, score, kind in zip(tokens, scores.tolist(), types, strict=True):
        # Added tokens are split off before the model sees the text, so it gets user-defined tokens as control tokens,
        # which match no text.
        model.pieces.add(piece=token, score=score, type=CONTROL if kind == USER_DEFINED else kind)
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(tokens)
    trainer.byte_fallback = BYTE in types
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.remove_extra_whitespaces = ours.flag("remove_extra_whitespaces")
    normalizer.add_dummy_prefix = ours.flag("add_space_prefix", True)
    return model
