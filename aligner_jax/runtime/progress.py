"""Progress display: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Self

from rich import progress as rich_progress
from rich.console import Console


class _Shown:
    """A progress bar on a terminal, and nothing elsewhere. A context manager that shows and removes the bar."""

    def __init__(
        self, console: Console, what: str, *columns: rich_progress.ProgressColumn, total: int, done: int
    ) -> None:
        self._bar = None
        if console.is_terminal and not console.is_jupyter:
            self._bar = rich_progress.Progress(
                "[progress.description]{task.description}", rich_progress.BarColumn(),
                "{task.completed}/{task.total}", *columns, console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(what, total=total, completed=done)

    def _move(self, done: int) -> bool:
        """Updates the bar; returns False if there is none."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        return self._bar is not None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress(_Shown):
    """Progress of training: step, loss, tokens/s, learning rate and time left. A context manager.

    On a terminal a bar moves with every step, and lines of metrics stay above it. Elsewhere (a file, a pipe, a
    notebook) only the lines are printed.
    """

    def __init__(self, console: Console, *, steps: int, first: int = 0) -> None:
        """Begins at step `first` of `steps`."""
        self._console, self._steps = console, steps
        self._since = (first, time.monotonic())
        self._logged = False
        super().__init__(console, "training", total=steps, done=first)

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        self._move(step)

    def log(
        self, step: int, *, loss: float, tokens_per_second: float, learning_rate: float, skipped: float = 0, **_: float
    ) -> None:
        """Prints a line of metrics; metrics without a place in the line are ignored."""
        first, began = self._since
        left = (time.monotonic() - began) / max(step - first, 1) * (self._steps - step)
        if not self._logged:
            # Steps before the first line include the compilation, so later estimates leave them out.
            self._since, self._logged = (step, time.monotonic()), True
        self._console.out(
            f"step {step}/{self._steps}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  "
            f"lr {learning_rate:.1e}  {_clock(left)} left{f'  skipped {skipped:.0f}' if skipped else ''}",
            highlight=False,
        )
        self.advance(step)


class Count(_Shown):
    """Progress of a count of items, with the time left. A context manager.

    Shows a bar on a terminal. Elsewhere it prints a line at most every `SECONDS_A_LINE` seconds, and one at the end.
    """

    SECONDS_A_LINE = 30.0

    def __init__(self, console: Console, what: str, *, total: int, done: int = 0) -> None:
        """Begins at `done` of `total`; `what` names the items, in the plural."""
        self._console, self._what, self._total, self._done = console, what, total, done
        self._first = done
        self._began = self._shown = time.monotonic()
        super().__init__(console, what, rich_progress.TimeRemainingColumn(), total=total, done=done)

    def add(self, number: int) -> None:
        """Adds `number` finished items."""
        self._done += number
        if self._move(self._done):
            return
        now = time.monotonic()
        if now - self._shown >= self.SECONDS_A_LINE or self._done == self._total:
            self._shown = now
            left = (now - self._began) / max(self._done - self._first, 1) * (self._total - self._done)
            ending = f", {_clock(left)} left" if self._done < self._total else f" in {_clock(now - self._began)}"
            self._console.out(f"{self._what}: {self._done:,} of {self._total:,}{ending}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
