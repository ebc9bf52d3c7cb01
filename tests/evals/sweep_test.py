"""Many adapters in one run: each as if it were trained alone."""

import dataclasses
import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.sweep import report
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.peft.rows import stack_adapters, unstack_adapter
from aligner_jax.runtime import optim
from aligner_jax.runtime.config import OptimConfig, parse_config
from aligner_jax.tasks.objectives import parse_complete
from aligner_jax.train import train

RATES = (1e-3, 3e-2)


@pytest.fixture(scope="module")
def batches(pack) -> list[Batch]:
    """Rows of documents of different lengths and with different numbers of targets."""
    rng = np.random.default_rng(0)

    def row(lengths):
        return [(rng.integers(1, 40, n).tolist(), [0] + [1] * (n - 1)) for n in lengths]

    return [pack([row(lengths) for lengths in ((5, 7), (12,), (3, 4), (9,))], 12) for _ in range(3)]


@pytest.mark.parametrize(
    ("method", "accumulate", "changes"),
    [
        ("aligner", 1, {}), ("llama_adapter", 2, {}), ("lora", 1, {"name": "lion"}), ("prefix", 1, {}),
        ("aligner", 1, {"name": "muon", "gate_rate": 3.0, "decay_on": "tokens"}),
    ],
)  # fmt: skip
def test_each_is_trained_as_if_alone(
    method, accumulate, changes, config: LlamaConfig, params: Params, batches, randomized
):
    options = {"lora": {"rank": 2, "dropout": 0.0}, "prefix": {}}.get(method, {"num_tokens": 2, "start_layer": 1})
    adapters = [randomized(init_adapter(method, config, **options), key) for key in (1, 2)]
    settings, stack = OptimConfig(clip=0.5, schedule="cosine", **changes), stack_adapters(adapters)

    def run(adapter, optimizer, number):
        step = jax.jit(make_step(adapter, optimizer, config=config, accumulate=accumulate, num_adapters=number))
        state, losses = init_state(adapter, optimizer), []
        for batch in batches:
            state, metrics = step(state, params, batch)
            losses.append((metrics.loss, metrics.grad_norm))
        return adapter.replace(trainable=state.trainable), np.asarray(losses)

    together, losses = run(stack, optim.make_sweep_optimizer(settings, 3, jnp.asarray(RATES)), 2)
    for i, (adapter, rate) in enumerate(zip(adapters, RATES, strict=True)):
        optimizer = optim.make_optimizer(dataclasses.replace(settings, lr=rate), 3)
        alone, alone_losses = run(adapter, optimizer, None)
        np.testing.assert_allclose(losses[:, :, i], alone_losses, rtol=1e-5)
        for name, leaf in unstack_adapter(together, i).trainable.items():
            assert np.abs(alone.trainable[name] - adapter.trainable[name]).max() > 1e-4
            np.testing.assert_allclose(leaf, alone.trainable[name], atol=1e-6)


def test_one_that_is_not_finite_is_skipped_alone(config: LlamaConfig, params: Params, batches):
    adapters = [init_adapter("aligner", config, key, num_tokens=2, start_layer=1) for key in (1, 2)]
    broken = adapters[0].replace(trainable=jax.tree.map(lambda x: x.at[0].set(jnp.nan), adapters[0].trainable))
    optimizer = optim.make_sweep_optimizer(OptimConfig(clip=0.5), 3, jnp.asarray(RATES))
    step = jax.jit(make_step(adapters[0], optimizer, config=config, num_adapters=2))

    def run(first):
        state = init_state(stack_adapters([first, adapters[1]]), optimizer)
        start = jax.tree.map(np.asarray, state)
        for batch in batches:
            state, metrics = step(state, params, batch)
        return start, jax.tree.map(np.asarray, state), metrics

    _, want, metrics = run(adapters[0])
    assert metrics.skipped.tolist() == [False, False]
    start, got, metrics = run(broken)
    assert metrics.skipped.tolist() == [True, False]
    for a, b, c in zip(*map(jax.tree.leaves, (start, got, want)), strict=True):
        if a.ndim:
            np.testing.assert_array_equal(b[0], a[0])
            np.testing.assert_array_equal(b[1], c[1])


