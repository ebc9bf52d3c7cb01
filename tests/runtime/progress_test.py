import io

import pytest
from rich.console import Console

from aligner_jax.runtime import progress
from aligner_jax.runtime.progress import Count, Progress

METRICS = {"loss": 1.2344, "tokens_per_second": 1812.3, "learning_rate": 9e-3, "grad_norm": 4.0}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def shown(clock, *, terminal, steps=120, first=0, every=10, logs=2):
    """Returns the text of a run whose first step takes 50 s longer than the others' 1 s."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    with Progress(console, steps=steps, first=first) as display:
        clock(50)
        for step in range(first + 1, first + every * logs + 1):
            clock(1)
            display.advance(step)
            if step % every == 0:
                display.log(step, **METRICS)
    return text.getvalue()


def test_without_a_terminal_there_is_a_plain_line_for_each_log(clock):
    assert shown(clock, terminal=False) == (
        "step 10/120  loss 1.234  1,812 tokens/s  lr 9.0e-03  11:00 left\n"
        "step 20/120  loss 1.234  1,812 tokens/s  lr 9.0e-03  1:40 left\n"
    )


def test_a_resumed_run_counts_its_own_steps_only(clock):
    text = shown(clock, terminal=False, first=100)
    assert text.splitlines()[1] == "step 120/120  loss 1.234  1,812 tokens/s  lr 9.0e-03  0:00 left"


def test_hours_are_shown_where_there_are_any(clock):
    assert shown(clock, terminal=False, steps=10_000).splitlines()[1].endswith("2:46:20 left")


def test_a_terminal_gets_a_bar_too_which_is_gone_at_the_end(clock):
    text = shown(clock, terminal=True)
    assert "20/120" in text
    assert "━" in text
    assert "step 20/120  loss 1.234" in text
    # The cursor is shown again and the bar's line is erased.
    assert text.rstrip("\n").endswith("\x1b[2K")


def test_an_error_leaves_the_terminal_as_it_was(clock):
    text = io.StringIO()

    def interrupted():
        with Progress(Console(file=text, force_terminal=True), steps=3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1


def counted(clock, *, terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    with Count(console, "answers", total=2000, done=400) as count:
        for seconds in (10, 25, 10, 200):
            clock(seconds)
            count.add(400)
    return text.getvalue()


def test_a_count_is_a_line_every_half_minute_and_one_at_the_end(clock):
    # 800 answers took 35 s, and 1600 are to be made in total.
    assert counted(clock, terminal=False) == ("answers: 1,200 of 2,000, 0:35 left\nanswers: 2,000 of 2,000 in 4:05\n")


def test_on_a_terminal_a_count_is_a_bar_that_goes_away(clock):
    text = counted(clock, terminal=True)
    assert "answers" in text
    assert "left" not in text
