"""Wraps vocabularies in Hugging Face's tokenizers package, from any kind of file."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers

from aligner_jax.data.tokenizer_json import check_numbers, check_tokenizer
from aligner_jax.data.tokenizer_settings import NO_SETTINGS, Settings, add_missing_tokens, check_added_tokens
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, read_text
from aligner_jax.files.json_text import parse_object

MAX_BYTES = 128 * MEBIBYTE
"""Size limit of tokenizer.json. Llama 3's has 9 MB, the largest published one about 35."""
_MAX_VALUES = 2**22
"""Limit of JSON values in tokenizer.json: twice those of the largest published files, where a merge is three values."""
SPACED = r"\A▁"
"""Pattern by which a rebuilt SentencePiece model adds a space to a text that already begins with one."""


class HFBackend:
    """A `tokenizers.Tokenizer` that obeys a `Settings`.

    Its post-processor, which adds BOS, is not run: `Tokenizer.encode` adds BOS.

    Args:
      tokenizer: the vocabulary; modified in place.
      settings: added and named tokens.
      where: file with which errors begin.

    Attributes:
      vocab_size: the largest token id plus one.
      special_ids: ids of the special tokens.

    Raises:
      InputError: settings and vocabulary contradict each other, or the vocabulary cannot be used.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, settings: Settings = NO_SETTINGS, where: str = "the tokenizer"
    ) -> None:
        self._where = where
        with guarded(f"{where} cannot be used"):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = settings.splits_special
            self._starting = tokenizer
            # The package assigns ids to added tokens itself; `_outer` maps its ids to those of the files.
            self._outer, special = add_missing_tokens(tokenizer, settings, where)
            self._inner = {outer: inner for inner, outer in self._outer.items()}
            added = tokenizer.get_added_tokens_decoder()
            check_added_tokens((token.content for token in added.values()), where)
            self._continuing, spaced = _without_prefix_space(tokenizer)
            self.special_ids = frozenset(self._outer.get(i, i) for i in special)
            before_space = (i for i, token in added.items() if spaced == "always" or not token.normalized)
            self._spaced_after = frozenset(self._outer.get(i, i) for i in before_space) if spaced else frozenset()
            numbers = tokenizer.get_vocab(with_added_tokens=True).values()
            self.vocab_size = max((self._outer.get(i, i) for i in numbers), default=-1) + 1

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token, None if the vocabulary lacks it."""
        inner = self._starting.token_to_id(token)
        return None if inner is None else self._outer.get(inner, inner)

    def token(self, token_id: int) -> str:
        """Returns the token of an id, "" if the vocabulary has none."""
        return self._starting.id_to_token(self._inner.get(token_id, token_id)) or ""

    def encode(self, text: str, after: int | None) -> list[int]:
        """Returns the token ids of a text that follows the token `after`; see `Tokenizer.encode`."""
        tokenizer = self._starting if after is None or after in self._spaced_after else self._continuing
        with guarded(f"{self._where} cannot encode the text"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [self._outer.get(i, i) for i in ids] if self._outer else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without special tokens."""
        inner = [self._inner.get(i, i) for i in ids] if self._inner else list(ids)
        with guarded(f"{self._where} cannot decode the tokens"):
            return self._starting.decode(inner, skip_special_tokens=True)

    def to_json(self) -> str | None:
        """Returns the content of an equivalent tokenizer.json; None if the files give a token an id that it cannot."""
        return None if self._outer else self._starting.to_str()

    def first_id(self) -> int | None:
        """Returns the id of the token that the post-processor puts before a text, None if it puts none."""
        with guarded(f"{self._where} cannot encode a text"):
            plain, processed = (self._starting.encode("a", add_special_tokens=flag).ids for flag in (False, True))
        return self._outer.get(processed[0], processed[0]) if processed[:1] != plain[:1] else None


def read_tokenizer_json(path: Path, settings: Settings = NO_SETTINGS) -> HFBackend:
    """Returns the vocabulary of a tokenizer.json.

    If the settings ask for LlamaTokenizer, `legacy` and `add_prefix_space` replace the file's own normalizer and
    pre-tokenizer, as in transformers 5. A byte-level vocabulary keeps its own.

    Raises:
      InputError: the file cannot be read, is not JSON, is not a tokenizer, or exceeds the limits of `check_tokenizer`.
    """
    text = read_text(path, most=MAX_BYTES)
    value = parse_object(text, path, most_values=_MAX_VALUES)
    check_tokenizer(value, path)
    with guarded(f"{path} is not a tokenizer of the tokenizers package"):
        tokenizer = tokenizers.Tokenizer.from_str(text)
        if settings.is_llama and isinstance(tokenizer.model, tokenizers.models.BPE) and not _is_byte_level(tokenizer):
            as_llama(tokenizer, settings)
        cut, spaced = tokenizer.pre_tokenizer, settings.prefix_space
        # After other pre-tokenizers the setting would put a space before every piece of a text.
        if settings.is_gpt2 and spaced is not None and isinstance(cut, pre_tokenizers.ByteLevel):
            cut.add_prefix_space = spaced
    check_numbers(tokenizer, value, path)
    return HFBackend(tokenizer, settings, str(path))


def as_llama(tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
    """Makes a BPE tokenizer encode and decode as transformers 5's LlamaTokenizer does."""
    # The package's stubs lack None as a value, which all these attributes accept.
    tokenizer.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=settings.scheme, split=False)
    tokenizer.model.fuse_unk = True
    tokenizer.model.byte_fallback = True
    strip = [] if settings.scheme == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns any exception of the package into an InputError that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A Rust panic raises PanicException, which is not an Exception. The package also raises bare Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(f"{what}: {error}") from None
        raise


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    parts = (tokenizer.pre_tokenizer, tokenizer.decoder)
    return any('"ByteLevel"' in part.__getstate__().decode() for part in parts if part)


