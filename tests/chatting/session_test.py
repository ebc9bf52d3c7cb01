"""Commands of a chat, with a model that says what it was asked."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Piece, Question
from aligner_jax.chatting.session import COMMANDS, Session
from aligner_jax.data.sources.example import Conversation
from aligner_jax.data.sources.messages import MESSAGES
from aligner_jax.errors import InputError
from aligner_jax.files.json_text import parse_json


class Echo:
    """A model whose answers are the name of the adapters, the system prompt and the messages."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.refused: str | None = None
        self.closed = 0

    def names(self) -> list[str]:
        return ["a", "b"]

    def find(self, text: str) -> str:
        if text not in "ab":
            raise InputError(f"there is no adapter {text}")
        return text

    def check(self, question: Question, mix: Mix) -> None:
        if self.refused is not None:
            raise InputError(self.refused)

    def answers(
        self, question: Question, mixes: Sequence[Mix], say: Callable[[str], None]
    ) -> Generator[Piece, None, None]:
        try:
            for index, mix in enumerate(mixes):
                yield Piece(index, " \n")
                yield Piece(index, f" {mix}|{question.system}|")
                if self.failure is not None:
                    raise self.failure
                yield Piece(index, "/".join(message["content"] for message in question.messages) + "\n")
            say("a notice")
            say("a notice")
        finally:
            self.closed += 1


@dataclasses.dataclass
class Recorder:
    """A screen that records what it is given."""

    stops_answers: bool = True
    answers: list[list[str]] = dataclasses.field(default_factory=list)
    names: list[list[str]] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def show(self, names, pieces, texts) -> None:
        self.names.append(list(names))
        self.answers.append(texts)
        for piece in pieces:
            texts[piece.answer] += piece.text

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def fail(self, error: InputError) -> None:
        self.failures.append(str(error))


@pytest.fixture
def model() -> Echo:
    return Echo()


@pytest.fixture
def screen() -> Recorder:
    return Recorder()


@pytest.fixture
def chat(model: Echo, screen: Recorder) -> Callable[..., Recorder]:
    """Gives lines to a session, which must not end."""
    session = Session(model, screen)

    def take(*lines: str) -> Recorder:
        assert all(session.take(line) for line in lines)
        return screen

    return take


def test_a_question_has_the_conversation_before_it(chat):
    assert chat("Who?\n", "", "  ", "//why/?").answers == [
        ["base|None|Who?\n"],
        ["base|None|Who?/base|None|Who?//why/?\n"],
    ]
    assert chat().said == ["a notice", "a notice"]
    assert chat().failures == []


def test_adapters_strengths_and_sums(chat):
    lines = ["/adapter a", "Q", "/strength 0.5", "Q", "/sum a@0.5 b", "Q", "/strength -2", "Q", "/adapter none", "Q"]
    names = [name for (name,) in chat(*lines).names]
    assert names == ["a", "a@0.5", "a@0.5+b", "a@-1+b@-2", "base"]
    assert chat("/adapter").said[-1] == ("answers are those of base; known adapters: a, b; /adapter none for the base")


def test_compare_shows_base_and_adapter_for_a_text_the_last_question_or_the_next(chat):
    screen = chat("/adapter a", "/compare Why?")
    assert screen.names == [["base", "a"]]
    assert screen.answers[-1] == ["base|None|Why?\n", "a|None|Why?\n"]
    # The answer of the adapter is that of the conversation.
    assert chat("So?").answers[-1] == ["a|None|Why?/a|None|Why?/So?\n"]
    before = len(screen.answers)
    assert chat("/adapter b", "/compare").answers[-1] == [
        "base|None|Why?/a|None|Why?/So?\n",
        "b|None|Why?/a|None|Why?/So?\n",
    ]
    # Once more for the same question: the conversation has not changed.
    assert chat("/compare").answers[-1] == screen.answers[before]
    assert chat("/reset", "/compare").said[-1] == "the next question is answered by base and b"
    assert chat("Q", "Q").names[-2:] == [["base", "b"], ["b"]]
    assert chat("/reset", "/compare", "/reset", "Q").names[-1] == ["b"]


def test_the_system_prompt_is_set_and_taken_back(chat):
    screen = chat("/system  Be brief. ", "Q", "/reset", "Q", "/system", "/reset", "Q")
    assert screen.answers == [["base|Be brief.|Q\n"], ["base|Be brief.|Q\n"], ["base|None|Q\n"]]


