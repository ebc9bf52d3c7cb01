"""Whole runs on a tiny model: contents of a workdir, reports, and user errors."""

import dataclasses
import io
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import run_command
from rich.console import Console
from whole_runs import config_file, run

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.evals import before_after
from aligner_jax.peft import METHODS
from aligner_jax.peft.aligner import AlignerOptions
from aligner_jax.peft.artifact import load_adapter, read_artifact
from aligner_jax.runtime import chips, roofline
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.files import place
from aligner_jax.tasks import training
from aligner_jax.tasks.sft import load_data
from aligner_jax.weights.base import load_base


@pytest.fixture
def settings(tiny_run: dict) -> dict:
    """A config, as nested dicts, of a run with evaluations between its steps and a report with answers."""
    tiny_run["data"]["heldout_rows"] = 3
    return {
        **tiny_run, "optim": {"lr": 0.01, "accumulate": 2}, "log_every": 2, "eval_every": 4,
        "checkpoint": {"every": 2}, "report": {"form": "json_answer", "max_new_tokens": 4, "samples": 1},
    }  # fmt: skip


def test_workdir_holds_what_the_design_promises(settings: dict, tmp_path: Path):
    workdir, model = tmp_path / "run", Path(settings["base"]["path"])
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    adapter, text = run(settings, workdir)

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6, 8]
    wanted = {"step", "loss", "tokens_per_second", "learning_rate", "grad_norm"}
    assert all(wanted <= line.keys() and "mfu" not in line for line in training)
    assert [line["step"] for line in lines if "heldout_loss" in line] == [4, 8]
    assert json.loads((workdir / "config.json").read_text())["optim"]["lr"] == 0.01
    assert list(workdir.glob("events.out.tfevents.*"))
    assert (workdir / "checkpoints" / "8").is_dir()

    base = load_base(model)
    loaded = load_adapter(workdir / "adapter.safetensors", base)
    assert loaded.num_params == adapter.num_params == 2 * 32 + 3 * 4
    assert read_artifact(workdir / "adapter.safetensors").prompt_format == PromptFormat("chat", None)
    assert float(np.abs(np.asarray(loaded.trainable["gates_ln"])).max()) > 0

    result = json.loads((workdir / "report.json").read_text())
    assert result["file_bytes"] == (workdir / "adapter.safetensors").stat().st_size
    assert len(result["after"]["answers"]) == 3
    for shown in ("held-out loss", "answers in the wanted form", "76", "step 8/8", "tokens/s", "left"):
        assert shown in text
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before


@pytest.mark.parametrize(("quantization", "held"), [("int8", "int8"), ("int4", "int4 in groups of 16")])
def test_an_adapter_is_trained_over_a_quantized_base(settings: dict, tmp_path: Path, quantization: str, held: str):
    settings["base"] |= {"quantization": quantization} | ({"group_size": 16} if quantization == "int4" else {})
    settings |= {"steps": 4}
    settings["optim"]["accumulate"] = 1
    settings["report"]["form"] = None
    adapter, text = run(settings, tmp_path / "run")
    path = tmp_path / "run" / "adapter.safetensors"
    base = load_base(settings["base"]["path"])
    count = sum(leaf.size for leaf in jax.tree.leaves(base.params))
    assert f"{count:,} parameters in float32, projections in {held}, frozen" in text
    # The adapter belongs to the base in any quantization.
    assert load_adapter(path, base).num_params == adapter.num_params
    recorded = read_artifact(path).base
    assert recorded is not None
    assert recorded == (base.config, base.fingerprint, held)
    result = json.loads((tmp_path / "run" / "report.json").read_text())
    assert result["after"]["heldout_loss"] < result["before"]["heldout_loss"]


def test_an_address_is_no_workdir():
    with pytest.raises(InputError, match="--workdir=gs://bucket/run is not a folder: mount it"):
        place("gs://bucket/run", "--workdir")


