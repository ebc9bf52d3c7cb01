"""Plans of evaluations on TPUs: the planned programs are those that run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_runs import Ended, run_command
from places import ROOT
from rich.console import Console

from aligner_jax.decoding import engine, programs
from aligner_jax.decoding.lengths import prompts_at_once
from aligner_jax.errors import InputError
from aligner_jax.evals import scoring
from aligner_jax.evals.generating import Prompt, generate
from aligner_jax.evals.interface import parse_evaluate_config
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.planning import engine_programs, inference_plan, inference_table
from aligner_jax.planning.compiled import Compiled, compile_for
from aligner_jax.planning.inference_plan import EvaluationPlan, ProgramPlan, make_evaluation_plan
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import chips, roofline

MODEL = llama_config("stories_260k")
COMPILED = Compiled(0, 16 << 30, 16 << 30, None, None, None, None, 0.0)
NEW = ProgramPlan("new tokens", 8 << 30, True, 4 << 30, {"all-gather": 98 << 30}, 9.0)
PLAN = EvaluationPlan(
    topology="v5e:2x4", devices=8, mesh={"data": 1, "fsdp": 4, "tensor": 2}, rows=32, tokens=1024, new_tokens=512,
    padded_tokens=1024, slots=1536, adapter="aligner(num_tokens=1)", adapter_path=None, adapter_params=5056,
    weight_dtype="bfloat16", hbm_bytes=16 << 30, weights_bytes=2 << 30, cache_bytes=3 << 30,
    programs=(dataclasses.replace(NEW, name="prompts", collective_bytes={}), NEW), roofline_seconds=0.058,
    bound="network",
)  # fmt: skip


def config(**changed: Any):
    return parse_evaluate_config(
        {
            "base": {"path": "nowhere", "model": "stories_260k", "dtype": "bfloat16"},
            "evaluation": {"name": "gsm8k"}, "batch_size": 4, **changed,
        }
    )  # fmt: skip


def run(*arguments: str) -> Ended:
    return run_command("compile", *arguments, folder=ROOT)


def test_the_command_plans_an_evaluation():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    done = run(
        "--config=configs/eval/gsm8k.py", "--config.base.model=stories_260k", "--config.batch_size=4",
        "--config.mesh.tensor=1", "--config.mesh.fsdp=4", "--topology=v5e:2x2", "--tokens=128", "--new_tokens=64",
        "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    (plan,) = map(json.loads, done.out.splitlines())
    assert (plan["topology"], plan["devices"], plan["mesh"]["fsdp"], plan["rows"]) == ("v5e:2x2", 4, 4, 4)
    # Keys and values of one row with 192 slots, two bytes each; a quarter of the weights.
    assert plan["cache_bytes"] == 2 * MODEL.num_layers * 192 * MODEL.num_kv_heads * MODEL.head_dim * 2
    assert 4 * plan["weights_bytes"] == pytest.approx(2 * 260_032, rel=0.02)
    assert [program["name"] for program in plan["programs"]] == ["scores", "prompts", "new tokens"]
    assert all(program["fits"] and program["collective_bytes"]["all-gather"] > 0 for program in plan["programs"])
    # Besides weights, a call sends the rows' tokens, lengths and ends, so that every device has those of all rows.
    sent = plan["programs"][2]["collective_bytes"]
    assert (sent.keys(), plan["bound"]) == ({"all-gather", "all-reduce"}, "network")
    assert sent["all-reduce"] < 1024
    # A device receives three quarters of an array that four devices gather, and twice so much of one that they sum; a
    # call makes eight tokens.
    network = chips.CHIPS["TPU v5 lite"].network_bytes_per_second
    received = (sent["all-gather"] + 2 * sent["all-reduce"]) * 3 / 4
    assert plan["roofline_seconds"] == pytest.approx(received / 8 / network)


def test_on_one_device_nothing_is_sent_and_memory_bounds_a_token():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    plan = make_evaluation_plan(config(), MODEL, "v5e:2x2", topology_devices("v5e:2x2", 1), tokens=128, new_tokens=64)
    assert [program.collective_bytes for program in plan.programs] == [{}, {}, {}]
    assert plan.fits
    assert plan.bound == "memory"
    chip, cost = chips.CHIPS["TPU v5 lite"], roofline.decode_step(MODEL, batch_size=4, length=192)
    assert plan.roofline_seconds == pytest.approx(cost.hbm_bytes / chip.hbm_bytes_per_second)
    assert inference_table.advice(plan) is None


def test_7b_answers_on_one_chip_since_neither_cache_nor_weights_are_copied():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    model, devices = llama_config("llama2_7b"), topology_devices("v5e:2x2", 1)
    plan = make_evaluation_plan(config(), model, "v5e:2x2", devices, tokens=960, new_tokens=64)
    assert plan.fits
    assert (plan.padded_tokens, plan.slots) == (1024, 1024)
    assert (plan.weights_bytes + (plan.cache_bytes or 0)) / 2**30 == pytest.approx(14.55, abs=0.01)
    assert plan.programs[2].peak_bytes < 14.60 * 2**30
    # Prompts of 960 tokens are padded to 1,024, which the attention kernel takes: no scores are in memory.
    assert plan.programs[1].peak_bytes < 15.11 * 2**30


type Shapes = list[tuple[int, ...]]
"""Shapes of all arguments of a program but weights, adapter and stop tokens."""


def shapes_of(*arguments: Any) -> Shapes:
    return [leaf.shape for leaf in jax.tree.leaves(arguments)]


def taken(jitted: Any, arguments: tuple[Any, ...], static: dict[str, Any]) -> tuple[str, Shapes, int | None] | None:
    """Returns a program's name, the shapes that it takes and its number of steps; None for programs of the start."""
    if jitted is PROGRAMS["scores"]:
        return "scores", shapes_of(arguments[2]), None
    if jitted is PROGRAMS["admit"]:
        return "admit", shapes_of(*arguments[3:5]), None
    return ("decode", shapes_of(*arguments[2:4]), static["count"]) if jitted is PROGRAMS["decode"] else None


