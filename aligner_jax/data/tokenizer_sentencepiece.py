"""Rebuilds SentencePiece vocabularies in the tokenizers package.

One package serves all kinds of files, so that added tokens, spaces and decoding obey one `Settings`, as in
transformers. Tests prove that the token ids equal those of the sentencepiece package, whose encoder never runs on a
file.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from aligner_jax.data.tokenizer_hf import SPACED, HFBackend, as_llama, guarded
from aligner_jax.data.tokenizer_json import check_charsmap
from aligner_jax.data.tokenizer_settings import NO_SETTINGS, AddedToken, Settings
from aligner_jax.errors import InputError
from aligner_jax.files.content import read_bytes

type ModelProto = Any  # protobuf builds the class at import, without a declaration
new_model = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
_LONGEST_PIECE = 256
"""Length limit of a piece, in characters, since all its splits are tried. Trainers use 16; added tokens have dozens."""
_MERGES, _MERGES_A_PIECE = 10_000, 4
"""Limit of merges: a constant, and an addition per piece. Published models have 2 to 2.5 merges per piece."""
_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


class SentencePieceBackend(HFBackend):
    """A SentencePiece model. Control pieces in a text are parsed, as Hugging Face's tokenizers do.

    Attributes:
      own_ids: ids of "bos", "eos" and "pad" in the model's own settings; None if it lacks the token.
    """

    def __init__(self, model: ModelProto, settings: Settings = NO_SETTINGS, where: str = "the model") -> None:
        check_model(model, where)
        with guarded(f"{where}: its vocabulary cannot be used"):
            if settings.is_llama:
                built = tokenizers.Tokenizer(_bpe(model))
                as_llama(built, settings)
            else:
                built = _as_model_says(model, settings.legacy is not False)
        super().__init__(built, with_model_tokens(settings, model), where)
        spaced = settings.scheme != "never" if settings.is_llama else model.normalizer_spec.add_dummy_prefix
        self._leading = " " if spaced else ""
        self._pieces = {i: bytes([int(p.piece[3:5], 16)]) for i, p in enumerate(model.pieces) if p.type == BYTE}
        trainer = model.trainer_spec
        numbers = {"bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
        self.own_ids = {name: i if 0 <= i < len(model.pieces) else None for name, i in numbers.items()}

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without the space that encoding puts before a text.

        Only bytes that are not UTF-8 become replacement characters, as in the sentencepiece package. The tokenizers
        package also replaces valid bytes beside them, which would alter text that a stream has already printed.
        """
        text = b"".join(map(self._bytes_of, ids)).decode(errors="replace")
        return text.removeprefix(self._leading)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id not in self._pieces:
            self._pieces[token_id] = self.token(token_id).replace("▁", " ").encode()
        return self._pieces[token_id]


def with_model_tokens(settings: Settings, model: ModelProto) -> Settings:
    """Returns the settings with the model's own tokens added that they do not describe, as transformers 5 does."""
    kinds = () if settings.lists_special else (CONTROL, USER_DEFINED) if settings.is_llama else (CONTROL,)
    described = {token.content for token in settings.added_tokens}
    tokens = list(settings.added_tokens)
    if model.normalizer_spec.add_dummy_prefix and not settings.is_llama:
        # Added tokens are matched in the raw text; otherwise the parts between them would not get the prefix space.
        tokens = [dataclasses.replace(token, normalized=False) if token.id is not None else token for token in tokens]
    trainer = model.trainer_spec
    unnamed = {i for name, i in (("bos", trainer.bos_id), ("eos", trainer.eos_id)) if name not in settings.names}
    for i, piece in enumerate(model.pieces):
        own = piece.type in (UNKNOWN, *kinds) or (piece.type == CONTROL and i in unnamed)
        if own and piece.piece not in described:
            tokens.append(AddedToken(piece.piece, special=piece.type != USER_DEFINED, normalized=False))
    return dataclasses.replace(settings, added_tokens=tuple(tokens))


