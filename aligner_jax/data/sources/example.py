"""What every source yields."""

import dataclasses
from typing import Literal, NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation.

    Attributes:
      learned: False in a turn of the assistant that is no target; absent in all others.
    """

    role: str
    content: str
    learned: NotRequired[bool]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction, what it is about (may be ""), and the wanted answer."""

    instruction: str
    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns in order, at least one of them the assistant's."""

    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which one is preferred.

    Attributes:
      prompt: the turns before the answer, the last of them the user's.
      chosen: the preferred answer.
      rejected: the other.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def conversation(self, answer: Literal["chosen", "rejected"]) -> Conversation:
        """The prompt with one of the two answers."""
        return Conversation((*self.prompt, {"role": "assistant", "content": getattr(self, answer)}))


@dataclasses.dataclass(frozen=True)
class Example:
    """A record and the "file:line" it came from. Of a preference, the answer is the chosen one."""

    record: Instruction | Conversation | Preference
    where: str

    @property
    def question(self) -> str:
        """What was asked last, as a person would read it."""
        if isinstance(self.record, Instruction):
            return "\n\n".join(filter(None, (self.record.instruction, self.record.input)))
        return next((m["content"] for m in self.messages_before_answer()[::-1] if m["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """The wanted answer: the output, or the assistant's last turn."""
        if isinstance(self.record, Instruction):
            return self.record.output
        return self.messages()[len(self.messages_before_answer())]["content"]

    def messages(self) -> list[Message]:
        """As a conversation: an instruction is one user turn (its input after a blank line) and one assistant turn."""
        if isinstance(self.record, Conversation):
            return list(self.record.messages)
        if isinstance(self.record, Preference):
            return list(self.record.conversation("chosen").messages)
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.record.output}]

    def messages_before_answer(self) -> list[Message]:
        """The conversation up to the assistant's last turn."""
        messages = self.messages()
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return messages[:last]
