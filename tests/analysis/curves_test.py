"""Curves of runs: their values from metrics.jsonl, sweeps and preferences, figures, and mistakes in folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_runs import run_command

from aligner_jax.analysis import about_runs, curve_figures
from aligner_jax.analysis.curves import read_courses
from aligner_jax.errors import InputError

LINES = [
    {"step": 10, "loss": 2.0, "learning_rate": 0.5, "tokens_per_second": 5.0, "grad_norm": 1.0},
    {"step": 20, "loss": 1.0, "learning_rate": 0.25, "tokens_per_second": 90.0, "seconds": 120.0},
    {"step": 20, "heldout_loss": 1.5, "seconds": 150.0},
    {"step": 30, "loss": None, "learning_rate": 0.1, "tokens_per_second": 110.0, "seconds": 180.0},
    {"step": 30, "heldout_loss": 1.75, "seconds": 180.0},
]
SWEEP = [
    {"step": 1, "loss": 2.5, "loss_0": 2.0, "loss_1": 3.0, "learning_rate": 0.1, "learning_rate_0": 0.1,
     "learning_rate_1": 0.2, "tokens_per_second": 7.0},
    {"step": 1, "heldout_loss_0": 2.25, "heldout_loss_1": 3.25},
]  # fmt: skip


def write_run(folder: Path, lines: list[dict], *, torn: str = "", base: float | None = None, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    (folder / "config.json").write_text(json.dumps(config))
    if base is not None:
        (folder / "report.json").write_text(json.dumps({"before": {"heldout_loss": base}}))
    return folder


def test_a_course_has_the_values_of_the_file(tmp_path):
    (course,) = read_courses([write_run(tmp_path / "run", LINES, torn='{"step": 40, "lo', base=2.5)])
    assert (course.label, course.base_loss, course.is_sft) == ("run", 2.5, True)
    loss = course.curve("loss")
    assert loss.steps_s.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(loss.values_s, [2.0, 1.0, np.nan])
    assert course.curve("heldout_loss").steps_s.tolist() == [20, 30]
    assert len(course.curve("heldout_accuracy")) == 0


def test_a_sweep_has_a_course_for_every_adapter(tmp_path):
    first, second = read_courses([write_run(tmp_path / "sweep", SWEEP)])
    assert [first.label, second.label] == ["sweep: adapter 0, rate 0.1", "sweep: adapter 1, rate 0.2"]
    assert [course.curve("loss").values_s.tolist() for course in (first, second)] == [[2.0], [3.0]]
    assert second.curve("learning_rate").values_s.tolist() == [0.2]
    assert second.curve("heldout_loss").values_s.tolist() == [3.25]
    assert second.curve("tokens_per_second").values_s.tolist() == [7.0]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name / "run", LINES) for name in ("a", "b")]
    assert [course.label for course in read_courses(folders)] == ["a/run", "b/run"]
    with pytest.raises(InputError, match="given twice"):
        read_courses([folders[0], folders[0]])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "it has no metrics.jsonl"), ("", "no line of metrics yet"), ("{}\n", r"metrics\.jsonl:1")],
)
def test_a_folder_without_metrics_is_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_courses([tmp_path])


def test_too_many_curves_are_refused(tmp_path):
    line = {"step": 1, **{f"loss_{i}": 1.0 for i in range(65)}}
    with pytest.raises(InputError, match="at most 64 curves"):
        read_courses([write_run(tmp_path / "run", [line])])


def drawn(monkeypatch, draw, courses):
    """Returns the figure that a function draws."""
    made = []
    monkeypatch.setattr(curve_figures, "picture", lambda name, caption, figure: made.append(figure))
    draw(courses)
    return made[0]


def test_figures_have_a_labelled_panel_for_every_metric_and_a_curve_for_every_run(tmp_path, monkeypatch):
    courses = read_courses([write_run(tmp_path / "one", LINES, base=2.5), write_run(tmp_path / "two_$x$", LINES)])
    made = drawn(monkeypatch, curve_figures.training_curves, courses)
    assert [axes.get_ylabel() for axes in made.axes] == [
        "training loss\n(nats a token)", "held-out loss\n(nats a token)", "learning rate",
    ]  # fmt: skip
    assert made.axes[-1].get_xlabel() == "optimizer steps"
    curves = list(made.axes[0].lines)
    assert [line.get_xdata().tolist() for line in curves] == [[10, 20, 30]] * 2
    assert len({line.get_color() for line in curves}) == len({line.get_marker() for line in curves}) == 2
    assert [text.get_text() for text in made.axes[1].texts] == ["base"]
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["one", r"two_\$x\$"]
    speed = drawn(monkeypatch, curve_figures.speed_curves, courses)
    assert [axes.get_ylabel() for axes in speed.axes] == ["gradient norm", "tokens per second"]


def test_preferences_have_an_accuracy_and_no_tokens_in_the_unit(tmp_path, monkeypatch):
    line = {"step": 1, "loss": 0.7, "heldout_accuracy": 0.5, "heldout_accuracy_low": 0.4, "heldout_accuracy_high": 0.6}
    courses = read_courses([write_run(tmp_path / "run", [line], objective={"name": "dpo"})])
    made = drawn(monkeypatch, curve_figures.training_curves, courses)
    assert [axes.get_ylabel() for axes in made.axes] == ["training loss\n(nats)", "held-out accuracy\n(%)"]
    assert made.axes[1].lines[0].get_ydata().tolist() == [50.0]
    assert len(made.axes[1].collections) == 1


def test_the_table_says_where_runs_ended(tmp_path, monkeypatch):
    for name in ("training_curves", "speed_curves"):
        monkeypatch.setattr(about_runs, name, lambda courses: None)
    (section,) = about_runs.sections(read_courses([write_run(tmp_path / "run", LINES)]))
    (row,) = section.tables[0].rows
    cells = dict(zip(section.tables[0].columns, row, strict=True))
    assert np.isnan(cells.pop("training loss"))
    assert cells == {
        "run": "run", "steps": 30, "held-out loss": 1.75, "best held-out loss": 1.5, "at step": 20,
        "tokens per second": 100, "minutes": 3.0,
    }  # fmt: skip


def test_the_command_writes_figures_tables_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # tables wrap names where there is less room
    runs = [write_run(tmp_path / "one", LINES), write_run(tmp_path / "sweep", SWEEP)]
    out = tmp_path / "out"
    ended = run_command("analyze", *(f"--run={run}" for run in runs), f"--out={out}")
    assert (ended.status, ended.err) == (0, "")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "analysis.json", "figures/training_curves.png", "figures/training_curves.svg", "figures/training_speed.png",
        "figures/training_speed.svg", "index.html", "runs.csv",
    ]  # fmt: skip
    assert "sweep: adapter 1, rate 0.2" in ended.out
    assert (out / "figures/training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_left_out_of_the_figures(tmp_path):
    lines = [
        {"step": 1, "loss": 1e308, "tokens_per_second": None}, {"step": 2, "loss": -1e308, "tokens_per_second": None},
        {"step": 3, "loss": 2.0, "tokens_per_second": None},
    ]  # fmt: skip
    courses = read_courses([write_run(tmp_path / "run", lines)])
    np.testing.assert_array_equal(courses[0].curve("loss").values_s, [np.nan, np.nan, 2.0])
    (section,) = about_runs.sections(courses)
    cells = dict(zip(section.tables[0].columns, section.tables[0].rows[0], strict=True))
    assert (cells["training loss"], cells["tokens per second"]) == (2.0, None)


def test_a_run_without_losses_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl has no losses yet$"):
        read_courses([write_run(tmp_path / "run", [{"step": 1}])])


def test_a_run_is_not_analyzed_together_with_adapters(tmp_path):
    run = write_run(tmp_path / "one", LINES)
    ended = run_command("analyze", f"--run={run}", "--adapter=a.safetensors", f"--out={tmp_path / 'out'}")
    assert ended.status == 1
    assert "in a call of its own" in ended.err
    assert not (tmp_path / "out").exists()
    ended = run_command("analyze", f"--run={run}")
    assert (ended.status, ended.err) == (1, "error: say where to write the curves of --run: --out=DIR\n")
