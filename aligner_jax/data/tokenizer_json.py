"""Refuses a tokenizer.json that could blow up a text or encode it at random."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers

from aligner_jax.data.tokenizer_settings import check_added_tokens
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields

MAX_STEPS = 100
MAX_GROWTH = 1000
"""Limit of the factor by which the steps of a part together may lengthen a text."""
MAX_PATTERN = 4000
"""Length limit of a regular expression, in characters. Those of published tokenizers have some hundred."""
MAX_WORD = 1000
"""Length limit of a word for WordPiece, whose time is quadratic in it. Published tokenizers have 100 characters."""
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")


def check_tokenizer(value: dict[str, object], path: Path) -> None:
    """Refuses a tokenizer whose steps are unbounded or random.

    Raises:
      InputError: a part has the wrong type, there are too many steps, they could lengthen a text too much, or the model
        drops merges at random.
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
        Fields(model, path, "model.").integer("max_input_chars_per_word", 100, least=0, most=MAX_WORD)
    added = value.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    check_added_tokens(
        [text for entry in entries if isinstance(text := entry.get("content"), str)], str(path), empty=True
    )
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        growth = 1.0
        for count, step in enumerate(_steps(value.get(name)), start=1):
            if count > MAX_STEPS:
                raise InputError(f"{path}: its {name} has more than {MAX_STEPS} steps")
            growth *= _growth(step, f"{path}: a step of its {name}")
            if step.get("type") == "Precompiled":
                check_charsmap(_from_base64(step.get("precompiled_charsmap"), path), str(path))
            if growth > MAX_GROWTH:
                raise InputError(f"{path}: its {name} could make a text more than {MAX_GROWTH:,} times as long")


def check_charsmap(content: bytes, what: str) -> None:
    """Refuses a precompiled table of normalizations with sizes or offsets out of range, on which the package panics.

    The first four bytes are the size of a trie of 32-bit units; texts follow the trie. A unit leads to 256 others, and
    some of those to a text. Source: github.com/s-yata/darts-clone, include/darts.h; the package spm_precompiled.

    Raises:
      InputError: the table is damaged; the message begins with `what`.
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
    """Refuses a file with added tokens to which the package silently gives other ids than the file.

    Raises:
      InputError: an id differs, and the message names the token; or `added_tokens` is not a list of objects with
        content and id.
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
    # A sequence counts as a step, since a file may hold a million empty ones.
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
    """Returns a bound of the ratio of a step's output length to its input length, in characters."""
    pattern = step.get("pattern")
    searched = next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern
    if isinstance(searched, str) and len(searched) > MAX_PATTERN:
        raise InputError(f"{what} has a pattern of {len(searched):,} characters; at most {MAX_PATTERN:,} are read")
    if pattern is not None and searched == "":
        raise InputError(f"{what} has an empty pattern")
    if step.get("type") == "Prepend" and len(str(step.get("prepend", ""))) > MAX_GROWTH:
        raise InputError(f"{what} puts more than {MAX_GROWTH:,} characters before a text")
    fields, content = Fields(step, what), step.get("content")
    if step.get("type") == "FixedLength":
        fields.integer("length")
    for name in ("start", "stop"):
        if step.get("type") == "Strip" and fields.has(name):
            fields.integer(name, least=0, most=MAX_GROWTH)
    for name in ("single", "pair"):
        if isinstance(items := step.get(name), list) and len(items) > MAX_STEPS:
            raise InputError(f"{what} puts more than {MAX_STEPS} pieces together")
    if step.get("type") == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if step.get("type") == "ByteLevel":
        # Every byte becomes a character of up to two bytes.
        return 2.0
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        return max(1.0, len(content) / len(pattern["String"]))
    # A regular expression may match the empty text between any two characters.
    return 1.0 + len(content)