def test_what_is_saved_can_be_trained_on(chat, tmp_path: Path):
    file = tmp_path / "chat.jsonl"
    assert chat("/system Be.", "Who?", "é?", f"/save {file}").failures == []
    record = parse_json(file.read_text(encoding="utf-8"), "the file")
    assert MESSAGES.fits(record)
    example = MESSAGES.parse(record, "there")
    assert isinstance(example, Conversation)
    assert [(m["role"], m["content"]) for m in example.messages] == [
        ("system", "Be."),
        ("user", "Who?"),
        ("assistant", "base|Be.|Who?"),
        ("user", "é?"),
        ("assistant", "base|Be.|Who?/base|Be.|Who?/é?"),
    ]
    # The chat's own file is written anew, others are not.
    assert chat("And?", f"/save {file}").said[-1] == f"6 messages are in {file}"
    assert file.read_text().count("\n") == 1
    (tmp_path / "mine").write_text("mine")
    assert chat(f"/save {tmp_path / 'mine'}").failures == [f"{tmp_path / 'mine'} exists already; name another file"]
    assert "mine" in chat(f"/save {tmp_path / 'mine' / 'below'}").failures[1]
    assert (tmp_path / "mine").read_text() == "mine"


def test_help_names_every_command(chat):
    assert [line.split()[0] for line in chat("/help").said] == [f"/{name}" for name in COMMANDS]


def test_quit_ends_the_chat(model: Echo, screen: Recorder):
    assert not Session(model, screen).take("/quit")
    assert (screen.said, screen.failures) == ([], [])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/adaptor a", "/adaptor is no command; did you mean adapter?; begin a question with // if it begins with /"),
        ("/adapter c", "there is no adapter c"),
        ("/sum a c", "there is no adapter c"),
        ("/sum", "name the adapters to sum, like: a@0.5 b"),
        ("/sum a@x", "the strength 'x' is not a number between -1e+06 and 1e+06"),
        ("/strength 1", "there is no adapter whose strength could be set; choose one: /adapter NAME"),
        ("/compare", "there is no adapter to compare with the base; choose one: /adapter NAME"),
        ("/compare Why?", "there is no adapter to compare with the base; choose one: /adapter NAME"),
        ("/save", "name the file to save the conversation in: /save FILE"),
        ("bytes \udcff", "the text holds half a surrogate pair at its character 7, as where bytes are not UTF-8"),
        ("/save there", "there is no conversation to save yet"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_the_chat_goes_on(chat, line: str, sentence: str):
    assert chat(line).failures == [sentence]
    assert chat("Q").answers == [["base|None|Q\n"]]


def test_a_choice_that_the_model_refuses_is_not_made(chat, model: Echo):
    chat("/adapter a", "/system Be.")
    model.refused = "no"
    assert chat("/adapter b", "/system Hm.", "/strength 2", "/sum a b", "/adapter none").failures == ["no"] * 5
    assert chat("Q").answers == [["a|Be.|Q\n"]]


def test_the_first_choice_is_checked_too(model: Echo, screen: Recorder):
    model.refused = "no"
    with pytest.raises(InputError, match=r"^no$"):
        Session(model, screen, mix=Mix((("a", 1.0),)), system="Be.")


def test_a_question_that_fails_is_forgotten(chat, model: Echo):
    model.failure = InputError("broken")
    assert chat("Q").failures == ["broken"]
    model.failure = None
    assert chat("R").answers[-1] == ["base|None|R\n"]
    assert model.closed == 2


def test_a_stopped_answer_is_kept_as_far_as_it_came(chat, model: Echo):
    model.failure = KeyboardInterrupt()
    assert chat("Q").said == ["stopped"]
    model.failure = None
    assert chat("R").answers[-1] == ["base|None|Q/base|None|/R\n"]


def test_a_question_that_is_stopped_before_its_answer_is_forgotten(chat, model: Echo, screen: Recorder):
    def show(names, pieces, texts):
        next(pieces)
        raise KeyboardInterrupt

    shown, screen.show = screen.show, show
    chat("Q")
    screen.show = shown
    assert chat("R").answers[-1] == ["base|None|R\n"]
    assert model.closed == 2


def test_without_a_terminal_an_interrupt_ends_the_chat(model: Echo):
    session = Session(model, Recorder(stops_answers=False))
    model.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        session.take("Q")
