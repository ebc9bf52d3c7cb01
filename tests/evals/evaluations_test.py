"""Whole evaluations on a tiny model: results, resuming, and user errors."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE, STDOUT

import places
import pytest
from rich.console import Console

from aligner_jax.decoding.engine import Engine
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import parse_evaluate_config, parse_options
from aligner_jax.evals.run import evaluate, find_evaluation
from aligner_jax.evals.subject import subject_name
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.runtime.command import load_config
from aligner_jax.weights.base import load_base

CONFIGS = places.CONFIGS / "eval"


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict:
    lines = [
        {
            "question_id": i,
            "category": "generic",
            "turns": [f"What is the number {'very ' * (i % 2 * 20)}{i}?", "And now?"],
        }
        for i in range(5)
    ]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "base": {"path": str(tiny_model), "dtype": "float32"},
        "evaluation": {"name": "vicuna", "path": str(path), "max_new_tokens": 6, "template": "auto"},
        "batch_size": 2,
    }


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path, randomized) -> str:
    base = load_base(tiny_model)
    path = tmp_path / "runs" / "some_run" / "adapter.safetensors"
    path.parent.mkdir(parents=True)
    trained = randomized(init_adapter("aligner", base.config, start_layer=0))
    save_adapter(trained, path, base=base, prompt_format={"template": "chat", "system": "Be brief."})
    return str(path)


def _evaluate(settings: dict, adapter: str | None, folder: Path) -> str:
    screen = io.StringIO()
    console = Console(width=100, force_terminal=False, file=screen)
    evaluate(parse_evaluate_config(settings), adapter, folder, console)
    return screen.getvalue()


def test_responses_are_files_for_a_judge_and_results_are_json(settings: dict, adapter: str, tmp_path: Path):
    text = _evaluate(settings, adapter, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["evaluation"] == "vicuna"
    assert results["scores"]["model"] == "some_run"
    assert results["scores"]["responses"] == 5
    responses = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert [set(response) for response in responses] == [{"model", "question_id", "category", "prompt", "response"}] * 5
    assert [response["question_id"] for response in responses] == ["0", "1", "2", "3", "4"]
    with (tmp_path / "out" / "responses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file_name"], row["qa_pair_id"], row["prompt"], row["response"]) for row in rows] == [
        (each["model"], each["question_id"], each["prompt"], each["response"]) for each in responses
    ]
    assert any(response["response"] for response in responses)
    for shown in ("responses: 5 of 5", "Vicuna-bench", "some_run", "aligner(", "results.json"):
        assert shown in text
    assert "prompts: template chat, with the system prompt 'Be brief.'\n" in text
    assert "prompts: template none\n" in _evaluate(settings, None, tmp_path / "base")
    other = [json.loads(line) for line in (tmp_path / "base" / "responses.jsonl").read_text().splitlines()]
    assert [each["response"] for each in other] != [each["response"] for each in responses]


def test_a_killed_evaluation_goes_on_and_its_files_are_those_of_one_that_was_not(
    settings: dict, adapter: str, tmp_path: Path, monkeypatch
):
    _evaluate(settings, adapter, tmp_path / "whole")
    requests, turns, stop = [], 0, 0
    add, turn = Engine.add, Engine.turn

    def counted(self, request):
        requests.append(request.draw)
        return add(self, request)

    def interrupted(self):
        nonlocal turns
        turns += 1
        if turns == stop:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(Engine, "add", counted)
    monkeypatch.setattr(Engine, "turn", interrupted)
    kept = tmp_path / "killed" / "generated.jsonl"
    _evaluate(settings, adapter, tmp_path / "again")
    # One turn before the last one.
    stop, turns = turns - 1, 0
    with pytest.raises(KeyboardInterrupt):
        _evaluate(settings, adapter, tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    assert len(kept.read_text().splitlines()) > 1
    requests.clear()
    stop = 0
    assert "of 5" in _evaluate(settings, adapter, tmp_path / "killed")
    assert 0 < len(requests) < 5
    requests.clear()
    _evaluate(settings, adapter, tmp_path / "killed")
    assert requests == []
    names = ["results.json", "responses.jsonl", "responses.csv", "generated.jsonl"]
    assert [(tmp_path / "killed" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]


def test_the_command_goes_on_after_a_real_kill(settings: dict, adapter: str, tmp_path: Path):
    asked = [{"question_id": i, "category": "generic", "turns": [f"What is the number {i}?"]} for i in range(60)]
    Path(settings["evaluation"]["path"]).write_text("".join(json.dumps(line) + "\n" for line in asked))
    settings["batch_size"] = 1
    config = tmp_path / "vicuna.py"
    config.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings!r})\n"
    )

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "aligner_jax.evaluate", f"--config={config}", f"--adapter={adapter}"]
        return subprocess.Popen([*command, f"--out={tmp_path / name}"], stdout=PIPE, stderr=STDOUT, text=True)

    whole, kept = start("whole"), tmp_path / "killed" / "generated.jsonl"
    process = start("killed")
    # The first line is the header; the second is the first finished batch.
    while process.poll() is None and not (kept.exists() and kept.read_bytes().count(b"\n") >= 2):
        time.sleep(0.001)
    process.kill()
    assert process.communicate()[0] is not None
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    begun = kept.read_bytes()
    for process in (start("killed"), whole):
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert kept.read_bytes().startswith(begun[: begun.rindex(b"\n") + 1])
    for name in ("results.json", "responses.jsonl", "responses.csv", "generated.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_made_otherwise_needs_another_folder(settings: dict, adapter: str, tmp_path: Path):
    settings["limit"] = 1
    _evaluate(settings, None, tmp_path / "out")
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for change, name in (
        ({"seed": 1}, "config.seed"),
        ({"batch_size": 4}, "config.batch_size"),
        ({"limit": 2}, "config.limit"),
        ({"evaluation": settings["evaluation"] | {"top_k": 3}}, "config.evaluation.top_k"),
        ({"base": settings["base"] | {"dtype": "bfloat16"}}, "base"),
        ({}, "adapter"),
    ):
        with pytest.raises(InputError, match=rf"generated.jsonl was made with another {name}; give another folder"):
            _evaluate(settings | change, None if change else adapter, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == there


def test_the_results_of_another_evaluation_are_not_written_over(settings: dict, tmp_path: Path):
    settings["limit"] = 1
    (tmp_path / "out").mkdir()
    for there, message in (
        ('{"evaluation": "gsm8k"}', r"results.json is of the evaluation 'gsm8k', not of 'vicuna'; give another folder"),
        ("[]", r"results.json is not what an evaluation writes"),
    ):
        (tmp_path / "out" / "results.json").write_text(there)
        with pytest.raises(InputError, match=message):
            _evaluate(settings, None, tmp_path / "out")
        assert (tmp_path / "out" / "results.json").read_text() == there


def test_results_are_written_whether_or_not_anybody_reads_the_table(settings: dict, tmp_path: Path):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "Vicuna-bench" in text:
                raise BrokenPipeError
            return super().write(text)

    settings["limit"] = 1
    config, console = parse_evaluate_config(settings), Console(width=100, force_terminal=False, file=Gone())
    with pytest.raises((BrokenPipeError, SystemExit)):
        evaluate(config, None, tmp_path / "out", console)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["responses"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": {"name": "vicunna"}}, r"'vicunna', which is no evaluation; did you mean vicuna\?"),
        ({"evaluation": {"name": "vicuna"}}, "config.evaluation.path is not set"),
        (
            {"evaluation": {"name": "vicuna", "path": "x", "tempreature": 1}},
            "did you mean config.evaluation.temperature",
        ),
        ({"evaluation": {}}, "config.evaluation.name is not set"),
        ({"base": None}, "config.base is not set"),
        ({"batch": 3}, "did you mean config.batch_size"),
        ({"base": {"path": "none"}}, "there is no base model at none"),
        # The check comes before the base is loaded, which takes longer.
        (
            {"base": {"path": "none"}, "evaluation": {"name": "vicuna", "path": "no.jsonl"}},
            r"^config.evaluation.path is no.jsonl, which does not exist$",
        ),
        (
            {"evaluation": {"name": "harness", "tasks": ["x"], "mmlu": "no.zip"}},
            r"^config.evaluation.mmlu is no.zip, which does not exist; its authors publish the files as data.tar",
        ),
        ({"mesh": {"data": 2}}, "does not fit 1 devices"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict, tmp_path: Path, change: dict, message: str):
    with pytest.raises(InputError, match=message):
        _evaluate(settings | change, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_that_an_adapter_does_not_record_are_not_guessed(settings: dict, adapter: str, tmp_path: Path):
    path = tmp_path / "foreign.safetensors"
    save_adapter(load_adapter(adapter), path)
    with pytest.raises(InputError, match=r"adapter foreign does not record how .*config.evaluation.template=alpaca"):
        _evaluate(settings, str(path), tmp_path / "out")
    settings["evaluation"]["template"] = "alpaca"
    assert "prompts: template alpaca\n" in _evaluate(settings, str(path), tmp_path / "out")
    problems = tmp_path / "test.jsonl"
    problems.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    settings["evaluation"] = {"name": "gsm8k", "path": str(problems), "protocol": "template"}
    with pytest.raises(InputError, match="foreign does not record how"):
        _evaluate(settings, str(path), tmp_path / "problems")
    # The other protocols of GSM8K have their own prompts.
    settings["evaluation"] |= {"protocol": "authors", "max_new_tokens": 4}
    assert "prompts:" not in _evaluate(settings, str(path), tmp_path / "problems")


def test_answers_are_read_anew_with_another_marker(settings: dict, tmp_path: Path, monkeypatch):
    problems = tmp_path / "test.jsonl"
    problems.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 3)
    settings["evaluation"] = {"name": "gsm8k", "path": str(problems), "max_new_tokens": 4}
    _evaluate(settings, None, tmp_path / "out")
    monkeypatch.setattr(Engine, "add", lambda *_: pytest.fail("answers are made again"))
    settings["evaluation"]["marker"] = "#### "
    assert "answers with '####'" in _evaluate(settings, None, tmp_path / "out")
    made_from = json.loads((tmp_path / "out" / "results.json").read_text())["made_from"]
    assert made_from["config.evaluation.marker"] == "#### "
    settings["evaluation"]["marker"] = " "
    with pytest.raises(InputError, match=r"config.evaluation.marker is empty"):
        _evaluate(settings, None, tmp_path / "out")


def test_the_weights_decide_and_not_the_architecture_that_a_config_names(settings: dict, tmp_path: Path):
    settings["base"]["model"] = "smollm2_135m"
    assert "config.base.model smollm2_135m is not used" in _evaluate(settings, None, tmp_path / "out").replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "turns": []}', "field 'turns' is not a list that begins with a question"),
        ('{"turns": ["What?"]}', "it has no 'question_id'"),
        ('{"question_id": 1, "turns": ["\\ud800"]}', "the field 'turns' holds half a surrogate pair"),
        ('{"question_id": "\\ud800", "turns": ["What?"]}', "the field 'question_id' holds half a surrogate pair"),
        ('{"question_id": 1, "turns": ["What?"], "category": "\\ud800"}', "'category' holds half a surrogate pair"),
        ("{", "is not JSON"),
    ],
)
def test_a_line_that_is_no_question_is_named(settings: dict, tmp_path: Path, line: str, message: str):
    path = Path(settings["evaluation"]["path"])
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(InputError, match=f"question.jsonl:2.*{message}"):
        _evaluate(settings, None, tmp_path / "out")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_is_one(name: str):
    config = parse_evaluate_config(load_config(CONFIGS / f"{name}.py"))
    parse_options(find_evaluation(config.evaluation.name), config)


def test_the_mmlu_and_gsm8k_protocols_run_whole(settings: dict, tmp_path: Path):
    folder = tmp_path / "mmlu" / "test"
    folder.mkdir(parents=True)
    (folder / "anatomy_test.csv").write_text("Which?,a,b,c,d,A\nWhat?,e,f,g,h,B\n")
    settings["evaluation"] = {"name": "mmlu_generated", "path": str(folder.parent), "max_new_tokens": 4}
    assert "accuracy" in _evaluate(settings, None, tmp_path / "out_mmlu")
    scores = json.loads((tmp_path / "out_mmlu" / "results.json").read_text())["scores"]
    assert (scores["questions"], scores["prompt"], set(scores["subjects"])) == (2, "base", {"anatomy"})
    problems = tmp_path / "test.jsonl"
    problems.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 3)
    settings["evaluation"] = {"name": "gsm8k", "path": str(problems), "max_new_tokens": 4}
    assert "0 of 3" in _evaluate(settings, None, tmp_path / "out_gsm8k")
    scores = json.loads((tmp_path / "out_gsm8k" / "results.json").read_text())["scores"]
    assert (scores["problems"], scores["solved"], scores["answers_with_the_marker"]) == (3, 0, 0.0)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (None, "base"),
        ("runs/alpaca/adapter.safetensors", "alpaca"),
        ("a/b.pth", "b"),
        ("runs/s/adapter_2.safetensors", "adapter_2"),
    ],
)
def test_a_subject_is_named_by_its_adapter(path: str | None, name: str):
    assert subject_name(path) == name


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[", b"[]", b"{}", b'{"evaluation": 3}', b"[" * 20_000, b'{"evaluation": ' + b"9" * 5000, b"\xff",
        b'{"a": 1, "a": 2}',
    ],
    ids=lambda content: str(content[:20]),
)  # fmt: skip
def test_results_that_no_evaluation_wrote_are_not_overwritten(settings: dict, tmp_path: Path, content: bytes):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json is not what an evaluation writes; give another folder"):
        _evaluate(settings, None, tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_bytes() == content
