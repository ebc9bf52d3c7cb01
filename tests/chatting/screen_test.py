"""Answers as they are written without a terminal."""

from collections.abc import Iterator

import pytest

from aligner_jax.chatting.model import Piece
from aligner_jax.chatting.screen import PlainScreen
from aligner_jax.errors import InputError


def broken(*pieces: Piece) -> Iterator[Piece]:
    yield from pieces
    raise InputError("broken")


def test_an_answer_is_written_as_it_comes(capsys: pytest.CaptureFixture):
    texts, screen = [""], PlainScreen()
    pieces = iter([Piece(0, "one\x1b"), Piece(0, " two\n")])

    def watched() -> Iterator[Piece]:
        yield next(pieces)
        # Without a terminal the text is that of the model.
        assert capsys.readouterr().out == "one\x1b"
        yield next(pieces)

    screen.show(["a"], watched(), texts)
    assert texts == ["one\x1b two\n"]
    assert capsys.readouterr().out == " two\n\n"
    screen.show(["a"], iter(()), [""])
    assert capsys.readouterr().out == "\n"


def test_answers_side_by_side_are_written_one_below_the_other(capsys: pytest.CaptureFixture):
    texts = ["", ""]
    PlainScreen().show(["base", "a"], iter([Piece(1, "x"), Piece(0, "y"), Piece(1, "z\n")]), texts)
    assert texts == ["y", "xz\n"]
    assert capsys.readouterr().out == "── base\ny\n── a\nxz\n"


def test_a_failure_ends_the_line_that_has_begun(capsys: pytest.CaptureFixture):
    for pieces, shown in [((Piece(0, "one"),), "one\n"), ((), "")]:
        with pytest.raises(InputError, match="broken"):
            PlainScreen().show(["a"], broken(*pieces), [""])
        assert capsys.readouterr().out == shown


def test_notices_and_errors_are_no_answers(capsys: pytest.CaptureFixture):
    PlainScreen().say("a \x1b")
    PlainScreen().fail(InputError("b"))
    assert capsys.readouterr() == ("", "a \\x1b\nerror: b\n")
