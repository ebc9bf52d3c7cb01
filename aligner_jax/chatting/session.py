"""A conversation, and the commands that a user gives in it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from aligner_jax.chatting.mix import Mix, parse_mix, parse_strength
from aligner_jax.chatting.model import ChatModel, Piece, Question
from aligner_jax.chatting.screen import Screen
from aligner_jax.data.sources.example import Message
from aligner_jax.data.tokenizer import check_encodable
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.runtime.fields import did_you_mean
from aligner_jax.runtime.files import write_atomically


class Session:
    """A conversation with a model.

    Attributes:
      mix: the adapters that answer.
    """

    def __init__(self, model: ChatModel, screen: Screen, *, mix: Mix | None = None, system: str | None = None) -> None:
        """Begins a conversation. Raises InputError if no question can be asked with these adapters and this system."""
        self.mix = mix or Mix()
        self._model, self._screen, self._system = model, screen, system
        self._turns: list[Message] = []
        self._compares_next = False
        self._saved: set[Path] = set()
        self._check(system, self.mix)

    def take(self, line: str) -> bool:
        """Does what a line asks for; returns False if it ends the chat.

        Lines that begin with "/" are commands, but those with "//" are questions that begin with "/".
        """
        line = line.strip()
        try:
            check_encodable(line)
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line[1:].partition(" ")
                if name == "quit":
                    return False
                if name not in COMMANDS:
                    raise InputError(
                        f"/{name} is no command; {did_you_mean(name, COMMANDS)}; begin a question with // if it begins "
                        "with /"
                    )
                COMMANDS[name].run(self, rest.strip())
            elif line:
                self._ask(line.removeprefix("/") if line.startswith("//") else line)
        except InputError as error:
            self._screen.fail(error)
        except KeyboardInterrupt:
            if not self._screen.stops_answers:
                raise
            self._screen.say("stopped")
        return True

    def _ask(self, question: str) -> None:
        mixes = [Mix(), self.mix] if self._compares_next else [self.mix]
        self._compares_next = False
        self._answer([*self._turns, _user(question)], mixes)

    def _answer(self, turns: list[Message], mixes: Sequence[Mix], *, keep: bool = True) -> None:
        """Shows answers to the last of the turns, and continues the conversation with the last answer."""
        texts, notices, is_stopped = [""] * len(mixes), [], False
        question = Question(turns, self._system)
        try:
            with contextlib.closing(self._model.answers(question, mixes, notices.append)) as pieces:
                self._screen.show([str(mix) for mix in mixes], _stripped(pieces), texts)
        except KeyboardInterrupt:
            if not self._screen.stops_answers:
                raise
            is_stopped = True
            notices.append("stopped")
        for sentence in dict.fromkeys(notices):
            self._screen.say(sentence)
        if keep and not (is_stopped and not texts[-1]):
            self._turns = [*turns, {"role": "assistant", "content": texts[-1].strip()}]

    def _choose(self, mix: Mix) -> None:
        """Chooses adapters, if the conversation can be continued with them."""
        self._check(self._system, mix)
        self.mix = mix
        self._screen.say(f"answers are those of {mix}")

    def _check(self, system: str | None, mix: Mix) -> None:
        self._model.check(Question([*self._turns, _user("?")], system), mix)

    def adapter(self, text: str) -> None:
        """Chooses one adapter, or none."""
        if not text:
            names = ", ".join(self._model.names()) or "none"
            self._screen.say(f"answers are those of {self.mix}; known adapters: {names}; /adapter none for the base")
        elif text == "none":
            self._choose(Mix())
        else:
            self._choose(Mix(((self._model.find(text), 1.0),)))

    def strength(self, text: str) -> None:
        """Sets the factor of the adapters' effect."""
        if not self.mix.terms:
            raise InputError("there is no adapter whose strength could be set; choose one: /adapter NAME")
        self._choose(Mix(self.mix.terms, parse_strength(text)))

    def sum(self, text: str) -> None:
        """Chooses a weighted sum of adapters."""
        terms = [(self._model.find(name), weight) for name, weight in parse_mix(text).terms]
        self._choose(Mix(tuple(terms)))

    def compare(self, text: str) -> None:
        """Shows the answers of the base and of the adapters side by side."""
        if not self.mix.terms:
            raise InputError("there is no adapter to compare with the base; choose one: /adapter NAME")
        if text:
            self._answer([*self._turns, _user(text)], [Mix(), self.mix])
        elif self._turns:
            self._answer(self._turns[:-1], [Mix(), self.mix], keep=False)
        else:
            self._compares_next = True
            self._screen.say(f"the next question is answered by base and {self.mix}")

    def system(self, text: str) -> None:
        """Sets the system prompt, or takes that of the adapter again."""
        self._check(text or None, self.mix)
        self._system = text or None
        self._screen.say("the system prompt is " + (repr(text) if text else "the one of the adapter, if it has one"))

    def reset(self, text: str) -> None:
        """Forgets the conversation."""
        self._turns, self._compares_next = [], False
        self._screen.say("the conversation begins anew")

    def save(self, text: str) -> None:
        """Writes the conversation as a record that training can read."""
        if not text:
            raise InputError("name the file to save the conversation in: /save FILE")
        if not self._turns:
            raise InputError("there is no conversation to save yet")
        path = Path(text).expanduser().absolute()
        if exists(path) and path not in self._saved:
            raise InputError(f"{path} exists already; name another file")
        system: list[Message] = [] if self._system is None else [{"role": "system", "content": self._system}]
        record = {"messages": [*system, *self._turns]}
        write_atomically(path, json.dumps(record, ensure_ascii=False) + "\n")
        self._saved.add(path)
        self._screen.say(f"{len(self._turns)} messages are in {path}")

    def help(self, text: str) -> None:
        """Lists the commands."""
        width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self._screen.say(f"/{f'{name} {command.argument}':{width}}  {command.about}")


class Command(NamedTuple):
    """A command.

    Attributes:
      run: called with the session and the text behind the name.
      argument, about: its line in the help.
    """

    run: Callable[[Session, str], None]
    argument: str
    about: str


COMMANDS: dict[str, Command] = {
    "adapter": Command(Session.adapter, "NAME", "chooses an adapter, or its file; none for the base"),
    "strength": Command(Session.strength, "0.5", "multiplies the effect of the adapters"),
    "sum": Command(Session.sum, "a@0.5 b", "chooses a sum of adapters"),
    "compare": Command(Session.compare, "[TEXT]", "base and adapters side by side: TEXT, or the last or next question"),
    "system": Command(Session.system, "[TEXT]", "sets the system prompt; without a text, that of the adapter"),
    "reset": Command(Session.reset, "", "forgets the conversation"),
    "save": Command(Session.save, "FILE", "writes the conversation as a line of JSON that training can read"),
    "help": Command(Session.help, "", "lists the commands"),
    "quit": Command(lambda session, text: None, "", "ends the chat, as Ctrl-D does; Ctrl-C stops an answer"),
}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _stripped(pieces: Iterator[Piece]) -> Iterator[Piece]:
    begun: set[int] = set()
    for answer, text in pieces:
        text = text if answer in begun else text.lstrip()
        if text:
            begun.add(answer)
            yield Piece(answer, text)
