import io
import re

import pytest
from rich.console import Console
from waits import wait_until

from aligner_jax.runtime import progress
from aligner_jax.runtime.progress import Count, Progress, stage
from aligner_jax.runtime.waiting import advance_reading, reading

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
        "step 10/120  loss 1.234  1,812 tokens/s  lr 9.0e-03  1:50 left\n"
        "step 20/120  loss 1.234  1,812 tokens/s  lr 9.0e-03  1:40 left\n"
    )


def test_the_first_line_has_no_time_left_since_its_step_compiled(clock):
    lines = shown(clock, terminal=False, every=1, logs=3).splitlines()
    assert lines[0] == "step 1/120  loss 1.234  1,812 tokens/s  lr 9.0e-03"
    assert lines[1].endswith("1:58 left")


def test_the_bar_has_loss_speed_and_time_left(clock):
    assert re.search(r"training .*20/120 loss 1\.234  1,812 tokens/s  1:40 left", shown(clock, terminal=True))


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_bar_is_one_line_with_whole_numbers_at_every_width(clock, width):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    with Progress(console, steps=120) as display:
        for step in range(1, 21):
            clock(1)
            display.advance(step)
        display.log(20, **METRICS)
        # A line that is printed draws the bar anew, without the console's markup.
        display.log(20, **METRICS)
    assert "[progress" not in text.getvalue()
    bars = [line for line in re.split(r"[\r\n]|\x1b\[\S*?[A-Za-z]", text.getvalue()) if "training" in line]
    assert any("loss 1.234  1,812 tokens/s  1:40 left" in bar for bar in bars), bars
    assert max(map(len, bars)) <= width


def test_other_work_has_a_clock_and_a_line_where_it_is_told(clock):
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=False, width=100), steps=3) as display:
        with display.doing("compiling the step", told=True):
            clock(65)
        with display.doing("held-out evaluation"):
            clock(5)
    assert text.getvalue() == "compiling the step…\ncompiling the step: done in 1:05\n"


def test_the_clock_of_other_work_is_beside_the_bar(clock):
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True, width=100, color_system=None), steps=3) as display:
        with display.doing("held-out evaluation"):
            clock(65)
            display.advance(0)
            display._bar.refresh()
        display._bar.refresh()
    assert re.search(r"held-out evaluation .*0/3 1:05", text.getvalue())
    assert text.getvalue().count("0/3 1:05") == 1


def test_a_stage_is_a_line_elsewhere_and_a_clock_on_a_terminal(clock):
    text = io.StringIO()
    with stage(Console(file=text, force_terminal=False), "loading the base"):
        assert text.getvalue() == "loading the base…\n"
    text = io.StringIO()
    with stage(Console(file=text, force_terminal=True, color_system=None), "loading the base"):
        clock(5)
    assert "loading the base" in text.getvalue()
    assert text.getvalue().rstrip("\n").endswith("\x1b[2K")


def test_a_stage_shows_what_is_read_in_place_of_the_reader(clock, monkeypatch):
    text, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    for quiet in (False, True):
        with (
            stage(Console(file=text, force_terminal=True, color_system=None, quiet=quiet), "loading the base"),
            reading("reading model.gguf", 8_000_000_000),
        ):
            advance_reading(0.25)
            clock(60)
            # Drawn by a thread.
            if not quiet:
                wait_until(lambda: "loading the base, 2.0 of 8.0 GB  1:00" in text.getvalue())
    assert "reading" not in text.getvalue() + errors.getvalue()


def test_a_notebook_has_a_line_that_changes(clock, monkeypatch):
    texts = []

    class Handle:
        def update(self, data, raw):
            texts.append(data["text/plain"])

    def display(data, raw, display_id):
        texts.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    console = Console(file=io.StringIO(), force_jupyter=True)
    monkeypatch.setattr(console, "out", lambda *_, **__: None)
    with Progress(console, steps=120) as display_:
        for step in range(1, 21):
            clock(1)
            display_.advance(step)
        display_.log(20, **METRICS)
        clock(1)
        display_.advance(21)
    assert texts[0] == "training…"
    assert texts[-2] == "training 21/120  loss 1.234  1,812 tokens/s  1:39 left"
    assert texts[-1] == "training 21/120"


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
    # 400 answers took 25 s after the first 400, which compile, and 800 are left.
    assert counted(clock, terminal=False) == ("answers: 1,200 of 2,000, 0:50 left\nanswers: 2,000 of 2,000 in 4:05\n")


def test_before_the_first_item_a_count_on_a_terminal_shows_the_time(clock):
    text = io.StringIO()
    with Count(Console(file=text, force_terminal=True, width=200, color_system=None), "answers", total=9) as count:
        clock(70)
        wait_until(lambda: "0/9 1:10" in text.getvalue())
        count.add(1)
        assert count._text() == ""


def test_on_a_terminal_a_count_is_a_bar_that_goes_away(clock):
    text = counted(clock, terminal=True)
    assert "answers" in text
    assert "2000/2000" in text
    assert "answers: " not in text
    assert text.rstrip("\n").endswith("\x1b[2K")
