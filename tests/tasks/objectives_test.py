"""The contract of every objective: options, batches, sums and a run; and the config that selects one."""

import dataclasses
import importlib
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from aligner_jax import compile as command_compile
from aligner_jax.data.pair_rows import eval_pair_batches
from aligner_jax.data.pipeline import eval_batches
from aligner_jax.errors import InputError
from aligner_jax.model import attention, llama
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.batch import Batch, PairBatch, arrays_of
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import as_dict, parse_config
from aligner_jax.runtime.optim import make_optimizer
from aligner_jax.tasks.objectives import OBJECTIVES, complete, objective_choice, objective_of, parse_complete
from aligner_jax.tasks.program import abstract_batch
from aligner_jax.tasks.task import Objective
from aligner_jax.train import train

REQUIRED = {"base": {"path": "model"}, "data": {"path": "train.json"}, "steps": 10}
ROWS, LENGTH = 4, 32


def config_of(**sections) -> object:
    return parse_config({**REQUIRED, **sections, "data": {**REQUIRED["data"], **sections.get("data", {})}})


def batch_of(objective: Objective, packing: bool, carrying: tuple[str, ...] = ()) -> Batch:
    """Returns rows as the packer makes them, from documents of random tokens."""
    rng = np.random.default_rng(0)

    def document() -> dict:
        size = int(rng.integers(4, 9))
        return {"tokens": rng.integers(1, 40, size).astype(np.int32), "loss_mask": np.arange(size) > 1}

    rows = {"batch_size": ROWS, "sequence_length": LENGTH, "packing": packing}
    if not issubclass(objective.batch, PairBatch):
        return eval_batches([document() for _ in range(ROWS)], **rows)[0]
    pairs = [{"chosen": document(), "rejected": document()} for _ in range(ROWS // 2)]
    tokens = sum(len(each["tokens"]) for pair in pairs for each in pair.values())
    reference_t = np.full(tokens, -1, np.float32) if "reference_bt" in carrying else None
    return next(iter(eval_pair_batches(pairs, reference_t=reference_t, **rows)))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_planned_batch_is_the_packed_one(name: str, packing: bool):
    objective = OBJECTIVES[name]
    config = config_of(
        objective={"name": name}, data={"batch_size": ROWS, "sequence_length": LENGTH, "packing": packing}
    )
    _, options = objective_of(config)
    abstract, made = abstract_batch(config), batch_of(objective, packing, options.carried)
    assert jax.tree.structure(abstract) == jax.tree.structure(made)
    assert abstract.packed == packing
    planned, packed = arrays_of(abstract), arrays_of(made)
    assert {k: (x.shape, x.dtype) for k, x in planned.items()} == {k: (x.shape, x.dtype) for k, x in packed.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_one_document_have_the_same_loss_without_segments_in_attention(
    name: str, config: LlamaConfig, params: Params, trained_adapter, monkeypatch
):
    """Padding comes last in such rows, so that no position of a text sees it."""
    objective, seen = OBJECTIVES[name], []
    batch = jax.tree.map(jnp.asarray, batch_of(objective, packing=False))
    assert (np.asarray(batch.segment_ids_bt) == 0).any()

    def recorded(*args, segment_ids_bt=None, **others):
        seen.append(segment_ids_bt is not None)
        return attention.attend(*args, segment_ids_bt=segment_ids_bt, **others)

    monkeypatch.setattr(llama, "attend", recorded)

    def loss(trainable, batch):
        adapter = trained_adapter(2).replace(trainable=trainable)
        sums = objective.loss(objective.options()).sums
        return jnp.sum(sums(params, adapter, trained_adapter(1, key=9), batch, config=config)[0])

    gradient = jax.jit(jax.value_and_grad(loss))
    found = gradient(trained_adapter(2).trainable, batch)
    assert not any(seen)
    seen.clear()
    expected = gradient(trained_adapter(2).trainable, dataclasses.replace(batch, packed=True))
    assert any(seen)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sums_add_up_over_parts_and_have_the_named_metrics(
    name: str, config: LlamaConfig, params: Params, trained_adapter
):
    objective, adapter = OBJECTIVES[name], trained_adapter(2)
    options, batch = objective.options(), jax.tree.map(jnp.asarray, batch_of(objective, packing=False))
    reference = trained_adapter(1, key=9)
    optimizer = make_optimizer(config_of().optim, 10)
    found = []
    for accumulate in (1, 2):
        step = make_step(adapter, optimizer, config=config, accumulate=accumulate, loss=objective.loss(options))
        state, metrics = jax.jit(step)(init_state(adapter, optimizer), params, batch, reference)
        assert set(metrics.others) == set(objective.metrics)
        assert np.isfinite(metrics.loss)
        assert metrics.grad_norm > 0
        assert not metrics.skipped
        found.append((metrics.as_dict(), state.trainable))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_options_are_written_out_and_read_again(name: str):
    completed = complete(config_of(objective={"name": name}))
    assert complete(completed) == completed
    written = json.loads(json.dumps(as_dict(completed)))
    assert parse_complete(written) == completed
    fields = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[name].options)}
    assert written["objective"] == {"name": name, **fields}
    # The first versions wrote the options of every objective, at their defaults.
    written["objective"] |= {"beta": 0.1, "label_smoothing": 0.0, "reference": "initial", "cache_reference": True}
    assert parse_complete(written) == completed


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_logs_the_metrics(name: str, tiny_run: dict, tmp_path: Path):
    rows = [{"prompt": f"Name {i}.", "chosen": f"It is {i}.", "rejected": f"No {i}."} for i in range(8)]
    Path(tiny_run["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    tiny_run["data"] |= {"format": "fields", "fields": fields}
    config = parse_config({**tiny_run, "objective": {"name": name}, "steps": 1})
    train(config, tmp_path / "run", Console(file=io.StringIO()))
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {"loss", "grad_norm", *OBJECTIVES[name].metrics} <= line.keys()


@pytest.mark.parametrize(
    ("name", "left", "dropped"),
    [
        ("sft", {}, "beta, config.objective.reference, config.objective.cache_reference"),
        ("ipo", {"beta": 0.3, "reference": None, "cache_reference": False}, None),
    ],
)
def test_a_name_on_the_command_line_drops_the_files_options_of_another(name: str, left: dict, dropped, tmp_path: Path):
    file, said = tmp_path / "config.py", []
    section = {"name": "dpo", "beta": 0.3, "reference": None, "cache_reference": False}
    file.write_text(f"def get_config():\n    return { ({**REQUIRED, 'objective': section})!r}")
    loaded = load_config(file, [("objective.name", name)], choices=[objective_choice()], say=said.append)
    config = parse_config(loaded)
    assert (config.objective.name, config.objective.options) == (name, left)
    assert objective_of(config)[0] is OBJECTIVES[name]
    assert [line.partition("left out: config.objective.")[2] for line in said] == ([dropped] if dropped else [])


def test_commands_that_train_or_plan_take_the_name(monkeypatch: pytest.MonkeyPatch):
    for verb in (importlib.import_module("aligner_jax.train"), command_compile):
        sections: list[str] = []
        monkeypatch.setattr(
            verb.CONFIG, "load", lambda *choices, found=sections: found.extend(c.section for c in choices) or {}
        )
        with pytest.raises(InputError, match=r"^config\.base"):
            verb.main() if verb is not command_compile else list(verb._training_plans())
        assert sections == ["adapter", "objective"]


def test_a_preferences_reference_may_be_the_base():
    for options, reference in (({}, "initial"), ({"reference": None}, None)):
        _, parsed = objective_of(config_of(objective={"name": "dpo", **options}))
        assert parsed.reference == reference
        assert parsed.reference_in_steps is False
    _, parsed = objective_of(config_of(objective={"name": "dpo", "cache_reference": False}))
    assert parsed.reference_in_steps
    assert parsed.carried == ()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"objective": {"name": "ppo"}},
            "config.objective.name is 'ppo', but should be one of sft, dpo, ipo",
        ),
        (
            {"objective": {"beta": 0.2}},
            "config.objective.beta is 0.2, but config.objective.name 'sft' has no use for it; 'dpo' and 'ipo' do",
        ),
        (
            {"objective": {"reference": "a.safetensors"}},
            "config.objective.reference is 'a.safetensors', but config.objective.name 'sft' has no use for it; 'dpo' "
            "and 'ipo' do",
        ),
        (
            {"objective": {"name": "ipo", "label_smoothing": 0.1}},
            "config.objective.label_smoothing is 0.1, but config.objective.name 'ipo' has no use for it; 'dpo' does",
        ),
        (
            {"objective": {"name": "dpo", "label_smoothing": 0.5}},
            "config.objective.label_smoothing is 0.5, but should be less than 0.5",
        ),
        (
            {"objective": {"name": "dpo"}, "data": {"loss_on": "all"}},
            "config.data.loss_on is 'all', but a preference is between answers",
        ),
        (
            {"objective": {"name": "dpo"}, "data": {"packing": False, "batch_size": 6}, "optim": {"accumulate": 2}},
            "config.data.batch_size is 6, of which each of 2 parts would hold half a pair: without "
            "config.data.packing a pair is two rows",
        ),
        (
            {"objective": {"name": "dpo"}, "report": {"form": "json_answer"}},
            "config.report.form is 'json_answer', but the report on preferences generates no answers",
        ),
        (
            {"objective": {"name": "ipo", "bta": 0.1}},
            "config.objective.bta is not a field; did you mean config.objective.beta?",
        ),
        (
            {"objective": {"name": "dpo", "beta": "a"}},
            "config.objective.beta is 'a', but should be a number",
        ),
        (
            {"objective": {"name": "dpo"}, "sweep": {"lr": [1e-3, 1e-2]}},
            "config.sweep is set, but config.objective.name is 'dpo'; only 'sft' has it",
        ),
    ],
)
def test_what_does_not_fit_an_objective_is_refused(sections: dict, message: str):
    with pytest.raises(InputError) as error:
        objective_of(config_of(**sections))
    assert str(error.value) == message
