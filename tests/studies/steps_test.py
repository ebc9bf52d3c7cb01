"""aligner_jax/studies/steps.py and fit.py: runs that are trained at once are those of each alone."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.evals.heldout import heldout_loss
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.studies.fit import Fitted, Wanted, fit
from aligner_jax.studies.steps import Steps
from aligner_jax.studies.stopping import Rule

OPTIM = OptimConfig(weight_decay=0.01)
RULE = Rule(budget=8, first=2)


@pytest.fixture(scope="module")
def batch_of(pack, config: LlamaConfig):
    @functools.cache
    def make(seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        rows = [[(rng.integers(0, config.vocab_size, 6).tolist(), [0, 0, 1, 1, 1, 1]) for _ in range(2)]]
        return pack(rows, 16)

    return make


def first(method: str, config: LlamaConfig, seed: int) -> Adapter:
    options = {"num_tokens": 2, "start_layer": 1} if method == "aligner" else {"rank": 2, "dropout": 0.0}
    return init_adapter(method, config, key=seed, **options)


def wanted(method: str, seed: int, rate: float, batch_of, params: Params, config: LlamaConfig) -> Wanted:
    def batches() -> Iterator[Batch]:
        number = 100 * seed
        while True:
            yield batch_of(number % 7 + 10 * seed)
            number += 1

    return Wanted(
        name=f"{seed}", rate=rate, first=lambda: first(method, config, seed), batches=batches,
        loss_of=lambda adapter: heldout_loss(params, adapter, [batch_of(99)], config=config), base_loss=4.0,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["aligner", "lora"])
def test_runs_that_are_trained_at_once_are_those_of_each_alone(
    method: str, batch_of, params: Params, config: LlamaConfig
):
    runs = [wanted(method, seed, rate, batch_of, params, config) for seed, rate in ((1, 0.02), (2, 0.1), (3, 0.05))]

    def fitted(together: int) -> dict[str, Fitted]:
        steps = Steps(first(method, config, 0), OPTIM, config=config, together=together)
        return {each.wanted.name: each for each in fit(runs, steps, params, RULE)}

    # Two places for three runs: the third one takes a place that another has left.
    alone, together = fitted(1), fitted(2)
    assert set(alone) == set(together) == {"1", "2", "3"}
    for name, one in alone.items():
        other = together[name]
        assert [point.step for point in one.course.points] == [point.step for point in other.course.points]
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        for array, same in zip(jax.tree.leaves(one.adapter), jax.tree.leaves(other.adapter), strict=True):
            np.testing.assert_allclose(same, array, atol=2e-3)
    # Gates and B begin at 0, and are trained.
    zeros = [x for name, x in alone["1"].adapter.trainable.items() if name.startswith(("gates_", "b_"))]
    assert zeros
    assert all(jnp.abs(x).max() > 0.01 for x in zeros)


def test_a_step_has_the_rate_of_its_argument_and_nothing_compiles_for_another(
    batch_of, params: Params, config: LlamaConfig
):
    steps = Steps(first("aligner", config, 0), OPTIM, config=config)
    start = first("aligner", config, 1)
    moved = []
    for rate in (0.01, 0.02):
        steps.place(0, start)
        steps(params, [batch_of(1)], [rate])
        moved.append(steps.adapter(0).trainable["gates_ln"] - start.trainable["gates_ln"])
    np.testing.assert_allclose(moved[1], 2 * moved[0], rtol=1e-5)
    assert steps._step._cache_size() == 1


def test_the_adapter_with_the_least_loss_is_kept(batch_of, params: Params, config: LlamaConfig):
    run = wanted("aligner", 1, 0.05, batch_of, params, config)
    losses = iter([2.0, 1.0, 3.0, 4.0, 5.0, 6.0])
    seen: list[Adapter] = []

    def loss_of(adapter: Adapter) -> float:
        seen.append(adapter)
        return next(losses)

    steps = Steps(first("aligner", config, 0), OPTIM, config=config)
    (found,) = fit([Wanted(run.name, 0.05, run.first, run.batches, loss_of, 4.0)], steps, params, RULE)
    assert (found.loss, found.kept) == (1.0, 3)
    assert found.adapter is seen[1]


def test_a_run_that_may_not_begin_is_left_out(batch_of, params: Params, config: LlamaConfig):
    runs = [wanted("aligner", seed, 0.05, batch_of, params, config) for seed in (1, 2)]
    steps = Steps(first("aligner", config, 0), OPTIM, config=config)
    found = list(fit(runs, steps, params, RULE, may_begin=lambda run: run.name == "2"))
    assert [each.wanted.name for each in found] == ["2"]