def test_rows_may_belong_to_different_users(config: LlamaConfig, params: Params, batches):
    adapters = [init_adapter("aligner", config, key, num_tokens=2, start_layer=1) for key in (1, 2)]
    stack, rates = stack_adapters(adapters), jnp.asarray([1e-2, 1e-2])
    optimizer = optim.make_sweep_optimizer(OptimConfig(), 3, rates)
    step = jax.jit(make_step(stack, optimizer, config=config, num_adapters=2))
    state = init_state(stack, optimizer)
    of_users = np.array([1, 0, 0, 1])
    for batch in batches:
        state, _ = step(state, params, dataclasses.replace(batch, adapter_b=of_users))
    for user in (0, 1):
        optimizer = optim.make_optimizer(OptimConfig(lr=1e-2), 3)
        alone = jax.jit(make_step(adapters[user], optimizer, config=config))
        own = init_state(adapters[user], optimizer)
        for batch in batches:
            own, _ = alone(own, params, jax.tree.map(lambda x, user=user: x[of_users == user], batch))
        for name, leaf in own.trainable.items():
            np.testing.assert_allclose(state.trainable[name][user], leaf, atol=1e-6)


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict:
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(1, i + 1)))} for i in range(2, 14)]
    data = tmp_path / "counting.json"
    data.write_text(json.dumps(rows))
    return {
        "base": {"path": str(tiny_model)},
        "adapter": {"method": "aligner", "num_tokens": 2},
        "data": {"path": str(data), "heldout_rows": 3, "sequence_length": 128, "batch_size": 1},
        "sweep": {"lr": [1e-3, 1e-2, 1e-1]},
        "optim": {"schedule": "warmup_constant", "warmup_steps": 2},
        "steps": 3,
        "log_every": 1,
    }


def test_an_adapter_that_diverged_is_not_the_best(settings: dict, tmp_path: Path):
    screen = io.StringIO()
    for losses, best in (([math.nan, 2.0, 1.0], 2), ([1.0, math.nan, 2.0], 0), ([math.inf, math.nan, 2.0], 2)):
        report(parse_config(settings), losses, tmp_path / "report.json", Console(file=screen))
        found = json.loads((tmp_path / "report.json").read_text())
        assert found["best"] == best
        kept = [loss if math.isfinite(loss) else None for loss in losses]
        assert [one["heldout_loss"] for one in found["adapters"]] == kept
    assert "nan *" not in screen.getvalue()


def test_a_sweep_of_rates_is_one_value_of_the_config(settings: dict, tmp_path: Path):
    workdir, lines = tmp_path / "run", tmp_path / "out"
    with lines.open("w") as out:
        train(parse_config(settings), workdir, Console(file=out, highlight=False, width=120))
    found = json.loads((workdir / "report.json").read_text())
    assert [one["lr"] for one in found["adapters"]] == settings["sweep"]["lr"]
    losses = [one["heldout_loss"] for one in found["adapters"]]
    assert len(set(losses)) == 3
    assert found["best"] == int(np.argmin(losses))
    adapters = [load_adapter(workdir / one["adapter"]) for one in found["adapters"]]
    assert all(adapter.num_params == 2 * 32 + 2 * 4 for adapter in adapters)
    assert not (workdir / "adapter.safetensors").exists()
    *metrics, measured = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [measured[f"heldout_loss_{i}"] for i in range(3)] == losses
    # Logged rates are the adapters', not `optim.lr`; they are half at the first of two warm-up steps.
    for line, share in zip(metrics, (0.5, 1.0, 1.0), strict=True):
        logged = [line[f"learning_rate_{i}"] for i in range(3)]
        assert logged == pytest.approx([share * rate for rate in settings["sweep"]["lr"]])
        assert line["learning_rate"] == logged[0]
    last = metrics[-1]
    assert last["loss"] == pytest.approx(np.mean([last[f"loss_{i}"] for i in range(3)]))
    assert "in each of 3 adapters" in lines.read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sweep": {"lr": 3}}, "config.sweep.lr is 3, but should be a list"),
        ({"sweep": {"lr": ["a"]}}, r"config.sweep.lr\[0\] is 'a', but should be a number"),
        ({"sweep": {"lr": [-1.0]}}, r"config.sweep.lr\[0\] is -1.0, but should be 0 or more"),
        ({"sweep": {"lr": [1e-3], "seed": [1, 2]}}, "config.sweep.lr has 1 values and config.sweep.seed 2"),
        ({"objective": {"name": "dpo"}}, "config.sweep is set, but config.objective.name is 'dpo'"),
        ({"report": {"form": "json_answer"}}, "config.report.form is set, but the report on a sweep"),
    ],
)
def test_impossible_sweeps_are_refused(sections: dict, message: str, settings: dict):
    with pytest.raises(InputError, match=message):
        parse_complete({**settings, **sections})
