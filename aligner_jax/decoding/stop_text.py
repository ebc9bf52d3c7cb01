"""Text of a continuation while its tokens arrive, which ends before the first stop text."""

from collections.abc import Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.sampler import continuation

_CONTEXT = 16
"""Last tokens of the prompt that new ones are decoded after."""


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Returns the index at which the first stop text begins; None if the text has none."""
    return min((text.index(stop) for stop in stops if stop in text), default=None)


class StreamedText:
    """Text of new tokens, given out piece by piece.

    The pieces are those of `continuation`, cut at the first stop text. Text that may be the beginning of a stop text is
    held back until it is certain that it is none, so that no part of one is given out.

    Attributes:
      given: the pieces so far, joined.
      is_over: True if a stop text has come.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._prompt_ids, self._stops = tokenizer, prompt_ids, stops
        self._decode = tokenizer.stream_decoder()
        for token in prompt_ids[-_CONTEXT:]:
            self._decode(token)
        self._ids: list[int] = []
        self._held = ""
        self.given, self.is_over = "", False

    @property
    def length(self) -> int:
        """Characters so far, with those that are held back."""
        return len(self.given) + len(self._held)

    def add(self, token: int) -> str:
        """Appends the next token; returns the next piece, which may be empty."""
        self._ids.append(token)
        return self._piece(self._held + self._decode(token))

    def end(self) -> str:
        """Returns the last piece, after the last token."""
        if self.is_over:
            return ""
        # An incomplete character at the end is in the whole text alone.
        whole = continuation(self._tokenizer, self._prompt_ids, self._ids)
        rest = whole[len(self.given) :] if whole.startswith(self.given) else self._held
        stop = first_stop(rest, self._stops)
        self.is_over, self._held = stop is not None, ""
        self.given += rest[:stop]
        return rest[:stop]

    def _piece(self, text: str) -> str:
        stop = first_stop(text, self._stops)
        if stop is not None:
            piece, self._held, self.is_over = text[:stop], "", True
        else:
            certain = len(text) - self._begun(text)
            piece, self._held = text[:certain], text[certain:]
        self.given += piece
        return piece

    def _begun(self, text: str) -> int:
        """Returns the number of last characters with which a stop text may begin."""
        most = max((len(stop) - 1 for stop in self._stops), default=0)
        for count in range(min(most, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