def test_data_of_named_fields_are_counted_and_split_by_prompt(settings: dict, tmp_path: Path):
    questions = ["b", "a", "c", "a", "b"]
    rows = [{"q": question, "good": f"good {i}", "bad": f"bad {i}"} for i, question in enumerate(questions)]
    rows += [{"q": "d", "good": "same", "bad": "same"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings["data"] |= {
        "path": str(path),
        "format": "fields",
        "fields": {"prompt": "q", "chosen": "good", "rejected": "bad"},
        "heldout_rows": 1,
    }
    base = load_base(settings["base"]["path"])

    def load(heldout_rows: int):
        settings["data"]["heldout_rows"] = heldout_rows
        screen = io.StringIO()
        return load_data(parse_config(settings), base, Console(width=200, file=screen)), screen.getvalue()

    data, text = load(1)
    assert [example.answer for example in data.heldout_examples] == ["good 0", "good 4"]
    assert (len(data.train), len(data.heldout), len(data.heldout_prompts)) == (3, 2, 2)
    assert f"data: {path}, 5 examples; dropped 1: equal pair (1)\n" in text
    assert "held out: 2 examples, not 1, so that no prompt is in both\n" in text
    assert load(2)[0].heldout_examples == data.heldout_examples
    data, _ = load(3)
    assert [example.answer for example in data.heldout_examples] == ["good 0", "good 1", "good 3", "good 4"]
    rows[1]["good"] = rows[3]["good"]
    rows[1]["bad"] = rows[3]["bad"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, text = load(3)
    assert [example.answer for example in data.heldout_examples] == ["good 0", "good 3", "good 4"]
    assert "held out: 3 different examples; 1 that repeat one of them are left out\n" in text
    rows[2]["q"] = "a"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"heldout_rows is 4, but .* share prompts with all 5 examples"):
        load(4)


def test_mfu_is_logged_on_known_chips(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    peak, rows, length = 1e9, settings["data"]["batch_size"], settings["data"]["sequence_length"]
    monkeypatch.setitem(chips.CHIPS, "cpu", chips.Chip("cpu", peak, 1e9, 1 << 30, 1e9))
    settings |= {"steps": 2, "eval_every": 0}
    run(settings, tmp_path / "run")
    line, last = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert "heldout_loss" in last
    config = load_base(settings["base"]["path"]).config
    cost = METHODS["aligner"].cost(AlignerOptions(num_tokens=2, start_layer=1), config)
    least, most = (
        roofline.train_step(config, batch_size=rows, sequence_length=length, adapter=cost, targets=share).model_flops
        for share in (0.0, 1.0)
    )
    # FLOPs of the whole padded batch count; tokens count without padding, and packing fills more than half of the
    # batch.
    flops = line["mfu"] * peak / line["tokens_per_second"]
    assert least / (rows * length) < flops < 2 * most / (rows * length)


@pytest.mark.parametrize(("method", "trains_base"), [("full", True), ("bias", False)])
def test_flops_of_a_trained_base_count_its_weights(
    method: str, trains_base: bool, tiny_run: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted, count = [], roofline.train_step

    def spy(model, **given):
        counted.append(given)
        return count(model, **given)

    monkeypatch.setattr(roofline, "train_step", spy)
    run({**tiny_run, "adapter": {"method": method}, "steps": 1}, tmp_path / "run")
    cost = METHODS[method].cost(METHODS[method].options(), load_base(tiny_run["base"]["path"]).config)
    assert [(given["trains_base"], given["adapter"]) for given in counted] == [(trains_base, cost)]


def test_before_is_the_base_itself(settings: dict, tmp_path: Path):
    settings["report"]["form"] = None
    run(settings, tmp_path / "a")
    settings["optim"]["lr"] = 0.0
    run(settings, tmp_path / "b")
    a, b = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert a["before"] == b["before"]
    assert b["after"] == b["before"]
    assert a["after"]["heldout_loss"] < a["before"]["heldout_loss"]


def _write(path: str, text: str):
    Path(path).write_text(text)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s: _write(s["data"]["path"], '{"instruction": "a", "output": "b"}\n{"instruction": \n'),
            "data.jsonl:2",
        ),
        (lambda s: _write(s["data"]["path"], ""), "data.jsonl is empty"),
        (lambda s: _write(s["data"]["path"], '{"instruction": "a"}\n' * 5), "data.jsonl:1"),
        (lambda s: _write(s["data"]["path"], json.dumps({"instruction": "a", "output": "b " * 300})), "data.jsonl:1"),
        (lambda s: s["data"].update(path="/nowhere/data.json"), "/nowhere/data.json"),
        (lambda s: s["data"].update(heldout_rows=12), "heldout_rows is 12"),
        (lambda s: s["base"].update(path="nowhere/model.gguf"), "nowhere/model.gguf"),
        (lambda s: s["adapter"].update(num_token=2), "did you mean 'num_tokens'"),
        (lambda s: s["adapter"].update(key=1), "adapter method 'aligner' has no option 'key'"),
        (lambda s: s["adapter"].update(start_layer=4), "start_layer is 4"),
        (lambda s: s["report"].update(form="sonnet"), "config.report.form"),
    ],
    ids=[
        "broken line",
        "empty",
        "missing field",
        "too long",
        "no data",
        "held out",
        "no base",
        "option",
        "an argument's name",
        "layer",
        "form",
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(settings: dict, tmp_path: Path, change, expected: str):
    if expected == "data.jsonl:1":
        settings["data"]["heldout_rows"] = 0
    change(settings)
    with pytest.raises(InputError) as error:
        run(settings, tmp_path / "run")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_report_answers_a_few_prompts_at_a_time_and_those_that_have_room(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"instruction": f"Name {'very ' * 900 * (i == 11)}number {i}.", "output": f"It is {i}."} for i in range(14)]
    Path(settings["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings["data"] |= {"heldout_rows": 5, "overlong": "drop"}
    _, text = run({**settings, "steps": 1}, tmp_path / "whole")
    assert "held-out: 1 prompts without room for an answer are not asked in the report" in text
    asked: list[int] = []
    real = before_after.sample

    def counted(base, adapter, prompts, **options):
        asked.append(len(prompts))
        return real(base, adapter, prompts, **options)

    monkeypatch.setattr(before_after, "ANSWERS_AT_ONCE", 3)
    monkeypatch.setattr(before_after, "sample", counted)
    run({**settings, "steps": 1}, tmp_path / "parts")
    assert asked == [3, 1, 3, 1]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "parts")]
    assert reports[0]["questions"] == reports[1]["questions"] == [f"Name number {i}." for i in (9, 10, 12, 13)]
    assert reports[0]["after"]["answers"] == reports[1]["after"]["answers"]


def test_what_is_held_out_by_a_file_of_its_own_is_not_trained_on(settings: dict, tmp_path: Path):
    data = Path(settings["data"]["path"])
    heldout = tmp_path / "heldout.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    heldout.write_text("".join(lines[2:4]))
    settings["data"] |= {"heldout_path": str(heldout), "heldout_rows": 0}
    _, text = run({**settings, "steps": 1}, tmp_path / "run")
    assert "training: 2 examples whose prompts are held out are left out" in text
    assert f"training: {len(lines) - 2} documents" in text
    heldout.write_text("".join(lines))
    with pytest.raises(InputError, match=r"all examples of .*data.jsonl have prompts that .*heldout.jsonl holds out"):
        run(settings, tmp_path / "other")


def test_the_command_prints_one_sentence_and_exits_with_1(settings: dict, tmp_path: Path):
    settings["optim"]["learning_rate"] = 0.1
    config = config_file(settings, tmp_path)
    done = run_command("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert done.status == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert "config.optim.learning_rate" in done.err
    assert not (tmp_path / "run").exists()


def test_a_config_for_another_base_trains_and_says_that_the_weights_decide(settings: dict, tmp_path: Path):
    settings["base"]["model"] = "llama_7b"
    settings["report"]["form"] = None
    _, text = run({**settings, "steps": 1}, tmp_path / "run")
    (line,) = [line for line in text.splitlines() if "is not used" in line]
    assert line.startswith("base: config.base.model llama_7b is not used: its vocab_size is 32000, and that of the")
    assert (tmp_path / "run" / "adapter.safetensors").exists()


class Later:
    """A metric of a step that is still running: reading it waits for the end of the step."""

    def __init__(self, value, end: float) -> None:
        self._value, self._end = value, end

    def is_ready(self) -> bool:
        return time.monotonic() >= self._end

    def block_until_ready(self):
        time.sleep(max(0.0, self._end - time.monotonic()))
        return self

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.asarray(self._value, dtype)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_last_line_of_a_log_counts_the_time_of_its_own_steps(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
):
    """Eleven steps take a quarter of a second each, within the call or while the next step is dispatched."""
    settings |= {"steps": 11, "log_every": 5, "eval_every": 0, "checkpoint": {"every": 50}}
    settings["report"]["form"] = None
    make, ends = training.make_program, [0.0]

    def slow(*arguments):
        program = make(*arguments)

        def step(*arguments):
            state, metrics = jax.block_until_ready(program.step(*arguments))
            # Steps wait for each other, as on a device.
            ends.append(max(time.monotonic(), ends[-1]) + 0.25)
            if at_once:
                time.sleep(0.25)
                return state, metrics
            return state, jax.tree.map(lambda x: Later(x, ends[-1]), metrics)

        return dataclasses.replace(program, step=step)

    monkeypatch.setattr(training, "make_program", slow)
    run(settings, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rates = {line["step"]: line["tokens_per_second"] for line in lines if "loss" in line}
    most = settings["data"]["batch_size"] * settings["data"]["sequence_length"] / 0.25
    assert sorted(rates) == [5, 10, 11]
    assert all(rate < 1.5 * most for rate in rates.values()), rates
