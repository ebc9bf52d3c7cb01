"""Runs the training runs of cells in processes of their own, and keeps the results, so that a study can be resumed."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.same_run import differences
from aligner_jax.studies.ledger import Ledger, with_nan

CONFIG = Path(__file__).resolve().with_name("cell_config.py")
ROOT = CONFIG.parents[2]
Settings = dict[str, dict[str, Any]]
"""Configs of a cell's runs by the run's name, in the order in which they run."""


class Cell(Protocol):
    """A unit of work whose result is kept. Its files have its `name`; messages show str(cell)."""

    @property
    def name(self) -> str: ...


def main(work: Callable[[], int]) -> None:
    """Calls `work` and exits with its status. Prints an InputError as one sentence; no run outlives the process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(work())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


def make[C: Cell](
    missing: Sequence[C],
    settings_of: Callable[[C], Settings],
    expected: Mapping[C, float],
    results: MutableMapping[C, dict[str, Any]],
    out: Path,
    *,
    line: Callable[[dict[str, Any]], str],
    after: Callable[[C], None] = lambda _: None,
) -> list[InputError]:
    """Runs cells one after the other and adds their results to `results`. A failed cell does not stop the others.

    Args:
      missing: cells to run, in order.
      settings_of: returns a cell's configs; called just before the cell runs, so that they may use earlier results.
      expected: expected seconds, by cell.
      results: results by cell; new ones are added.
      out: folder of the study.
      line: returns a result in a few words.
      after: called with every cell that has succeeded.

    Returns:
      Errors of the cells that failed.
    """
    failures: list[InputError] = []
    took = should_have = 0.0
    for number, cell in enumerate(missing, 1):
        try:
            results[cell] = run(cell, settings_of(cell), out)
        except InputError as error:
            failures.append(error)
            print(f"[{number}/{len(missing)}] {cell}: failed", flush=True)
            continue
        took, should_have = took + results[cell]["seconds"], should_have + expected[cell]
        left = sum(expected[later] for later in missing[number:]) * took / should_have
        then = f"; about {left / 60:.0f} minutes left" if missing[number:] else ""
        print(f"[{number}/{len(missing)}] {cell}: {line(results[cell])}{then}", flush=True)
        after(cell)
    return failures


def forecast(cells: Sequence[Cell], missing: Sequence[Cell], expected: Mapping[Any, float]) -> str:
    """Returns a sentence with the expected time of the missing cells."""
    minutes = sum(expected[cell] for cell in missing) / 60
    done = f", {len(cells) - len(missing)} of {len(cells)} being there" if len(missing) < len(cells) else ""
    return f"about {minutes:.0f} minutes on two cores for {len(missing)} cells{done}; finished cells are kept"


def finished(cell: Cell, settings: Settings, out: Path) -> dict[str, Any] | None:
    """Returns the cell's result, or None if it has none yet.

    Raises:
      InputError: the result is from other settings, which the message names, or its file is damaged.
    """
    return Ledger(out / "cells").get(cell.name, settings)


def run(cell: Cell, settings: Settings, out: Path) -> dict[str, Any]:
    """Makes the cell's unfinished runs, each in a process of its own, then writes and returns the cell's result.

    Raises:
      InputError: a run ended with an error, or a finished run has other settings; the message names the log or the
        settings.
    """
    folder = out / "runs" / cell.name
    for name, config in settings.items():
        workdir, file = folder / name, folder / f"{name}.json"
        if (workdir / "finished").exists():
            # The cell has no result yet, so `finished` has not compared the settings.
            if changes := differences(json.loads(file.read_bytes()), config):
                raise InputError(f"{workdir} was made with other settings ({changes}): use those, or remove it")
            continue
        write_atomically(file, json.dumps(config, indent=2) + "\n")
        with _timed(folder / f"{name}.seconds") as seconds:
            _train(file, workdir, cell)
        write_atomically(workdir / "finished", seconds.read_text())
    last = list(settings)[-1]
    result = with_nan(_result(folder / last))
    result["seconds"] = sum(float((folder / name / "finished").read_text()) for name in settings)
    Ledger(out / "cells").put(cell.name, settings, result)
    for name in settings:
        shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)
    return result


@contextlib.contextmanager
def _timed(path: Path) -> Iterator[Path]:
    """Adds the seconds spent within to those in the file, which earlier, interrupted attempts spent."""
    before, began = float(path.read_text()) if path.exists() else 0.0, time.monotonic()
    try:
        yield path
    finally:
        write_atomically(path, f"{before + time.monotonic() - began:.1f}\n")


def _train(file: Path, workdir: Path, cell: Cell) -> None:
    log = workdir.parent / f"{workdir.name}.log"
    command = [sys.executable, "-m", "aligner_jax.train", f"--config={CONFIG}:{file}"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (
        log.open("a", encoding="utf-8") as text,
        _killed_with_us(
            subprocess.Popen(
                [*command, f"--workdir={workdir}"], stdout=text, stderr=text, env={**os.environ, "PYTHONPATH": path}
            )
        ) as process,
    ):
        status = process.wait()
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        raise InputError(f"{cell} ended with status {status}: {said} (its log is {log})")


@contextlib.contextmanager
def _killed_with_us(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _result(workdir: Path) -> dict[str, Any]:
    """Returns the values of a run that the tables need."""
    report = json.loads((workdir / "report.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    # The first window includes the compilation.
    speed = {"tokens_per_second": statistics.median(rates[1:] or rates)}
    if "adapters" in report:
        losses = [{name: adapter[name] for name in ("lr", "heldout_loss")} for adapter in report["adapters"]]
        return {"sweep": losses, **speed}
    result = {"parameters": report["num_params"], "file_bytes": report["file_bytes"], **speed}
    if "accuracy" in report["after"]:
        names = ("pairs", "prompts", "loss", "accuracy", "accuracy_interval", "margin", "each")
        return result | {name: report["after"][name] for name in names}
    for prefix, key in (("base_", "before"), ("", "after")):
        result[f"{prefix}loss"] = report[key]["heldout_loss"]
        result[f"{prefix}documents"] = report[key]["documents"]
    return result
