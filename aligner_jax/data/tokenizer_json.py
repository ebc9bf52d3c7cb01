"""Checks of a tokenizer.json that keep the package from making much of a text, or other tokens each time."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers

from aligner_jax.data.tokenizer_settings import check_marks
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields

MOST_STEPS = 100
MOST_GROWTH = 1000
"""So many times longer may normalizers make a text together."""
MOST_PATTERN = 4000
"""Characters of a regular expression; those of published tokenizers have some hundred."""
MOST_WORD = 1000
"""Characters of a word that WordPiece cuts: it takes their number squared. Published tokenizers have 100."""
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")


def check_tokenizer(value: dict[str, object], path: Path) -> None:
    """Refuses a tokenizer whose steps are unbounded or draw lots.

    Raises:
      InputError: a part is of another type than the format gives it, there are too many steps, they could multiply a
        text, or the model drops merges at random.
    """
    for name in ("model", "normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if not isinstance(value.get(name), dict | None):
            raise InputError(f"{path} is not a tokenizer: its field {name} is not an object")
    model = value.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{path} is not a tokenizer of the tokenizers package: it has no model")
    if model.get("dropout"):
        raise InputError(f"{path}: model.dropout drops merges at random, so that a text has other tokens each time")
    if model.get("type") == "WordPiece" or "max_input_chars_per_word" in model:
        Fields(model, path, "model.").integer("max_input_chars_per_word", 100, least=0, most=MOST_WORD)
    added = value.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    check_marks([text for entry in entries if isinstance(text := entry.get("content"), str)], str(path), empty=True)
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        growth = 1.0
        for count, step in enumerate(_steps(value.get(name)), start=1):
            if count > MOST_STEPS:
                raise InputError(f"{path}: its {name} has more than {MOST_STEPS} steps")
            growth *= _growth(step, f"{path}: a step of its {name}")
            if step.get("type") == "Precompiled":
                check_charsmap(_from_base64(step.get("precompiled_charsmap"), path), str(path))
            if growth > MOST_GROWTH:
                raise InputError(f"{path}: its {name} could make a text more than {MOST_GROWTH:,} times as long")


def check_charsmap(content: bytes, what: str) -> None:
    """Refuses a table of normalizations with sizes or places that are not in it: the package ends in a panic there.

    Its first four bytes are the size of a trie of 32-bit units, which its texts follow; each unit leads to 256 others,
    and some of those to a text. Source: github.com/s-yata/darts-clone, include/darts.h; the package spm_precompiled.

    Raises:
      InputError: begins with `what`.
    """
    size = int.from_bytes(content[:4], "little")
    if len(content) < 8 or not 4 <= size <= len(content) - 4 or size % 4:
        raise InputError(
            f"{what}: its precompiled_charsmap is damaged: it has {len(content):,} bytes and a trie of {size:,}"
        )
    units, texts = np.frombuffer(content, "<u4", size // 4, 4).astype(np.int64), content[4 + size :]
    nodes = np.flatnonzero(units < 2**31)
    leads = nodes ^ (units[nodes] >> 10 << ((units[nodes] >> 6) & 8))
    ends = leads[units[nodes] & 256 != 0]
    if (leads | 255).max(initial=0) < len(units):
        starts = units[ends] & (2**31 - 1)
        first = np.frombuffer(texts, np.uint8)
        if starts.max(initial=0) < len(texts) and not np.any(first[starts] & 0xC0 == 0x80) and _is_text(texts):
            return
    raise InputError(f"{what}: its precompiled_charsmap is damaged: it leads to places that it does not have")


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_numbers(tokenizer: tokenizers.Tokenizer, value: dict[str, object], path: Path) -> None:
    """Refuses a file whose added tokens have other numbers than the package gives them, without a word of it.

    Raises:
      InputError: names the token; or `added_tokens` is not a list of objects with content and id.
    """
    entries = value.get("added_tokens") or []
    if not isinstance(entries, list):
        raise InputError(f"{path}: added_tokens is not a list")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: added_tokens[{i}] is not an object")
        fields = Fields(entry, path, f"added_tokens[{i}].")
        content, number = fields.text("content"), fields.integer("id", least=0)
        held = tokenizer.token_to_id(content)
        if content and held != number:
            raise InputError(
                f"{path}: its added token {content!r} has the number {number}, but would be given {held}, as its "
                "vocabulary already has that token or its numbers leave some out"
            )


def _steps(part: object) -> Iterator[dict]:
    if not isinstance(part, dict):
        return
    lists = [part[name] for name in _LISTS if isinstance(part.get(name), list)]
    # A sequence too: one without steps may be there a million times.
    yield part
    for inner in lists:
        for each in inner:
            yield from _steps(each)


def _from_base64(text: object, path: Path) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except ValueError:
        raise InputError(f"{path}: its precompiled_charsmap is not base64") from None


def _growth(step: dict, what: str) -> float:
    """Returns a bound of a step's output by its input, in characters."""
    pattern = step.get("pattern")
    searched = next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern
    if isinstance(searched, str) and len(searched) > MOST_PATTERN:
        raise InputError(f"{what} has a pattern of {len(searched):,} characters; at most {MOST_PATTERN:,} are read")
    if pattern is not None and searched == "":
        raise InputError(f"{what} has an empty pattern")
    if step.get("type") == "Prepend" and len(str(step.get("prepend", ""))) > MOST_GROWTH:
        raise InputError(f"{what} puts more than {MOST_GROWTH:,} characters before a text")
    fields, content = Fields(step, what), step.get("content")
    if step.get("type") == "FixedLength":
        fields.integer("length")
    for name in ("start", "stop"):
        if step.get("type") == "Strip" and fields.has(name):
            fields.integer(name, least=0, most=MOST_GROWTH)
    for name in ("single", "pair"):
        if isinstance(items := step.get(name), list) and len(items) > MOST_STEPS:
            raise InputError(f"{what} puts more than {MOST_STEPS} pieces together")
    if step.get("type") == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if step.get("type") == "ByteLevel":
        # A character of another alphabet for each byte, and those have two.
        return 2.0
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        return max(1.0, len(content) / len(pattern["String"]))
    # An expression may match the empty text between any two characters.
    return 1.0 + len(content)
