"""SentencePiece vocabularies, through the sentencepiece package."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from aligner_jax.errors import InputError

type ModelProto = Any  # its class is built when protobuf is imported, without a declaration
new_model = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
_UNKNOWN, _CONTROL = 2, 3


def read_model(path: Path) -> ModelProto:
    """The model in a SentencePiece file.

    Raises:
      InputError: not a SentencePiece model, or cut off (its trainer and normalizer settings come after its pieces).
        LLaMA 3's tiktoken vocabulary, which Meta's folders have under the same name, is told from those.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
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
    check_model(model, str(path))
    return model


def check_model(model: ModelProto, where: str) -> None:
    """Refuses a vocabulary that can be parsed and not used. Raises InputError, which begins with `where`."""
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise InputError(f"{where}: its vocabulary cannot be used: {str(error).strip()}") from None


class SentencePieceBackend:
    """Encodes as Hugging Face's LLaMA tokenizer does: control pieces in the text are parsed, and after one as at the
    start of a text the dummy prefix is added. `added` are tokens beyond the model's, by name; `added_special` those of
    them that decoding leaves out.
    """

    def __init__(self, model: ModelProto, added: Mapping[str, int] | None = None, added_special: Sequence[str] = ()):
        self._starting = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self._collapses = model.normalizer_spec.remove_extra_whitespaces
        continuing = new_model()
        continuing.CopyFrom(model)
        continuing.normalizer_spec.add_dummy_prefix = False
        self._continuing = sentencepiece.SentencePieceProcessor(model_proto=continuing.SerializeToString())

        self._size = len(model.pieces)
        # A token that the model has already keeps the model's id, and is parsed in texts all the same.
        self._added = {i: token for token, i in (added or {}).items() if i >= self._size}
        control = {p.piece: i for i, p in enumerate(model.pieces) if p.type in (_UNKNOWN, _CONTROL)}
        self._ids = {p.piece: i for i, p in enumerate(model.pieces)} | {t: i for i, t in self._added.items()}
        self._parsed = control | dict(added or {})
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._parsed, key=len, reverse=True))) + ")")
        self.special_ids = frozenset(control.values()) | {self._ids[t] for t in added_special if t in self._ids}
        self.vocab_size = max([self._size - 1, *self._added]) + 1

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def token(self, token_id: int) -> str:
        return self._added.get(token_id) or self._starting.IdToPiece(token_id)

    def encode(self, text: str, after: int | None) -> list[int]:
        ids: list[int] = []
        for part in filter(None, self._split.split(text) if self._parsed else [text]):
            if part in self._parsed:
                ids.append(self._parsed[part])
                continue
            before = ids[-1] if ids else after
            # Where spaces collapse, the model drops a leading one; the dummy prefix stands for it.
            starts = before is None or before in self.special_ids or (self._collapses and part.startswith(" "))
            ids += (self._starting if starts else self._continuing).EncodeAsIds(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        if not self._added:
            return self._starting.DecodeIds(list(ids))
        texts = []
        for added, run in itertools.groupby(ids, key=lambda i: i >= self._size):
            if added:
                texts += [self._added.get(i, "") for i in run]
            else:
                processor = self._continuing if texts else self._starting
                texts.append(processor.DecodeIds(list(run)))
        return "".join(texts)

    @property
    def bos_id(self) -> int | None:
        return self._or_none(self._starting.bos_id())

    @property
    def eos_id(self) -> int | None:
        return self._or_none(self._starting.eos_id())

    @property
    def pad_id(self) -> int | None:
        return self._or_none(self._starting.pad_id())

    @staticmethod
    def _or_none(token_id: int) -> int | None:
        return None if token_id < 0 else token_id