def _without_prefix_space(tokenizer: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, str]:
    """Returns the tokenizer for a text that continues another, and the added tokens that a space is put after anyway.

    These are "always" (every one), "raw" (those that are matched before normalization) or "" (none).
    """
    # Only these parts are serialized, since the vocabulary makes up most of the JSON.
    settings = [json.loads(part.__getstate__()) for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part]
    steps = [step for setting in settings for step in _steps(setting)]
    adding = [step for step in steps if _adds_space(step)]
    if not adding:
        return tokenizer, ""
    everywhere = [
        step for step in adding if step["type"] != "Replace" and step.get("prepend_scheme", "always") == "always"
    ]
    spaced = "always" if any(step["type"] != "Prepend" for step in everywhere) else "raw" if everywhere else ""
    parts = [
        json.loads(part.__getstate__()) if part else None for part in (tokenizer.normalizer, tokenizer.pre_tokenizer)
    ]
    return _with_parts(tokenizer, *map(_cleared, parts)), spaced


def _with_parts(
    tokenizer: tokenizers.Tokenizer, normalizer: dict | None, pre_tokenizer: dict | None
) -> tokenizers.Tokenizer:
    """Returns a tokenizer with another normalizer and pre-tokenizer; both share the model, which may be large."""
    small = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}}
    small |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    other = tokenizers.Tokenizer.from_str(json.dumps(small))
    other.model = tokenizer.model
    other.encode_special_tokens = tokenizer.encode_special_tokens
    other.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    return other


def _steps(setting: dict) -> list[dict]:
    """Returns the steps of a normalizer or pre-tokenizer, with nested sequences flattened."""
    inner = setting.get("normalizers") or setting.get("pretokenizers")
    return [step for part in inner for step in _steps(part)] if inner else [setting]


def _adds_space(step: dict) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
    return _is_prepending(step) or (step["type"] == "ByteLevel" and step.get("add_prefix_space", True))


def _is_prepending(step: dict) -> bool:
    return step["type"] == "Prepend" or (step["type"] == "Replace" and step.get("pattern") == {"Regex": SPACED})


def _cleared(setting: dict | None) -> dict | None:
    """Returns the setting without steps that put a space before a text, None if no step is left."""
    if setting is None or _is_prepending(setting):
        return None
    if setting["type"] == "Sequence":
        key = "normalizers" if "normalizers" in setting else "pretokenizers"
        return {**setting, key: [part for part in map(_cleared, setting[key]) if part]}
    if setting["type"] == "Metaspace":
        return {**setting, "prepend_scheme": "never"}
    return {**setting, "add_prefix_space": False} if setting["type"] == "ByteLevel" else setting
