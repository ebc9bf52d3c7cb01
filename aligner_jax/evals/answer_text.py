"""The text of an answer while its tokens are made, and where stop texts end it."""

import dataclasses
import itertools
from collections.abc import Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.sampler import continuation


class ContinuedAnswer:
    """Reads an answer together with its prompt, so that it begins with the white space that its tokens stand for."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], until: Sequence[str]) -> None:
        self._tokenizer, self._prompt_ids, self._until = tokenizer, prompt_ids, until
        self._ids: list[int] = []

    def add(self, token: int) -> None:
        """Takes the next token."""
        self._ids.append(token)

    def is_over(self) -> bool:
        """Returns True if a stop text has come; decodes all tokens."""
        text = self._whole() if self._until else ""
        return any(end in text for end in self._until)

    def text(self) -> str:
        """Returns the text before the first stop text."""
        text = self._whole()
        places = [text.index(end) for end in self._until if end in text]
        return text[: min(places)] if places else text

    def _whole(self) -> str:
        return continuation(self._tokenizer, self._prompt_ids, self._ids)


class AloneAnswer:
    """Reads an answer as lm-evaluation-harness's `hf` backend does.

    Its tokens are decoded without the prompt: a SentencePiece vocabulary gives the first word no space. Stop texts are
    looked for in the last tokens, of which there are two more than the stop text has, special tokens included
    (`MultiTokenEOSCriteria`), so that the name of a special token ends an answer, and "" does after one token. The
    text is then cut at each in turn (`postprocess_generated_text`).
    """

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str]) -> None:
        self._tokenizer, self._until = tokenizer, until
        # Stop texts are only counted: the base need not have embeddings of their tokens.
        counter = dataclasses.replace(tokenizer, num_embeddings=None)
        self._windows = [(end, len(counter.encode(end)) + 2) for end in until]
        self._ids: list[int] = []
        self._is_over = False

    def add(self, token: int) -> None:
        """Takes the next token, where a stop text has not come before it."""
        if not self._is_over:
            self._ids.append(token)
            self._is_over = any(end in self._with_special(self._ids[-count:]) for end, count in self._windows)

    def is_over(self) -> bool:
        """Returns True if a stop text has come."""
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
