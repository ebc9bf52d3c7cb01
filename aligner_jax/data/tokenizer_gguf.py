"""The vocabulary inside a GGUF file: byte-level BPE, or SentencePiece pieces with their scores."""

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from aligner_jax.data.gguf_metadata import GGUFHeader, read_gguf_header
from aligner_jax.data.tokenizer import Tokenizer, make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.data.tokenizer_sentencepiece import ModelProto, SentencePieceBackend, check_model, new_model
from aligner_jax.errors import InputError

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# How text is cut before the merges, by tokenizer.ggml.pre: each pattern cuts the pieces that the one before it left.
# The names and the "default" cuts are llama.cpp's.
_CUTS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")


def load(path: Path) -> Tokenizer | None:
    """The tokenizer of a GGUF file, None if the file has no vocabulary.

    Raises:
      InputError: the file is cut off, its vocabulary is damaged, or of a kind that is not known.
    """
    header = read_gguf_header(path)
    kind = header.fields.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise InputError(f"{path}: tokenizer.ggml.model is {kind!r}; 'gpt2' (BPE) and 'llama' (SentencePiece) are read")
    tokens, types = _vocabulary(path, header)
    pre = header.fields.get("tokenizer.ggml.pre", "default")
    if kind == "llama":
        backend, add_bos = SentencePieceBackend(_sentencepiece(path, header, tokens, types)), True
    else:
        backend, add_bos = HFBackend(_bpe(path, header, tokens, types, str(pre))), pre in _LLAMA3_NAMES

    def token(name: str) -> int | None:
        number = header.fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            raise InputError(f"{path}: tokenizer.ggml.{name}_token_id is {number}, but there are {len(tokens)} tokens")
        return number

    template = header.fields.get("tokenizer.chat_template")
    return make_tokenizer(
        backend,
        bos_id=token("bos"),
        eos_id=token("eos"),
        pad_id=token("padding"),
        add_bos=bool(header.fields.get("tokenizer.ggml.add_bos_token", add_bos)),
        stop_ids=[i for i in map(token, ("eot", "eom")) if i is not None],
        chat_template=template if isinstance(template, str) else None,
    )


def _vocabulary(path: Path, header: GGUFHeader) -> tuple[list[str], list[int]]:
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{path} has no tokenizer.ggml.tokens")
    types = header.fields.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.token_type is not one number for each of the {len(tokens)} tokens")
    return [str(token) for token in tokens], types.tolist()


def _bpe(path: Path, header: GGUFHeader, tokens: list[str], types: list[int], pre: str) -> tokenizers.Tokenizer:
    name = "llama-bpe" if pre in _LLAMA3_NAMES else pre
    if name not in _CUTS:
        raise InputError(f"{path}: tokenizer.ggml.pre is {pre!r}; known are {', '.join(_CUTS)}")
    merges = header.fields.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise InputError(f"{path} has no tokenizer.ggml.merges")
    pairs = [tuple(str(merge).split(" ", 1)) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=name == "llama-bpe")  # pyright: ignore[reportArgumentType]
    except Exception as error:  # the package raises bare Exception
        raise InputError(f"{path}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in _CUTS[name]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [tokenizers.AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == kind]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    return tokenizer


def _sentencepiece(path: Path, header: GGUFHeader, tokens: list[str], types: list[int]) -> ModelProto:
    """The model that the GGUF was converted from, as far as encoding depends on it: its types are SentencePiece's."""
    scores = header.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.scores is not one number for each of the {len(tokens)} tokens")
    model = new_model()
    for token, score, kind in zip(tokens, scores.tolist(), types, strict=True):
        try:
            model.pieces.add(piece=token, score=score, type=kind)
        except ValueError as error:
            raise InputError(f"{path}: tokenizer.ggml.token_type of {token!r} is {kind}: {error}") from None
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(tokens)
    trainer.byte_fallback = _BYTE in types
    unknown = header.fields.get("tokenizer.ggml.unknown_token_id", 0)
    for name, number in (("unk", unknown), ("bos", None), ("eos", None)):
        number = header.fields.get(f"tokenizer.ggml.{name}_token_id", number)
        if isinstance(number, int) and 0 <= number < len(tokens):
            setattr(trainer, f"{name}_id", number)
            setattr(trainer, f"{name}_piece", tokens[number])
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.remove_extra_whitespaces = bool(header.fields.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.add_dummy_prefix = bool(header.fields.get("tokenizer.ggml.add_space_prefix", True))
    check_model(model, str(path))
    return model