PROGRAMS = {"scores": scoring.hidden, "admit": programs.admit, "decode": programs.decode}


def planned(monkeypatch: pytest.MonkeyPatch, model: LlamaConfig, **given: Any) -> list[Any]:
    """Returns the programs that a plan on one device compiles, without compiling the large ones."""
    seen: list[Any] = []

    def compiled(chip, jitted, *arguments, **static):
        program = taken(jitted, arguments, static)
        if program is None:
            return compile_for(chip, jitted, *arguments, **static)
        seen.append(program)
        return dataclasses.replace(COMPILED, sent=[])

    monkeypatch.setattr(inference_plan, "compile_for", compiled)
    monkeypatch.setattr(engine_programs, "compile_for", compiled)
    make_evaluation_plan(config(), model, "v5e:2x2", topology_devices("v5e:2x2", 1), **given)
    return seen


@pytest.mark.parametrize(("tokens", "new_tokens"), [(5, 12), (100, 60), (200, 100), (300, 12), (450, 50), (420, 92)])
def test_the_planned_programs_are_those_of_the_evaluation(
    tokens: int, new_tokens: int, tiny_subject: Callable[..., Subject], tmp_path: Path, monkeypatch
):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")

    class Ran(Exception):
        pass

    subject, ran = tiny_subject(batch_size=4), []

    def seen(name: str) -> Callable:
        def run(*arguments, **static):
            ran.append(taken(PROGRAMS[name], arguments, static))
            # The prefill goes on, to the first program that decodes.
            if name == "admit":
                return PROGRAMS[name](*arguments, **static)
            raise Ran

        return run

    monkeypatch.setattr(scoring, "hidden", seen("scores"))
    monkeypatch.setattr(programs, "admit", seen("admit"))
    monkeypatch.setattr(programs, "decode", seen("decode"))
    # The evaluation that is planned runs on a TPU.
    monkeypatch.setattr(engine, "prompts_at_once", lambda *sizes: prompts_at_once(*sizes[:3], "tpu"))
    ids, kept, quiet = (1,) * tokens, ResultStore(tmp_path / "kept.jsonl", {}), Console(quiet=True)
    for run_it in (
        lambda: scoring.score(subject, [scoring.Continuation((*ids, 1), 1)], kept, quiet),
        lambda: generate(subject, [Prompt(ids, new_tokens)], kept, quiet),
    ):
        with pytest.raises(Ran):
            run_it()
    monkeypatch.undo()
    assert planned(monkeypatch, subject.base.config, tokens=tokens, new_tokens=new_tokens) == ran
    assert [name for name, *_ in ran] == ["scores", "admit", "decode"]


