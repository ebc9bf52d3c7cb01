"""Tables of all commands in terminals of four widths: no line is wider, and no number or word is cut."""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from aligner_jax.analysis import about_adapters, adapter_figures, write
from aligner_jax.analysis.named import Named
from aligner_jax.analysis.report import Picture
from aligner_jax.chatting import screen
from aligner_jax.evals import before_after, gsm8k, harness, mmlu_generated, pairwise, preference, safety, sweep
from aligner_jax.evals.before_after import Measured, SftReport
from aligner_jax.evals.responses import table_of as responses_table
from aligner_jax.evals.win_rate import of_counts
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import init_adapter
from aligner_jax.planning import inference_table, serving_table, table
from aligner_jax.planning.inference_plan import EvaluationPlan, ProgramPlan
from aligner_jax.planning.plan import Plan
from aligner_jax.planning.serving_plan import ServingPlan
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.output import PlainConsole
from aligner_jax.runtime.tables import Table

WIDTHS = (60, 80, 100, 120)
LONG = "/home/somebody/projects/aligned-models/runs/llama7b_alpaca_with_a_long_name/adapter.safetensors"
TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v6e:8x16", "v5p:2x2x4")
MESH = {"data": 8, "fsdp": 16, "tensor": 2}


class Kept(Console):
    """A console that keeps the tables that it is given, in place of printing them."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO())
        self.tables: list[Table] = []

    def print(self, *things: object, **_: object) -> None:
        self.tables += [thing for thing in things if isinstance(thing, Table)]


def of_training() -> Iterator[Table]:
    plan = Plan(
        topology="v5e:2x4", devices=8, mesh=MESH, batch=64, sequence_length=512, weight_dtype="bfloat16",
        remat="dots:24", peak_bytes=13 << 30, hbm_bytes=16 << 30, fits=False, weights_bytes=12_345_678_901,
        adapter_bytes=100_000, temporary_bytes=None, flops=1.234e15, model_flops=8e14, hbm_traffic_bytes=1e11,
        collective_bytes={"all-gather": 24 << 30, "all-reduce": 123_456, "reduce-scatter": 7 << 30},
        roofline_seconds=1.2345, bound="compute", tokens_per_second=1_132_768.0, compile_seconds=220.0,
    )  # fmt: skip
    yield table.table([dataclasses.replace(plan, topology=name) for name in TOPOLOGIES])


PROGRAM = ProgramPlan("new tokens", 8 << 30, True, 4 << 30, {"all-gather": 98 << 30, "all-reduce": 1 << 20}, 9.0)


def of_evaluation_plan() -> Iterator[Table]:
    plan = EvaluationPlan(
        topology="v5e:2x4", devices=8, mesh=MESH, rows=32, tokens=1024, new_tokens=512, padded_tokens=1024,
        slots=1536, adapter="llama_adapter(num_tokens=10)", adapter_path=None, adapter_params=1_229_760,
        weight_dtype="bfloat16", hbm_bytes=16 << 30, weights_bytes=2 << 30, cache_bytes=3 << 30,
        programs=(PROGRAM, dataclasses.replace(PROGRAM, name="prompts")), roofline_seconds=0.058, bound="network",
    )  # fmt: skip
    yield inference_table.table([dataclasses.replace(plan, topology=name) for name in TOPOLOGIES])


def of_server() -> Iterator[Table]:
    moved = {"weights": 6.5e9, "keys": 1.25e9, "adapters": 2.5e8, "gathered": 1.5e9, "rest": 1e8}
    plan = ServingPlan(
        topology="v5e:2x4", devices=8, mesh=MESH, tokens=1024, new_tokens=512, slots=1536,
        adapter="lora(rank=8)", adapters=100_000, capacity_tokens=16, capacity_rank=8, places=1024, rows=1536,
        weight_dtype="bfloat16", hbm_bytes=16 << 30, weights_bytes=12 << 30, row_bytes=123_456,
        places_bytes=1 << 30, filled=1280, read=1536, step_bytes=moved, filled_slots_bytes=9e9,
        all_slots_bytes=9.6e9, step_seconds=0.0123, bound="memory", programs=(PROGRAM,),
    )  # fmt: skip
    yield serving_table.table([dataclasses.replace(plan, topology=name) for name in TOPOLOGIES])


def of_report() -> Iterator[Table]:
    kept, answers = Kept(), ["An answer of a dozen or so words, like https://example.org/a-long-address-of-a-page."] * 2
    before, after = (Measured(loss, answers, share, []) for loss, share in ((2.7183, 0.0), (0.6931, 0.5)))
    before_after.show(SftReport(before, after, ["Why [is] it?", "How?"], 41_920, 168_432), kept, samples=2)
    yield from kept.tables


def of_preferences() -> Iterator[Table]:
    kept = Kept()
    one = preference.PreferenceMetrics(
        pairs=12_345, prompts=1_234, loss=0.693147, accuracy=0.51234, accuracy_interval=(0.48123, 0.54321),
        margin=-0.0012, chosen_reward=1.2345, rejected_reward=-1.2345, kl=0.0123, each=[],
    )  # fmt: skip
    preference.show(preference.PreferenceReport(one, one, num_params=41_920, file_bytes=168_432), kept)
    yield from kept.tables


def of_sweep(folder: Path) -> Iterator[Table]:
    kept = Kept()
    data = {"path": "nowhere", "heldout_path": "nowhere"}
    config = parse_config(
        {"base": {"path": "b"}, "data": data, "steps": 1, "sweep": {"lr": (1e-5, 3.25e-4, 9e-3), "seed": (1, 2, 99)}}
    )
    sweep.report(config, [0.693147, 12.5, math.inf], folder / "sweep.json", kept)
    yield from kept.tables


def of_judges() -> Iterator[Table]:
    rate = of_counts(123, 45, 67)
    pair = pairwise.Compared(LONG, "reference-of-the-authors", [], rate, 12, of_counts(100, 50, 85))
    yield pairwise.table_of(pairwise.Pairwise("https://judge.example.org/v1 gpt-large", [pair, pair], None, None))
    share = safety.safe_share([True] * 123 + [False] * 45 + [None])
    categories = {"controversial_topics, politics": share, "violence,aiding_and_abetting,incitement": share}
    yield safety.table_of(safety.Safety("scores", [safety.ModelSafety(LONG, categories, share)], None, None))


def of_evaluations() -> Iterator[Table]:
    tasks = {"mmlu_high_school_government_and_politics": {"exact_match,strict-match": 0.1234, "acc,none": 0.25}}
    tasks["gsm8k"] = {"acc,none": 0.5, "acc_stderr,none": 0.0123}
    counts = dict.fromkeys(tasks, 14042)
    yield harness.table_of({"lm_eval_version": "0.4.13", "tasks": tasks, "documents": counts, "num_fewshot": counts})
    scores = {
        "protocol": "metamath", "solved": 512, "problems": 1_319, "accuracy": 0.38817, "questions": 14_042,
        "accuracy_interval": (0.36123, 0.41456), "answers_with_the_marker": 0.98765, "mean_over_subjects": 0.4321,
        "answers_that_are_a_choice": 0.87654,
    }  # fmt: skip
    yield gsm8k.table_of(scores, "The final answer of this problem is: ")
    yield mmlu_generated.table_of(scores)
    yield responses_table("Answers to be judged", LONG, {"answers": "1,700", "empty": "12"}, Path(LONG))


def of_analysis() -> Iterator[Table]:
    config = LlamaConfig(vocab_size=64, d_model=16, num_layers=8, num_heads=4, num_kv_heads=2, head_dim=4, d_mlp=32)
    rng = np.random.default_rng(0)
    named = []
    for name in ("aligner-of-a-long-name-1", "second"):
        adapter = init_adapter("aligner", config, num_tokens=3)
        gates_ln = jnp.asarray(rng.normal(0, 0.3, adapter.trainable["gates_ln"].shape), jnp.float32)
        adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": gates_ln})
        named.append(Named(name, Path(LONG), adapter))
    kept = Kept()
    write.show(about_adapters.sections(named), kept)
    yield from kept.tables


TABLES: dict[str, Callable[[Path], Iterator[Table]]] = {
    "compile, training": lambda _: of_training(),
    "compile, evaluation": lambda _: of_evaluation_plan(),
    "compile, server": lambda _: of_server(),
    "train, report": lambda _: of_report(),
    "train, preferences": lambda _: of_preferences(),
    "train, sweep": of_sweep,
    "evaluate, judges": lambda _: of_judges(),
    "evaluate": lambda _: of_evaluations(),
    "analyze": lambda _: of_analysis(),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", TABLES)
def test_nothing_is_cut_in_a_terminal_of_this_width(
    command: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("gate_map", "gate_spreads", "similarities", "spectra"):
        monkeypatch.setattr(adapter_figures, name, lambda *_: Picture("", "", b"", b""))
    tables = list(TABLES[command](tmp_path))
    assert tables
    for each in tables:
        stream = io.StringIO()
        PlainConsole(file=stream, width=width).print(each)
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert not re.search("…|\\.\\.\\.", stream.getvalue())
        shown = re.split(r"[\s│┃]+", stream.getvalue())
        for text in (text for column in each.columns for text in (column.heading, *column.cells)):
            # Words fold after slashes alone, and numbers nowhere.
            for word in re.split(r"\s+|(?<=/)(?=\D)", text):
                assert any(word in found for found in shown), f"{word!r} of {text!r}\n{stream.getvalue()}"


@pytest.mark.parametrize("width", WIDTHS)
def test_answers_side_by_side_in_a_chat_keep_their_words(width: int):
    stream = io.StringIO()
    names, texts = ["base", "aligner-a", "b"], ["It costs 1,234.56 euros [a year].", "extraordinarily", "0.693"]
    PlainConsole(file=stream, width=width).print(screen._columns(names, texts, width))
    assert max(map(len, stream.getvalue().splitlines())) <= width
    for word in (*names, *" ".join(texts).split()):
        assert word in stream.getvalue()
