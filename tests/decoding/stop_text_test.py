"""Streamed text: the pieces are the continuation before the first stop text, and never show a part of one."""

import pytest

from aligner_jax.decoding.sampler import continuation
from aligner_jax.decoding.stop_text import StreamedText, first_stop

PROMPT = "Name a colour: "
TEXT = "Blau, größer als Grün. 😀 END of it"


@pytest.fixture(scope="module")
def tokenizer(tiny_subject):
    return tiny_subject().tokenizer


def pieces(tokenizer, text: str, *stops: str) -> tuple[list[str], bool]:
    streamed = StreamedText(tokenizer, tokenizer.encode(PROMPT), stops)
    found = []
    for token in tokenizer.encode(text):
        if streamed.is_over:
            break
        found.append(streamed.add(token))
    found.append(streamed.end())
    assert "".join(found) == streamed.given
    return found, streamed.is_over


def test_the_pieces_are_the_text(tokenizer):
    found, is_over = pieces(tokenizer, TEXT)
    assert ("".join(found), is_over) == (TEXT, False)
    assert sum(map(bool, found)) > 10


@pytest.mark.parametrize("stop", ["END", "größer", "😀", " als Gr", "B", "t"])
def test_the_text_ends_before_a_stop_text_across_tokens(stop: str, tokenizer):
    found, is_over = pieces(tokenizer, TEXT, "never", stop)
    assert ("".join(found), is_over) == (TEXT[: TEXT.index(stop)], True)


def test_what_only_looks_like_a_stop_text_is_given_out_later(tokenizer):
    found, is_over = pieces(tokenizer, TEXT, "END of them", "itt")
    assert ("".join(found), is_over) == (TEXT, False)


def test_no_piece_shows_the_beginning_of_a_stop_text(tokenizer):
    streamed = StreamedText(tokenizer, tokenizer.encode(PROMPT), ["END of"])
    for token in tokenizer.encode(TEXT):
        streamed.add(token)
        assert "E" not in streamed.given
    assert streamed.is_over


def test_an_incomplete_character_at_the_end_is_that_of_the_whole_text(tokenizer):
    ids = tokenizer.encode("ab😀")
    prompt = tokenizer.encode(PROMPT)
    assert len(tokenizer.encode("😀")) > 1
    streamed = StreamedText(tokenizer, prompt)
    shown = "".join(streamed.add(token) for token in ids[:-1])
    assert shown == "ab"
    assert shown + streamed.end() == continuation(tokenizer, prompt, ids[:-1]) != "ab"


def test_the_first_stop_text_is_the_one_that_begins_first():
    assert first_stop("abcabd", ["bd", "ca"]) == 2
    assert first_stop("abc", ["d"]) is None
    assert first_stop("abc", []) is None
