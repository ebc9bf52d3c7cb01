"""Interface of the models that a chat talks to."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

from aligner_jax.chatting.mix import Mix
from aligner_jax.data.sources.example import Message


class Piece(NamedTuple):
    """A piece of an answer.

    Attributes:
      answer: index of the answer.
      text: text that follows the earlier pieces of the same answer.
    """

    answer: int
    text: str


class Question(NamedTuple):
    """A question and the conversation before it.

    Attributes:
      messages: turns of user and assistant; the last is the question.
      system: system prompt that the user has given; None for the one that an adapter records.
    """

    messages: Sequence[Message]
    system: str | None = None


class ChatModel(Protocol):
    """A base with adapters."""

    def names(self) -> list[str]:
        """Returns the names of the known adapters."""
        ...

    def find(self, text: str) -> str:
        """Returns the name of an adapter, which is read if `text` is its file. Raises InputError if there is none."""
        ...

    def check(self, question: Question, mix: Mix) -> None:
        """Refuses a question that cannot be asked. Raises InputError."""
        ...

    def answers(
        self, question: Question, mixes: Sequence[Mix], say: Callable[[str], None]
    ) -> Generator[Piece, None, None]:
        """Yields the answers of several sums of adapters, in pieces.

        All get the same prompt, in the format of the last sum. Closing the generator ends the answers.

        Args:
          question: the question.
          mixes: sums of adapters, which answer side by side.
          say: called with a sentence about something that the user should know.

        Raises:
          InputError: the question cannot be asked or answered.
          KeyboardInterrupt: the user has stopped the answers.
        """
        ...
