"""Logged rates are those of the optimizer's own count, whatever steps were skipped."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from whole_runs import run

from aligner_jax.objectives.step import StepMetrics
from aligner_jax.objectives.window import Window
from aligner_jax.runtime import optim
from aligner_jax.runtime.config import OptimConfig


def step(*skipped: bool) -> StepMetrics:
    """The step of a sweep, or of one adapter."""
    values = np.array(skipped) if len(skipped) > 1 else np.array(skipped[0])
    zeros = jnp.zeros(values.shape)
    return StepMetrics(zeros, zeros, jnp.asarray(values), {})


def test_the_rate_of_a_step_is_that_of_the_updates_made_before_it():
    window = Window(None, {"learning_rate": lambda count: 10.0 * count}, np.array(5))
    window.add(step(False), 1, 0)
    assert window.close()["learning_rate"] == 50
    window.add(step(True), 1, 0)
    assert window.close()["learning_rate"] == 60
    for skipped in (False, True, False):
        window.add(step(skipped), 1, 0)
    metrics = window.close()
    assert metrics["learning_rate"] == 70
    assert metrics["skipped"] == 1
    window.add(step(False), 1, 0)
    assert window.close()["learning_rate"] == 80


def test_each_adapter_of_a_sweep_has_its_own_count():
    names = ("learning_rate", "learning_rate_0", "learning_rate_1")
    window = Window(None, {name: lambda count: 10.0 * count for name in names}, np.array([0, 0]))
    window.add(step(False, True), 1, 0)
    window.add(step(False, False), 1, 0)
    window.close()
    window.add(step(False, False), 1, 0)
    metrics = window.close()
    assert [metrics[name] for name in names] == [20, 20, 10]


OTHERS = [{"name": "lion"}, {"name": "muon", "clip": 1.0, "gate_rate": 3.0, "decay_on": "tokens"}]


@pytest.mark.parametrize("changes", [{}, {"clip": 1.0}, {"state_dtype": "bfloat16"}, {"clip": 1.0, "b1": 0.0}, *OTHERS])
def test_the_count_of_an_optimizer_is_found(changes: dict):
    transformation = optim.make_optimizer(OptimConfig(**changes), 10)
    dtype = jnp.bfloat16 if "state_dtype" in changes else jnp.float32
    params = {"tokens_pd": jnp.ones((3, 2), dtype), "gates_ln": jnp.ones((2, 2), dtype)}
    state = transformation.init(params)
    assert optim.updates_made(state) == 0
    for _ in range(3):
        _, state = transformation.update(params, state, params)
    assert optim.updates_made(state) == 3
    rates = jnp.asarray([0.1, 0.2])
    sweep = optim.make_sweep_optimizer(OptimConfig(**changes), 10, rates)
    stacked: optax.OptState = sweep.init(jax.tree.map(lambda x: jnp.stack([x, x]), params))
    np.testing.assert_array_equal(optim.updates_made(stacked), [0, 0])


def test_a_run_logs_what_its_optimizer_did_also_after_it_went_on(tiny_run: dict, tmp_path: Path):
    """Every third row has a token whose embedding overflows."""
    weights = load_file(Path(tiny_run["base"]["path"]) / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    tokenizer = json.loads((Path(tiny_run["base"]["path"]) / "tokenizer.json").read_text())
    weights["model.embed_tokens.weight"][tokenizer["model"]["vocab"]["Z"]] = 3e38
    save_file(weights, Path(tiny_run["base"]["path"]) / "model.safetensors")
    config = Path(tiny_run["base"]["path"]) / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    rows = [{"instruction": question, "output": "It is so."} for question in ("One?", "Two?", "Z?")]
    Path(tiny_run["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_run["data"] |= {"batch_size": 1, "packing": False}
    tiny_run["optim"] = {"lr": 1.2, "schedule": "warmup_constant", "warmup_steps": 12, "weight_decay": 0.0}
    for steps in (7, 12):
        run({**tiny_run, "steps": steps}, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["skipped"] for line in lines) == 4
    made = 0
    for line in lines:
        assert line["learning_rate"] == pytest.approx(1.2 * (made + 1) / 12)
        made += 1 - line["skipped"]
    assert made == 8
