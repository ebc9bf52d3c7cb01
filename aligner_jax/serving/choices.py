"""Choices of an answer: their text, log-probabilities and end, piece by piece."""

from collections.abc import Sequence
from typing import NamedTuple

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.request import End, NewToken
from aligner_jax.decoding.stop_text import StreamedText


class TokenLogprob(NamedTuple):
    """Log-probability of a token in nats.

    Attributes:
      text: text of the token.
      logprob: its log-probability.
      alternatives: the most probable tokens' texts and log-probabilities.
      offset: index of its first character in the choice's text.
    """

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]
    offset: int


class Piece(NamedTuple):
    """A part of a choice. `end` is None if another piece follows."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    end: End | None


class Choice:
    """A choice that is being made.

    Attributes:
      num_tokens: tokens so far, with the one that ended it.
      has_logprobs: True if log-probabilities are asked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str], alternatives: int | None
    ) -> None:
        self._tokenizer, self._alternatives = tokenizer, alternatives
        self._text = StreamedText(tokenizer, prompt_ids, stops)
        self._waiting: list[TokenLogprob] = []
        self.num_tokens = 0

    @property
    def has_logprobs(self) -> bool:
        return self._alternatives is not None

    def add(self, new: NewToken) -> Piece:
        """Returns the piece that a token adds, which may be empty."""
        self.num_tokens += 1
        text, end = "", new.end
        if new.end != "stop":
            offset = self._text.length
            text = self._text.add(new.token)
            if self._alternatives is not None and new.logprob is not None:
                top = tuple((self._shown(id), logprob) for id, logprob in new.alternatives[: self._alternatives])
                self._waiting.append(TokenLogprob(self._shown(new.token), new.logprob, top, offset))
        if not self._text.is_over and end is not None:
            text += self._text.end()
        if self._text.is_over:
            end = "stop"
        return Piece(text, self._certain(end), end)

    def _certain(self, end: End | None) -> tuple[TokenLogprob, ...]:
        """Returns log-probabilities of tokens whose text has been given out: those of a stop text never are."""
        length = len(self._text.given)
        # Tokens without text of their own, such as the first bytes of a character, may be the last ones.
        shown = [x for x in self._waiting if x.offset < length or (end is not None and not self._text.is_over)]
        self._waiting = self._waiting[len(shown) :]
        return tuple(shown)

    def _shown(self, token: int) -> str:
        return self._tokenizer.decode([token]) or self._tokenizer.backend.token(token)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Returns one piece with the content of consecutive ones."""
    logprobs = tuple(logprob for piece in pieces for logprob in piece.logprobs)
    return Piece("".join(piece.text for piece in pieces), logprobs, pieces[-1].end)
