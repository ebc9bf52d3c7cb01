"""Progress display: a bar on a terminal, a line that changes in a notebook, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from aligner_jax.runtime.waiting import hidden, part_read

_ROOM_FOR_TEXT = 58
_SECONDS_A_CHANGE = 0.5


class _Note(rich_progress.ProgressColumn):
    """The text after a bar, which may change without a move of the bar, such as a clock."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: rich_progress.Task) -> Text:
        return Text(self._text(), no_wrap=True)


class _Shown:
    """A bar on a terminal, a line in a notebook, and nothing elsewhere. A context manager that shows and removes it."""

    def __init__(self, console: Console, what: str, note: Callable[[], str], *, total: int, done: int) -> None:
        self._bar: rich_progress.Progress | None = None
        self._cell: Any = None
        self._label, self._note, self._total, self._at = what, note, total, done
        self._changed = -math.inf
        self._in_notebook = console.is_jupyter and not console.quiet
        if console.is_terminal and not console.is_jupyter:
            width = min(30, max(4, console.width - _ROOM_FOR_TEXT - len(f"{total}/{total}")))
            self._bar = rich_progress.Progress(
                _Note(lambda: self._label), rich_progress.BarColumn(bar_width=width),
                rich_progress.TextColumn("{task.completed}/{task.total}"), _Note(note), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(what, total=total, completed=done)

    def _move(self, done: int, label: str | None = None) -> bool:
        """Updates the display; returns False if there is none, so that lines are to be printed."""
        self._at, self._label = done, label or self._label
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._cell is not None and (label or time.monotonic() - self._changed >= _SECONDS_A_CHANGE):
            self._change(f"{self._label} {done:,}/{self._total:,}  {self._note()}")
        return self._bar is not None or self._cell is not None

    def _change(self, text: str) -> None:
        self._changed = time.monotonic()
        self._cell.update({"text/plain": text}, raw=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        elif self._in_notebook:
            from IPython.display import display

            self._cell = display({"text/plain": f"{self._label}…"}, raw=True, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._cell is not None:
            self._change(f"{self._label} {self._at:,}/{self._total:,}")


class _Pace:
    """Time left, by the items after the first one, whose time includes compilations."""

    def __init__(self, first: int) -> None:
        """Begins at `first` finished items."""
        self._first, self._since = first, (first, math.nan)

    def at(self, done: int) -> None:
        """Notes that items are finished."""
        if self._since[0] == self._first < done:
            self._since = (done, time.monotonic())

    def left(self, done: int, total: int) -> float | None:
        """Returns the seconds that the remaining items take; None if that is not known yet."""
        since, began = self._since
        if done >= total:
            return 0.0
        return (time.monotonic() - began) / (done - since) * (total - done) if self._first < since < done else None


class Progress(_Shown):
    """Progress of training: step, loss, tokens/s, learning rate and time left. A context manager.

    On a terminal a bar moves with every step, and lines of metrics stay above it. Elsewhere (a file, a pipe) only the
    lines are printed, and in a notebook a line below them changes. The time left does not count the first step, which
    compiles.
    """

    def __init__(self, console: Console, *, steps: int, first: int = 0) -> None:
        """Begins at step `first` of `steps`."""
        self._console, self._steps, self._pace, self._step = console, steps, _Pace(first), first
        self._last, self._clock_since = "", None
        super().__init__(console, "training", self._text, total=steps, done=first)

    @contextlib.contextmanager
    def doing(self, what: str, *, told: bool = False) -> Iterator[None]:
        """Shows other work than steps, with the time since it began.

        Args:
          what: the work.
          told: True also prints a line at its beginning and end, for work that may take minutes.
        """
        began = self._clock_since = time.monotonic()
        self._move(self._step, what)
        if told:
            self._console.out(f"{what}…", highlight=False)
        try:
            yield
        finally:
            self._clock_since = None
            self._move(self._step, "training")
        if told:
            self._console.out(f"{what}: done in {clock(time.monotonic() - began)}", highlight=False)

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        self._step = step
        self._pace.at(step)
        self._move(step)

    def log(
        self, step: int, *, loss: float, tokens_per_second: float, learning_rate: float, skipped: float = 0, **_: float
    ) -> None:
        """Prints a line of metrics; metrics without a place in the line are ignored."""
        self._last = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        left = self._pace.left(step, self._steps)
        self._console.out(
            f"step {step}/{self._steps}  {self._last}  lr {learning_rate:.1e}{_left(left)}"
            f"{f'  skipped {skipped:.0f}' if skipped else ''}",
            highlight=False,
        )
        self.advance(step)

    def _text(self) -> str:
        if self._clock_since is not None:
            return clock(time.monotonic() - self._clock_since)
        return f"{self._last}{_left(self._pace.left(self._step, self._steps))}".strip()


class Count(_Shown):
    """Progress of a count of items, with the time left. A context manager.

    Shows a bar on a terminal and a line in a notebook. Elsewhere it prints a line at most every `SECONDS_A_LINE`
    seconds, and one at the end. The time left does not count the first items, which may compile.
    """

    SECONDS_A_LINE = 30.0

    def __init__(self, console: Console, what: str, *, total: int, done: int = 0) -> None:
        """Begins at `done` of `total`; `what` names the items, in the plural."""
        self._console, self._what, self._done, self._first = console, what, done, done
        self._began = self._shown = time.monotonic()
        self._pace = _Pace(done)
        super().__init__(console, what, self._text, total=total, done=done)

    def _text(self) -> str:
        if self._done == self._first:
            # The first items compile, which may take long.
            return clock(time.monotonic() - self._began)
        return _left(self._pace.left(self._done, self._total)).strip()

    @property
    def done(self) -> int:
        """Number of finished items."""
        return self._done

    def add(self, number: int) -> None:
        """Adds `number` finished items."""
        if not number:
            return
        self._done += number
        self._pace.at(self._done)
        if self._move(self._done):
            return
        now = time.monotonic()
        if now - self._shown >= self.SECONDS_A_LINE or self._done == self._total:
            self._shown = now
            left = _left(self._pace.left(self._done, self._total)).strip()
            ending = f" in {clock(now - self._began)}" if self._done == self._total else f", {left}" if left else ""
            self._console.out(f"{self._what}: {self._done:,} of {self._total:,}{ending}", highlight=False)


@contextlib.contextmanager
def stage(console: Console, what: str) -> Iterator[None]:
    """Shows work of unknown length: a clock on a terminal while it runs, and a line at its beginning elsewhere.

    On a terminal it also shows how much of a base is read (`waiting.reading`), and with a quiet console nothing does.
    """
    if console.quiet:
        with hidden():
            yield
        return
    if not console.is_terminal or console.is_jupyter:
        console.out(f"{what}…", highlight=False)
        yield
        return
    began = time.monotonic()
    columns = rich_progress.SpinnerColumn(), _Note(lambda: f"{what}{part_read()}  {clock(time.monotonic() - began)}")
    with hidden(), rich_progress.Progress(*columns, console=console, transient=True) as shown:
        shown.add_task(what, total=None)
        yield


def clock(seconds: float) -> str:
    """Returns seconds as minutes and seconds, "1:05", with hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"  {clock(seconds)} left"
