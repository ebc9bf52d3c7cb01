"""Preference objectives: TRL's losses and gradients, the same however pairs lie in rows and however a batch is cut."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aligner_jax.data.pair_rows import eval_pair_batches
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import preference
from aligner_jax.objectives.objective import make_objective
from aligner_jax.objectives.reference import table
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import Adapter, apply, init_adapter
from aligner_jax.runtime.config import ObjectiveConfig
from aligner_jax.weights.hf import load_hf

GOLDENS = Path(__file__).parent / "goldens"
CASES = {
    "dpo": ObjectiveConfig(name="dpo", beta=0.1),
    "dpo_steep": ObjectiveConfig(name="dpo", beta=0.7),
    "dpo_smoothed": ObjectiveConfig(name="dpo", beta=0.1, label_smoothing=0.2),
    "ipo": ObjectiveConfig(name="ipo", beta=0.1),
    "ipo_steep": ObjectiveConfig(name="ipo", beta=0.7),
}
LENGTH = 32
LAYOUTS = {"packed": True, "a document a row": False}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "dpo.npz"))


def documents(number: int, vocab: int = 40, seed: int = 0) -> list[dict]:
    """Pairs with a prompt in common."""
    random = np.random.default_rng(seed)

    def answer(prompt):
        tokens = np.concatenate([prompt, random.integers(0, vocab, random.integers(1, 9))]).astype(np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) >= len(prompt)}

    prompts = [random.integers(0, vocab, random.integers(1, 7)) for _ in range(number)]
    return [{"chosen": answer(prompt), "rejected": answer(prompt)} for prompt in prompts]


def batch_of(pairs, packing=True, batch_size=4, **options):
    """All pairs in one batch."""
    (batch,) = eval_pair_batches(pairs, batch_size=batch_size, sequence_length=LENGTH, packing=packing, **options)
    return jax.tree.map(jnp.asarray, dict(batch))


@functools.partial(jax.jit, static_argnames=("objective", "config"))
def loss_and_gradient(params, adapter, reference, batch, *, objective, config):
    """Means over the batch's pairs: the loss, its gradient, the metrics."""

    def loss_of(trainable):
        policy = adapter.replace(trainable=trainable)
        loss, count, metrics = preference.loss_sum(
            params, policy, reference, batch, objective=objective, config=config
        )
        return loss / count, {name: total / count for name, total in metrics.items()}

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(adapter.trainable)
    return loss, gradient, metrics


