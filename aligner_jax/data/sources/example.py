"""Examples, as all sources yield them: instructions, conversations, preferences and plain texts."""

import dataclasses
from typing import Literal, NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation.

    Attributes:
      learned: False in an assistant turn that is not a target; absent in all other turns.
    """

    role: str
    content: str
    learned: NotRequired[bool]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction, its input (may be ""), and the target answer."""

    instruction: str
    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns in order; at least one is the assistant's."""

    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
    """A prompt with a preferred and a rejected answer.

    Attributes:
      prompt: turns before the answer; the last is the user's.
      chosen: preferred answer.
      rejected: other answer.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def conversation(self, answer: Literal["chosen", "rejected"]) -> Conversation:
        """Returns the prompt followed by one of the two answers."""
        return Conversation((*self.prompt, {"role": "assistant", "content": getattr(self, answer)}))


@dataclasses.dataclass(frozen=True)
class Text:
    """A text without a prompt, all of which is learned. No template is applied to it."""

    text: str


type Record = Instruction | Conversation | Preference | Text


@dataclasses.dataclass(frozen=True)
class Example:
    """A record and its "file:line". The answer of a preference is the chosen one, and that of a text the text."""

    record: Record
    where: str

    @property
    def question(self) -> str:
        """Text of the last user turn; of an instruction, the instruction and its input."""
        if isinstance(self.record, Instruction):
            return "\n\n".join(filter(None, (self.record.instruction, self.record.input)))
        return next((m["content"] for m in self.messages_before_answer()[::-1] if m["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """Text of the last assistant turn; of an instruction, the output."""
        if isinstance(self.record, Instruction):
            return self.record.output
        return self.messages()[len(self.messages_before_answer())]["content"]

    def messages(self) -> list[Message]:
        """Returns the record as a conversation.

        An instruction becomes a user turn (its input after a blank line) and an assistant turn; a text becomes an
        assistant turn.
        """
        if isinstance(self.record, Text):
            return [{"role": "assistant", "content": self.record.text}]
        if isinstance(self.record, Conversation):
            return list(self.record.messages)
        if isinstance(self.record, Preference):
            return list(self.record.conversation("chosen").messages)
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.record.output}]

    def messages_before_answer(self) -> list[Message]:
        """Returns the conversation before the last assistant turn."""
        messages = self.messages()
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return messages[:last]