def read_model(path: Path) -> ModelProto:
    """Returns the model in a SentencePiece file.

    Raises:
      InputError: the file is not a SentencePiece model, or is truncated (trainer and normalizer settings follow the
        pieces). LLaMA 3's tiktoken vocabulary, which has the same name in Meta's folders, gets a message of its own.
    """
    content = read_bytes(path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        raise InputError(
            f"{path} is a tiktoken vocabulary, which is not read: put tokenizer.json and tokenizer_config.json of the "
            "same model's Hugging Face folder beside it"
        )
    try:
        model = new_model.FromString(content)
    except Exception:  # protobuf's DecodeError; the class depends on its implementation
        raise InputError(f"{path} is not a SentencePiece model, or is cut off") from None
    if not model.pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise InputError(f"{path} is not a whole SentencePiece model: it has no pieces, or no settings after them")
    return model


def check_model(model: ModelProto, where: str) -> None:
    """Refuses a model that parses but cannot be used.

    Raises:
      InputError: a piece is not text, is empty, too long or a duplicate; a score is not finite; there is not exactly
        one unknown piece; a byte is missing; or the model is neither BPE nor Unigram.
    """
    seen: dict[str, int] = {}
    for i, piece in enumerate(model.pieces):
        text = piece.piece
        # protobuf returns bytes if they are not UTF-8.
        if not isinstance(text, str):
            raise InputError(f"{where}: its vocabulary cannot be used: piece {i} is not UTF-8 text")
        if not text or len(text) > _LONGEST_PIECE:
            problem = f"has {len(text):,} characters, of at most {_LONGEST_PIECE:,}" if text else "is empty"
            raise InputError(f"{where}: its vocabulary cannot be used: piece {i} {problem}")
        if text in seen:
            raise InputError(f"{where}: its vocabulary cannot be used: {text!r} of piece {i} is already defined")
        if not math.isfinite(piece.score):
            raise InputError(f"{where}: its vocabulary cannot be used: the score of {text!r} is {piece.score}")
        if piece.type == BYTE and not _BYTE_NAME.fullmatch(text):
            raise InputError(f"{where}: its vocabulary cannot be used: {text!r} is no byte, as piece {i} should be")
        seen[text] = i
    kinds = [piece.type for piece in model.pieces]
    if kinds.count(UNKNOWN) != 1:
        number = kinds.count(UNKNOWN) or "not"
        raise InputError(
            f"{where}: its vocabulary cannot be used: unk is {number} defined{' times' * (number != 'not')}"
        )
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        check_charsmap(charsmap, where)
    trainer = model.trainer_spec
    if trainer.byte_fallback:
        bytes_held = {piece.piece for piece in model.pieces if piece.type == BYTE}
        if missing := [name for name in map("<0x{:02X}>".format, range(256)) if name not in bytes_held]:
            raise InputError(f"{where}: its vocabulary cannot be used: it lacks the byte {missing[0]}")
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise InputError(f"{where}: its vocabulary is of words or characters; BPE and Unigram are read")


def _bpe(model: ModelProto, *, whole: bool = False) -> models.BPE:
    """Returns a BPE with SentencePiece's merges: all pairs of pieces whose concatenation is a piece, best score first.

    Raises:
      ValueError: there are many more merges than in published models.
    """
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ranked = []
    for token in sorted(scores, key=lambda token: (-scores[token], vocabulary[token])):
        for at in range(1, len(token)):
            left = token[:at]
            if left in scores and (right := token[at:]) in scores:
                ranked.append((left, right))
        if len(ranked) > _MERGES + _MERGES_A_PIECE * len(vocabulary):
            raise ValueError(f"its pieces can be joined of others in more than {_MERGES_A_PIECE} ways each")
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    return models.BPE(
        vocab=vocabulary, merges=ranked, unk_token=unknown, fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback, ignore_merges=whole,
    )  # fmt: skip


def _as_model_says(model: ModelProto, legacy: bool) -> tokenizers.Tokenizer:
    """Returns a tokenizer that encodes as the sentencepiece package does, by the model's own settings."""
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    defined = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    if trainer.model_type == _BPE:
        built = tokenizers.Tokenizer(_bpe(model, whole=bool(defined)))
    else:
        vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
        unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
        built = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown, trainer.byte_fallback))
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalizer.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if normalizer.add_dummy_prefix and legacy:
        # Metaspace adds no space to a text that begins with one; SentencePiece does.
        steps.append(normalizers.Replace(Regex(SPACED), "▁▁"))
    built.normalizer = normalizers.Sequence(steps)
    cuts: list[Any] = []
    if normalizer.add_dummy_prefix:
        cuts.append(pre_tokenizers.Metaspace("▁", prepend_scheme="always" if legacy else "first", split=False))
    if defined:
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, sorted(defined, key=len)[::-1]))), "isolated"))
    if cuts:
        built.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    strip = [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return built
