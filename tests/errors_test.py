"""Messages are one printable line of at most 400 characters, whatever the input holds."""

import pickle

import pytest

from aligner_jax.errors import MAX_CHARACTERS, InputError, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.json:3 is not JSON", "a.json:3 is not JSON"),
        ("two\nlines\tand  spaces ", "two lines and spaces"),
        ("\x1b[2Jcleared\x00", "\\x1b[2Jcleared\\x00"),
        ("right \u202e left \u2028 line", "right \\u202e left \\u2028 line"),
        ("a name \udcff that is not UTF-8, half a pair \ud83d", "a name \\xff that is not UTF-8, half a pair \\ud83d"),
        ("ein Wort, 一个词, 🎉", "ein Wort, 一个词, 🎉"),
    ],
)
def test_a_message_is_one_printable_line(text, line):
    assert str(InputError(text)) == line


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(InputError(f"/data/{'x' * 5000}/a.json: is {'y' * 3_000_000}, not a number; set it to 1"))
    assert len(message) <= MAX_CHARACTERS
    assert message.startswith("/data/xxx")
    assert message.endswith("not a number; set it to 1")


def test_a_long_sentence_of_short_words_is_cut_in_its_middle():
    line = one_line("the file " + "has a word " * 100 + "and an end")
    assert len(line) == MAX_CHARACTERS
    assert line.startswith("the file has a word")
    assert line.endswith("word and an end")
    assert " … " in line


def test_a_message_survives_pickling_unchanged():
    error = InputError("a\x1b\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a\\x1b b"
