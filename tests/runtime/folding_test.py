"""Folded text: no number is cut, and nothing is lost."""

import signal

import pytest

from aligner_jax.runtime.folding import fold, least_width, width_of

PATH = "/data/runs/quickstart_2025/adapter_of-today.safetensors"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("a few words here", 9, ["a few", "words", "here"]),
        ("  indented", 20, ["  indented"]),
        ("two\n\nlines", 20, ["two", "", "lines"]),
        ("peak 12.55 GiB, of 16 GiB", 12, ["peak", "12.55 GiB,", "of 16 GiB"]),
        (PATH, 30, ["/data/runs/quickstart_2025/", "adapter_of-today.safetensors"]),
        (PATH, 20, ["/data/runs/", "quickstart_2025/", "adapter_of-today.", "safetensors"]),
        ("on 2025-11-29 1/3 -0.693", 10, ["on", "2025-11-29", "1/3 -0.693"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("漢字漢字", 5, ["漢字", "漢字"]),
        ("", 5, [""]),
    ],
)
def test_text_folds_where_a_reader_would(text: str, width: int, lines: list[str]):
    assert fold(text, width) == lines
    assert all(width_of(line) <= width for line in lines)


def test_a_million_spaces_take_no_time():
    def hangs(*_: object) -> None:
        raise AssertionError("this takes more than 20 s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    try:
        assert fold("a\n" + " " * 1_000_000, 9) == ["a", ""]
        assert least_width(" " * 1_000_000, 2) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_least_width_is_that_of_the_longest_piece():
    assert [least_width(PATH, depth) for depth in (0, 1, 2)] == [len(PATH), 28, 16]
    assert [least_width(text, 2) for text in ("0.693 loss", "1e-05", "12,345.6")] == [5, 5, 8]