@pytest.mark.parametrize("case", CASES)
def test_losses_and_slopes_are_those_of_trl(golden, case: str):
    objective = CASES[case]
    arrays = [jnp.asarray(golden[name], jnp.float32) for name in ("policy_m2", "reference_m2", "counts_m2")]

    def loss_of(policy_m2, reference_m2, counts_m2):
        losses_m = preference.LOSSES[objective.name](
            policy_m2, reference_m2, counts_m2, beta=objective.beta, label_smoothing=objective.label_smoothing
        )
        return jnp.sum(losses_m), losses_m

    slopes_m2, losses_m = jax.grad(loss_of, has_aux=True)(*arrays)
    np.testing.assert_allclose(losses_m, golden[f"{case}/losses_m"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slopes_m2, golden[f"{case}/slopes_m2"], rtol=1e-5, atol=1e-5)
    assert np.abs(golden[f"{case}/slopes_m2"]).max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_models_loss_and_gradient_are_those_of_trl(golden, case: str, layout: str):
    config, params = load_hf(GOLDENS / "models" / "llama3")
    policy, reference = (
        Adapter(
            {new: jnp.asarray(golden[f"model/{role}_{old}"], jnp.float32) for new, old in LEAVES.items()},
            method="aligner",
            options=init_adapter("aligner", config, num_tokens=3, start_layer=1).options,
        )
        for role in ("policy", "reference")
    )
    sides = []
    for number in range(8):
        tokens, prompt = golden[f"model/tokens_{number}"].astype(np.int32), int(golden[f"model/prompt_{number}"])
        sides.append({"tokens": tokens, "loss_mask": np.arange(len(tokens)) >= prompt})
    pairs = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in zip(sides[::2], sides[1::2], strict=True)]
    batch = batch_of(pairs, LAYOUTS[layout], batch_size=8)
    loss, gradient, metrics = loss_and_gradient(
        params, policy, reference, batch, objective=CASES[case], config=config
    )
    np.testing.assert_allclose(loss, golden[f"model/{case}/loss"], rtol=1e-5)
    for new, old in LEAVES.items():
        expected = golden[f"model/{case}/grad_{old}"]
        np.testing.assert_allclose(gradient[new], expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    if case == "dpo":
        theirs = {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margins", "accuracy": "accuracies"}
        for ours, name in theirs.items():
            np.testing.assert_allclose(metrics[ours], golden[f"model/rewards/{name}"], atol=1e-5)


LEAVES = {"tokens_pd": "tokens", "gates_ln": "gates"}


def test_the_divergence_and_the_accuracy_of_ties():
    policy_m2, reference_m2 = jnp.array([[-3.0, -5.0], [-1.0, -1.0]]), jnp.array([[-4.0, -2.0], [-1.0, -1.0]])
    found = preference.metrics(policy_m2, reference_m2, beta=0.5)
    np.testing.assert_allclose(found["kl"], [0.5 * (1.0 + 9.0) / 2, 0.0])
    np.testing.assert_allclose(found["accuracy"], [1.0, 0.5])
    np.testing.assert_allclose(found["margin"], [0.5 * (1.0 + 3.0), 0.0])
    np.testing.assert_allclose(preference.metrics(reference_m2, policy_m2, beta=0.5)["accuracy"], [0.0, 0.5])
    assert tuple(found) == preference.METRICS


def test_ipo_has_no_label_smoothing():
    with pytest.raises(InputError, match="IPO has no label smoothing"):
        preference.ipo(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2)), beta=0.1, label_smoothing=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_sums_over_the_answers_tokens(
    config: LlamaConfig, params: Params, trained_adapter, layout: str
):
    adapter, pairs = trained_adapter(2, start_layer=1), documents(3)
    batch = batch_of(pairs, LAYOUTS[layout], batch_size=8)
    log_probs_um2, counts_um2 = jax.jit(preference.log_probs, static_argnames="config")(
        params, adapter, batch, config=config
    )
    numbers = np.asarray(batch["pairs_um"])
    logits_of = jax.jit(apply, static_argnames="config")
    for number, pair in enumerate(pairs):
        place = tuple(np.argwhere(numbers == number)[0])
        for side, document in enumerate((pair["chosen"], pair["rejected"])):
            tokens_bt = np.zeros((1, LENGTH), np.int32)
            tokens_bt[0, : len(document["tokens"])] = document["tokens"]
            logits_tv = np.asarray(logits_of(params, adapter, tokens_bt, config=config)[0], np.float64)
            log_probs_tv = logits_tv - np.log(np.exp(logits_tv).sum(-1, keepdims=True))
            where = np.flatnonzero(document["loss_mask"])
            expected = log_probs_tv[where - 1, document["tokens"][where]].sum()
            np.testing.assert_allclose(log_probs_um2[(*place, side)], expected, atol=1e-4)
            assert counts_um2[(*place, side)] == len(where)
    empty = numbers < 0
    assert empty.any()
    assert not np.asarray(log_probs_um2)[empty].any()
    assert not np.asarray(counts_um2)[empty].any()


@pytest.mark.parametrize("case", ["dpo_smoothed", "ipo"])
def test_packing_changes_neither_loss_nor_gradient_nor_metrics(
    config: LlamaConfig, params: Params, trained_adapter, case: str
):
    policy, reference, pairs = trained_adapter(2, key=3), trained_adapter(2, key=4), documents(4)
    packed, alone = (
        loss_and_gradient(
            params, policy, reference, batch_of(pairs, packing, batch_size=8), objective=CASES[case], config=config
        )
        for packing in (True, False)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), packed, alone)