def test_the_named_adapter_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    path, devices, compiled = tmp_path / "a.safetensors", topology_devices("v5e:2x2", 1), []

    def seen(*arguments, **static):
        if arguments[1] in (scoring.hidden, programs.bind_shared):
            compiled.append(arguments)
        is_small = arguments[1] in (programs.bind_shared, programs.make_state)
        return compile_for(*arguments, **static) if is_small else COMPILED

    monkeypatch.setattr(inference_plan, "compile_for", seen)
    monkeypatch.setattr(engine_programs, "compile_for", seen)
    lora = init_adapter("lora", MODEL, rank=4)
    save_adapter(lora, path)
    of = {
        name: make_evaluation_plan(config(), MODEL, "v5e:2x2", devices, tokens=9, new_tokens=9, adapter_path=name)
        for name in (None, str(path))
    }
    assert [arguments[3].method for arguments in compiled] == ["aligner"] * 2 + ["lora"] * 2
    assert jax.tree.map(np.shape, compiled[2][3]) == jax.tree.map(np.shape, lora)
    assert (of[str(path)].adapter, of[str(path)].adapter_path) == (str(lora), str(path))
    rows = [[str(cell) for cell in column.cells] for column in inference_table.table(list(of.values())).columns]
    assert [column[rows[0].index("adapter")] for column in rows] == [
        "adapter", "aligner, as none is named: 88 parameters", f"lora: {lora.num_params:,} parameters",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"a\.safetensors: tensor 'a_q_ldr' has shape"):
        make_evaluation_plan(
            config(), llama_config("smollm2_135m"), "v5e:2x2", devices, tokens=9, new_tokens=9, adapter_path=str(path)
        )


@pytest.mark.parametrize(
    ("changed", "tokens", "message"),
    [
        ({}, 500, r"prompts of 500 tokens and 64 new ones do not fit the model's context of 512"),
        ({"batch_size": 3}, 128, r"config.batch_size is 3, which the mesh's 4 parts do not divide"),
        ({"base": None, "evaluation": {"name": "pairwise"}}, 128, r"'pairwise' runs no model"),
    ],
)
def test_what_cannot_be_planned(changed: dict, tokens: int, message: str):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    devices = topology_devices("v5e:2x2")
    with pytest.raises(InputError, match=message):
        make_evaluation_plan(config(**changed), MODEL, "v5e:2x2", devices, tokens=tokens, new_tokens=64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--config=configs/eval/gsm8k.py", "--search"),
            "error: --search is of a training run, and the config is not\n",
        ),
        (
            ("--config=configs/quickstart.py", "--new_tokens=5"),
            "error: --new_tokens is of an evaluation, and the config is not\n",
        ),
        (
            ("--config=configs/quickstart.py", "--adapter=a.safetensors"),
            "error: --adapter is of an evaluation, and the config is not\n",
        ),
        (("--config=configs/eval/vicuna_judge.py",), "error: the evaluation 'pairwise' runs no model"),
    ],
)
def test_flags_and_configs_of_another_kind_are_refused(arguments: tuple[str, ...], sentence: str):
    done = run(*arguments)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert done.err.startswith(sentence)


def test_the_table_has_every_program_and_a_plan_that_stops_early_has_blanks():
    short = dataclasses.replace(PLAN, programs=PLAN.programs[:1], cache_bytes=None, roofline_seconds=None, bound=None)
    shown = inference_table.table([PLAN, short])
    cells = [[str(cell) for cell in column.cells] for column in shown.columns]
    rows = {name: (first, second) for name, first, second in zip(*cells, strict=True)}
    assert rows["mesh"] == ("fsdp 4 × tensor 2",) * 2
    assert rows["new tokens: collectives"] == ("all-gather 98.00 GiB", "–")
    assert rows["cache"] == ("3.00 GiB", "–")
    assert rows["a new token of each row, at least"] == ("58.0 ms, bound by network", "–")


def test_what_would_help_is_said():
    text = inference_table.advice(PLAN)
    assert text is not None
    assert "--config.mesh.tensor=8 --config.mesh.fsdp=1" in text
    assert inference_table.advice(dataclasses.replace(PLAN, bound="memory")) is None
    large = dataclasses.replace(
        PLAN, weights_bytes=13 << 30, programs=(dataclasses.replace(NEW, fits=False, peak_bytes=20 << 30),)
    )
    text = inference_table.advice(large)
    assert text is not None
    for part in ("the program of new tokens needs 20.00 GiB", "config.batch_size", "int8", "more devices"):
        assert part in text
    assert "int8" not in str(inference_table.advice(dataclasses.replace(large, weights_bytes=2 << 30)))
