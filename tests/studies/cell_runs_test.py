"""aligner_jax/studies/cell_runs.py: cells with simulated runs."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies import cell_runs


@dataclasses.dataclass(frozen=True)
class _Cell:
    name: str


def test_a_cell_is_made_of_its_runs_and_of_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs, begun = cell_runs, []

    def train(file: Path, workdir: Path, cell) -> None:
        begun.append(workdir.name)
        if workdir.name == "second" and begun.count("second") == 1:
            raise InputError("it ended")
        (workdir / "checkpoints").mkdir(parents=True)
        after = {"accuracy": 0.5} | dict.fromkeys(("pairs", "prompts", "loss", "accuracy_interval", "margin", "each"))
        (workdir / "report.json").write_text(json.dumps({"num_params": 8, "file_bytes": 9, "after": after}))
        speeds = [1, 40, 50, 60] if workdir.name == "second" else [7]
        lines = [{"tokens_per_second": speed} for speed in speeds] + [{"heldout_loss": 1.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(runs, "_train", train)
    cell, settings = _Cell("a"), {"first": {"steps": 1}, "second": {"steps": 2}}
    assert runs.finished(cell, settings, tmp_path) is None
    with pytest.raises(InputError, match="it ended"):
        runs.run(cell, settings, tmp_path)
    # Its first run exists, but with other settings.
    with pytest.raises(InputError, match=r"a/first was made with other settings \(steps is 3 and was 1\)"):
        runs.run(cell, {**settings, "first": {"steps": 3}}, tmp_path)
    assert begun == ["first", "second"]
    folder = tmp_path / "runs" / "a"
    (folder / "first" / "finished").write_text("12.5\n")
    # Interrupted runs count in the time, too.
    assert float((folder / "second.seconds").read_text()) < 5
    (folder / "second.seconds").write_text("100.0\n")
    result = runs.run(cell, settings, tmp_path)
    assert begun == ["first", "second", "second"]
    # The first window includes compilation.
    assert result["tokens_per_second"] == 50
    assert 112.5 <= result["seconds"] < 120
    assert [path.name for path in tmp_path.rglob("checkpoints")] == []
    # Values that are not finite are null in reports and kept results, and numbers again when read.
    assert math.isnan(result["loss"])
    assert "NaN" not in (tmp_path / "cells" / "a.json").read_text()
    kept = runs.finished(cell, settings, tmp_path)
    assert kept is not None
    np.testing.assert_equal(kept, result)
    with pytest.raises(InputError, match=r"a\.json was made with other settings \(second\.steps is 3 and was 2\)"):
        runs.finished(cell, {**settings, "second": {"steps": 3}}, tmp_path)
    for damaged in ("{", "{}", "[]"):
        (tmp_path / "cells" / "a.json").write_text(damaged)
        with pytest.raises(InputError, match=r"a\.json cannot be used \(\w+\): remove it"):
            runs.finished(cell, settings, tmp_path)


def test_what_is_left_is_told_by_what_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    runs = cell_runs
    cells = [_Cell(name) for name in "abcd"]
    expected = dict(zip(cells, (60.0, 600.0, 120.0, 180.0), strict=True))

    def run(cell, settings, out) -> dict:
        if cell.name == "b":
            raise InputError("it ended")
        return {"seconds": 2 * expected[cell]}

    monkeypatch.setattr(runs, "run", run)
    assert "about 16 minutes on two cores for 4 cells;" in runs.forecast(cells, cells, expected)
    assert "about 5 minutes on two cores for 2 cells, 2 of 4 being there;" in runs.forecast(cells, cells[2:], expected)
    made: list[str] = []
    failures = runs.make(
        cells, lambda cell: {}, expected, {}, tmp_path, line=lambda _: "done", after=lambda cell: made.append(cell.name)
    )
    assert [str(failure) for failure in failures] == ["it ended"]
    assert made == ["a", "c", "d"]
    # Finished cells took twice as long as expected, so the forecast doubles.
    said = [line.partition("]")[2].partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == ["done; about 30 minutes left", "failed", "done; about 6 minutes left", "done"]