@pytest.mark.parametrize("case", ["dpo", "ipo"])
@pytest.mark.parametrize("with_adapter", [True, False])
def test_cached_references_give_the_losses_of_those_computed_in_the_step(
    config: LlamaConfig, params: Params, trained_adapter, case: str, with_adapter: bool
):
    policy, pairs = trained_adapter(2, key=3), documents(5)
    reference = trained_adapter(1, key=4) if with_adapter else None
    batches = eval_pair_batches(pairs, batch_size=2, sequence_length=LENGTH)
    reference_m2 = table(params, reference, batches, len(pairs), config=config)
    assert np.isfinite(reference_m2).all()
    options = {"objective": CASES[case], "config": config}
    computed = loss_and_gradient(params, policy, reference, batch_of(pairs), **options)
    cached = loss_and_gradient(params, policy, None, batch_of(pairs, reference_m2=reference_m2), **options)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), cached, computed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["dpo", "ipo"])
def test_accumulation_equals_one_batch(config: LlamaConfig, params: Params, trained_adapter, case: str, layout: str):
    """Parts with different numbers of pairs, so that an average of averages is not the average."""
    packing, optimizer = LAYOUTS[layout], optax.trace(decay=0.0)
    policy, reference = trained_adapter(1, key=3), trained_adapter(1, key=4)
    batch = batch_of(documents(3 if packing else 3), packing, batch_size=8)
    if packing:
        assert len({int(n) for n in np.sum(np.asarray(batch["pairs_um"]).reshape(4, -1) >= 0, 1)}) > 1

    def step(accumulate: int):
        take = make_step(
            policy, optimizer, config=config, accumulate=accumulate, objective=make_objective(CASES[case])
        )
        state, metrics = jax.jit(take)(init_state(policy, optimizer), params, batch, reference)
        return state.optimizer.trace, metrics

    whole, parts = step(1), step(4)
    assert set(whole[1].others) == set(preference.METRICS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), parts, whole)


def test_training_widens_the_margin_and_leaves_base_and_reference_bit_for_bit(
    config: LlamaConfig, params: Params, trained_adapter
):
    policy = trained_adapter(2, start_layer=1)
    reference = policy.replace(trainable=jax.tree.map(jnp.copy, policy.trainable))
    optimizer, batch = optax.adamw(0.02), batch_of(documents(4))
    step = jax.jit(
        make_step(policy, optimizer, config=config, objective=make_objective(CASES["dpo"])), donate_argnums=0
    )
    before = jax.tree.map(np.array, (params, reference))
    state, lines = init_state(policy, optimizer), []
    for _ in range(20):
        state, metrics = step(state, params, batch, reference)
        lines.append({name: float(value) for name, value in metrics.as_dict().items()})
    # The policy starts as its own reference.
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["margin"] > 1
    assert lines[-1]["accuracy"] == 1
    assert lines[-1]["kl"] > lines[0]["kl"]
    jax.tree.map(np.testing.assert_array_equal, before, (params, reference))


def test_a_batch_without_pairs_changes_nothing(config: LlamaConfig, params: Params, trained_adapter):
    policy, optimizer = trained_adapter(1), optax.sgd(1.0)
    batch = {name: jnp.zeros_like(x) for name, x in batch_of(documents(2)).items()}
    batch["pairs_um"] = batch["pairs_um"] - 1
    for case in ("dpo", "ipo"):
        step = jax.jit(make_step(policy, optimizer, config=config, objective=make_objective(CASES[case])))
        state, metrics = step(init_state(policy, optimizer), params, batch, policy)
        assert metrics.loss == metrics.grad_norm == 0
        jax.tree.map(np.testing.assert_array_equal, state.trainable, policy.trainable)


def test_every_objective_can_be_configured():
    names = ObjectiveConfig.__annotations__["name"].__args__
    assert set(names) == {"sft", *preference.LOSSES}
    assert make_objective(ObjectiveConfig()).metrics == ()
    assert all(make_objective(dataclasses.replace(CASES["ipo"], name=name)).metrics for name in preference.LOSSES)
