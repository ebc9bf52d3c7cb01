"""Lines that tell that work is going on, on a terminal and elsewhere."""

import io

import pytest
from waits import wait_until

from aligner_jax.runtime import waiting
from aligner_jax.runtime.waiting import Waiting, duration, stages
from aligner_jax.weights.base import load_base


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows, which a test changes; the line is drawn at once, and then without a pause."""
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "_FIRST", 0.0)
    monkeypatch.setattr(waiting, "_EVERY", 0.001)
    return now


def test_a_stage_is_a_line_and_a_long_one_two(clock: list[float]):
    stream = io.StringIO()
    with stages(stream=stream) as begin:
        begin("reading")
        begin("compiling\x1b[2J")
        clock[0] = 224.4
    assert stream.getvalue() == "reading …\ncompiling\\x1b[2J …\ncompiling\\x1b[2J: 3 min 44 s\n"


def test_a_stage_within_another_is_no_line(clock: list[float]):
    stream = io.StringIO()
    with Waiting("loading", stream=stream), Waiting("reading", stream=stream):
        clock[0] = 60.0
    assert stream.getvalue() == "loading …\nloading: 1 min 0 s\n"


def test_a_terminal_shows_the_stage_within(clock: list[float]):
    stream = Terminal()
    with Waiting("loading", stream=stream), Waiting("reading", stream=stream):
        wait_until(lambda: "reading" in stream.getvalue())
        clock[0] = 60.0
    assert stream.getvalue().splitlines()[-1].endswith("loading: 1 min 0 s")
    assert "reading: " not in stream.getvalue()


def test_nothing_is_printed_where_it_would_be_too_much(clock: list[float]):
    stream = io.StringIO()
    with Waiting("reading", lines=False, stream=stream):
        clock[0] = 60.0
    assert stream.getvalue() == ""


def test_a_terminal_shows_one_line_that_disappears(clock: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream, drawn = Terminal(), "\r\x1b[Kreading a file, 0.5 of 2.0 GB"
    with Waiting("reading a file", total_bytes=2_000_000_000, stream=stream) as reading:
        reading.advance(0.25)
        wait_until(lambda: drawn[:33] in stream.getvalue())
    lines = stream.getvalue().split("\r\x1b[K")
    assert lines[-1] == ""
    assert all(len(line) < 30 for line in lines)
    assert reading.line(12.3) == "reading a file, 0.5 of 2.0 GB … 12 s"


def test_the_line_of_failed_work_disappears_too(clock: list[float]):
    stream = Terminal()

    def fail() -> None:
        clock[0] = 60.0
        wait_until(lambda: "reading" in stream.getvalue())
        raise KeyError

    with pytest.raises(KeyError), Waiting("reading", stream=stream):
        fail()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_work_goes_on_without_its_reader(clock: list[float]):
    with stages(stream=Gone()) as begin:
        begin("reading")
        begin("compiling")


def test_durations():
    assert [duration(x) for x in (0.4, 59.4, 59.6, 3599, 3900)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 5 min",
    ]


def test_what_is_read_of_a_base_adds_up_to_all(hf_base, monkeypatch: pytest.MonkeyPatch):
    shares: list[float] = []
    monkeypatch.setattr(Waiting, "advance", lambda self, share: shares.append(share))
    load_base(hf_base)
    assert len(shares) > 10
    assert sum(shares) == pytest.approx(1, rel=1e-6)
