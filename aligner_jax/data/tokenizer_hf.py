"""Vocabularies of Hugging Face's tokenizers package: tokenizer.json, or built from a GGUF's BPE."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from aligner_jax.errors import InputError


class HFBackend:
    """A `tokenizers.Tokenizer`. Its post-processor (which adds BOS) is not run: callers ask for BOS by name."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._starting = tokenizer
        self._continuing, self._prefix_after_special = _without_prefix_space(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def token_id(self, token: str) -> int | None:
        return self._starting.token_to_id(token)

    def token(self, token_id: int) -> str:
        return self._starting.id_to_token(token_id) or ""

    def encode(self, text: str, after: int | None) -> list[int]:
        starts = after is None or (self._prefix_after_special and after in self.special_ids)
        return (self._starting if starts else self._continuing).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._starting.decode(list(ids), skip_special_tokens=True)

    def to_json(self) -> str:
        """What stands in a tokenizer.json that gives the same tokens."""
        return self._starting.to_str()

    def first_id(self) -> int | None:
        """The token that the post-processor puts before a text, None where it puts none."""
        plain, processed = (self._starting.encode("a", add_special_tokens=flag).ids for flag in (False, True))
        return processed[0] if processed[:1] != plain[:1] else None


def read_tokenizer_json(path: Path) -> HFBackend:
    """The vocabulary of a tokenizer.json.

    Raises:
      InputError: the file cannot be read, is not JSON, or is not a tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, is not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    try:
        return HFBackend(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the package raises bare Exception
        raise InputError(f"{path} is not a tokenizer of the tokenizers package: {error}") from None


def _without_prefix_space(tokenizer: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer for a text that continues another, and whether a prefix space comes back after a special token."""
    # The vocabulary is most of the JSON: without it, looking at the few settings costs nothing.
    settings = [json.loads(part.__getstate__()) for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part]
    steps = [step for setting in settings for step in _steps(setting)]
    if not any(_adds_space(step) for step in steps):
        return tokenizer, False
    whole = json.loads(tokenizer.to_str())
    for name in ("normalizer", "pre_tokenizer"):
        whole[name] = _cleared(whole[name])
    everywhere = any(_adds_space(step) and step.get("prepend_scheme", "always") == "always" for step in steps)
    return tokenizers.Tokenizer.from_str(json.dumps(whole)), everywhere


def _steps(setting: dict) -> list[dict]:
    """A normalizer's or pre-tokenizer's steps, nested sequences flattened."""
    inner = setting.get("normalizers") or setting.get("pretokenizers")
    return [step for part in inner for step in _steps(part)] if inner else [setting]


def _adds_space(step: dict) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
    return step["type"] == "Prepend" or (step["type"] == "ByteLevel" and step.get("add_prefix_space", True))


def _cleared(setting: dict | None) -> dict | None:
    """The setting with nothing in it that puts a space before a text; None: nothing is left."""
    if setting is None or setting["type"] == "Prepend":
        return None
    if setting["type"] == "Sequence":
        key = "normalizers" if "normalizers" in setting else "pretokenizers"
        return {**setting, key: [part for part in map(_cleared, setting[key]) if part]}
    if setting["type"] == "Metaspace":
        return {**setting, "prepend_scheme": "never"}
    return {**setting, "add_prefix_space": False} if setting["type"] == "ByteLevel" else setting
