"""Decodes an answer while its tokens are generated, and ends it at stop texts."""

import dataclasses
import itertools
from collections.abc import Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.sampler import continuation
from aligner_jax.decoding.stop_text import first_stop


class ContinuedAnswer:
    """Text of an answer that is decoded together with its prompt, which preserves the answer's leading white space."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], until: Sequence[str]) -> None:
        self._tokenizer, self._prompt_ids, self._until = tokenizer, prompt_ids, until
        self._ids: list[int] = []

    def add(self, token: int) -> None:
        """Appends the next token."""
        self._ids.append(token)

    def is_over(self) -> bool:
        """Returns True if the text contains a stop text. Decodes all tokens."""
        return bool(self._until) and first_stop(self._whole(), self._until) is not None

    def text(self) -> str:
        """Returns the text before the first stop text."""
        text = self._whole()
        return text[: first_stop(text, self._until)]

    def _whole(self) -> str:
        return continuation(self._tokenizer, self._prompt_ids, self._ids)


class AloneAnswer:
    """Text of an answer that is decoded as lm-evaluation-harness's `hf` backend does it.

    - The tokens are decoded without the prompt, so with a SentencePiece vocabulary the first word has no leading space.
    - A stop text is searched for in the last n + 2 tokens, where n is its number of tokens (`MultiTokenEOSCriteria`).
      Special tokens count as their names, so the name of a special token can end an answer. The stop text "" ends an
      answer after one token.
    - The text is then cut at every stop text in turn (`postprocess_generated_text`).
    """

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str]) -> None:
        self._tokenizer, self._until = tokenizer, until
        # Only the number of a stop text's tokens is used, so the base need not have embeddings of them.
        counter = dataclasses.replace(tokenizer, num_embeddings=None)
        self._windows = [(end, len(counter.encode(end)) + 2) for end in until]
        self._ids: list[int] = []
        self._is_over = False

    def add(self, token: int) -> None:
        """Appends the next token, unless a stop text came before it."""
        if not self._is_over:
            self._ids.append(token)
            self._is_over = any(end in self._with_special(self._ids[-count:]) for end, count in self._windows)

    def is_over(self) -> bool:
        """Returns True if a stop text has ended the answer."""
        return self._is_over

    def text(self) -> str:
        """Returns the text without special tokens, cut at every stop text."""
        text = self._tokenizer.decode(self._ids)
        for end in filter(None, self._until):
            text = text.split(end)[0]
        return text

    def _with_special(self, ids: Sequence[int]) -> str:
        special, token = self._tokenizer.backend.special_ids, self._tokenizer.backend.token
        runs = itertools.groupby(ids, key=special.__contains__)
        return "".join("".join(map(token, run)) if named else self._tokenizer.decode(run) for named, run in runs)
