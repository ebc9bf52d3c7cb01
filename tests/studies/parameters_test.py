"""The study of trained parameters on a tiny model: what it writes, and how it goes on."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.peft.compact import DTYPES
from aligner_jax.studies import parameters, study
from aligner_jax.studies.families.tasks import FILES
from scripts.lib.tiny_llama import write_tiny_llama

SMALL = [
    "--arms=aligner_1,lora_8", "--tasks=form/json,form/lower", "--budget=4", "--rows=1", "--length=512",
    "--train=8", "--heldout=2", "--prompts=3", "--dtype=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_tiny_llama(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parameters")
    assert run(base, out) == 0
    return out


def run(base: Path, out: Path, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["parameters", f"--base={base}", f"--out={out}", *SMALL, *more])
        return parameters.run(parameters.arguments())


def test_tables_and_figures_are_written(made: Path):
    text = (made / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert {"base", "aligner_1", "lora_8"} <= set(rows)
    for figure in ("form", "form_steps"):
        assert (made / f"{figure}.png").stat().st_size > 5000
        assert (made / f"{figure}.svg").read_text().startswith("<?xml")


def test_every_run_is_kept_with_its_curve(made: Path):
    files = sorted(made.glob("runs/form/*/*.json"))
    # Three rates or more on the first task, one on the second.
    tuned = [file for file in files if file.parent.name == "json" and file.name.startswith("aligner_1-0-")]
    assert len(tuned) >= 3
    assert len([file for file in files if file.parent.name == "lower"]) == 2
    kept = json.loads(tuned[0].read_text())
    assert [point["step"] for point in kept["result"]["points"]] == [0, 3, 4]
    assert kept["result"]["end"] == "budget"
    adapters = {(made / "runs" / file.relative_to(made / "adapters")).with_suffix(".json") for file in
                made.glob("adapters/form/*/*.safetensors")}  # fmt: skip
    assert adapters == set(files)
    assert len(json.loads((made / "answers/form/lower/base-0-0.json").read_text())["result"]["right"]) == 3


def test_nothing_is_trained_or_answered_twice(made: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    before = (made / "table.md").read_bytes()
    monkeypatch.setattr(study, "fit", lambda *args: pytest.fail("a run was trained again"))
    monkeypatch.setattr("aligner_jax.studies.prepared.sample", lambda *args, **kwargs: pytest.fail("answered again"))
    assert run(base, made) == 0
    assert (made / "table.md").read_bytes() == before


def test_an_adapter_that_is_missing_is_trained_again(made: Path, base: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (adapter,) = out.glob("adapters/form/lower/aligner_1-0-*.safetensors")
    before = (out / "table.md").read_text()
    answers = out / "answers" / adapter.relative_to(out / "adapters").with_suffix(".json")
    adapter.unlink()
    answers.unlink()
    assert run(base, out) == 0
    assert adapter.exists()
    assert answers.exists()
    assert (out / "table.md").read_text() == before


def test_a_study_of_one_arm_has_no_share_of_another(base: Path, tmp_path: Path):
    assert run(base, tmp_path, "--arms=aligner_1", "--tasks=form/json") == 0
    assert "## Parameters for" not in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "needed.png").exists()


def test_bits_without_time_are_unfinished(made: Path, base: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(made, out, ignore=shutil.ignore_patterns("bits"))
    assert run(base, out, "--bits", "--minutes=0") == parameters.UNFINISHED
    assert "in fewer bytes" not in (out / "table.md").read_text()


def test_figures_are_drawn_for_new_results_alone(made: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Path] = []
    monkeypatch.setattr(parameters.curve_plot, "plot_courses", lambda *args: drawn.append(args[-1]))
    assert run(base, made) == 0
    assert drawn == [made / "form_steps"]


def test_rounded_aligners_answer_the_same_prompts(made: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(base, made, "--bits") == 0
    text = (made / "table.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| align")
    ]
    found = {row[1]: row for row in rows if row[1] in DTYPES}
    # Aligners alone, with all dtypes; 40 numbers of the tiny model.
    assert list(found) == list(DTYPES)
    assert (found["float32"][2], found["bfloat16"][2:4]) == ("160", ["80", "16.0"])
    kept = sorted(path.name for path in made.glob("bits/form/lower/*.json"))
    assert len(kept) == len(DTYPES)
    assert (made / "form_bytes.svg").read_text().count("int8") >= 1
    # Nothing is answered again, and the table is the same.
    monkeypatch.setattr("aligner_jax.studies.prepared.sample", lambda *args, **kwargs: pytest.fail("answered again"))
    assert run(base, made, "--bits") == 0
    assert (made / "table.md").read_text() == text


def test_preferences_begin_from_the_adapter_of_their_answers(base: Path, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "out"
    pairs = [{"prompt": f"Is {i} big?", "response": [f"It is {i}.", "No."]} for i in range(12)]
    (data / "pref").mkdir(parents=True)
    (data / FILES["pku"]).write_text(json.dumps(pairs))
    flags = [str(data), "--tasks=preference/answers,preference/pairs", "--arms=aligner_1", "--seeds=2"]
    assert run(base, out, *flags) == 0
    of_pairs = [json.loads(file.read_text()) for file in out.glob("runs/preference/pairs/*.json")]
    answers = {file.stem: json.loads(file.read_text()) for file in out.glob("runs/preference/answers/*.json")}
    best = min((each["result"]["loss"], each["settings"]["run"]["rate"]) for name, each in answers.items()
               if name.startswith("aligner_1-0-"))[1]  # fmt: skip
    for each in of_pairs:
        # The loss begins at that of a policy that is its own reference, with rates of DPO.
        assert each["result"]["base_loss"] == each["result"]["points"][0]["loss"] == math.log(2)
        assert each["settings"]["begins"]["rate"] == best
    assert {round(each["settings"]["run"]["rate"], 6) for each in of_pairs} >= {0.000667, 0.002, 0.006}
    assert {each["settings"]["run"]["seed"] for each in of_pairs} == {0, 1}
    right = json.loads(next(out.glob("answers/preference/pairs/aligner_1-0-*.json")).read_text())["result"]["right"]
    assert len(right) == 3
    assert set(right) <= {0, 0.5, 1}
    before = json.loads((out / "answers/preference/pairs/base-0-0.json").read_text())["result"]["right"]
    assert before == [0.5] * 3
    for family in ("answers", "pairs"):
        assert f"## {family}: preference/{family}" in (out / "table.md").read_text()
    assert run(base, out, *flags) == 0


def test_pairs_without_their_answers_wait(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    pairs = [{"prompt": f"Is {i} big?", "response": [f"It is {i}.", "No."]} for i in range(12)]
    (data / "pref").mkdir(parents=True)
    (data / FILES["pku"]).write_text(json.dumps(pairs))
    flags = [str(data), "--tasks=preference/answers,preference/pairs", "--arms=aligner_1", "--minutes=0"]
    assert run(base, tmp_path / "out", *flags) == parameters.UNFINISHED


def test_other_settings_are_refused_by_name(made: Path, base: Path):
    with pytest.raises(InputError, match=r"rule\.budget is 5 and was 4"):
        run(base, made, "--budget=5")
    with pytest.raises(InputError, match=r"base is '\w+ bfloat16' and was '\w+ float32'"):
        run(base, made, "--dtype=bfloat16")


def test_a_study_without_time_begins_nothing_and_says_so(base: Path, tmp_path: Path, capsys):
    assert run(base, tmp_path, "--minutes=0") == parameters.UNFINISHED
    assert not list(tmp_path.glob("runs/**/*.json"))
    printed = capsys.readouterr()
    assert "the same command goes on" in printed.err
    assert re.search(r"about \d+ minutes on two cores for 10 runs", printed.out)
