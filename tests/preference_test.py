"""Preference objectives: TRL's losses and gradients, the same however pairs lie in rows and however a batch is cut."""

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
LEAVES = {"tokens_pd": "tokens", "gates_ln": "gates"}
ROWS, LENGTH = 8, 32
LAYOUTS = {"packed": True, "a document a row": False}

golden = dict(np.load(GOLDENS / "dpo.npz"))


@pytest.fixture(scope="module")
def model() -> tuple[LlamaConfig, Params]:
    return load_hf(GOLDENS / "models" / "llama3")


@pytest.fixture(scope="module")
def policy(model) -> Adapter:
    return _adapter(model[0], "policy")


@pytest.fixture(scope="module")
def reference(model) -> Adapter:
    return _adapter(model[0], "reference")


def _adapter(config: LlamaConfig, role: str) -> Adapter:
    leaves = {new: jnp.asarray(golden[f"model/{role}_{old}"], jnp.float32) for new, old in LEAVES.items()}
    fresh = init_adapter("aligner", config, num_tokens=3, start_layer=1)
    return fresh.replace(trainable=leaves)


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    documents = []
    for number in range(8):
        tokens, prompt = golden[f"model/tokens_{number}"].astype(np.int32), int(golden[f"model/prompt_{number}"])
        documents.append({"tokens": tokens, "loss_mask": np.arange(len(tokens)) >= prompt})
    return [{"chosen": a, "rejected": b} for a, b in zip(documents[::2], documents[1::2], strict=True)]


def batch_of(pairs: list[dict], layout: str = "packed", **options) -> dict:
    """All pairs in one batch."""
    (batch,) = eval_pair_batches(pairs, batch_size=ROWS, sequence_length=LENGTH, packing=LAYOUTS[layout], **options)
    return jax.tree.map(jnp.asarray, dict(batch))


@functools.partial(jax.jit, static_argnames=("config",))
def log_probs_and_gradient(params, adapter, batch, slopes_um2, *, config):
    """Log-probabilities and counts, and the adapter's gradient where the loss has such slopes of the former."""

    def of(trainable):
        return preference.log_probs(params, adapter.replace(trainable=trainable), batch, config=config)

    log_probs_um2, pull, counts_um2 = jax.vjp(of, adapter.trainable, has_aux=True)
    return log_probs_um2, counts_um2, pull(slopes_um2)[0]


def loss_and_gradient(model, policy: Adapter, reference: Adapter, batch: dict, objective: ObjectiveConfig):
    """Means over the pairs: the loss, its gradient, the metrics. The model is compiled once for all objectives."""
    config, params = model
    run = functools.partial(log_probs_and_gradient, params, config=config)
    nothing_um2 = jnp.zeros((*batch["pairs_um"].shape, 2))
    policy_um2, counts_um2, _ = run(policy, batch, nothing_um2)
    reference_um2, _, _ = run(reference, batch, nothing_um2)
    there_um = batch["pairs_um"] >= 0

    def loss_of(policy_um2):
        of_pairs = preference.losses_and_metrics(policy_um2, reference_um2, counts_um2, objective=objective)
        means = {name: jnp.mean(x_um, where=there_um) for name, x_um in of_pairs.items()}
        return means.pop("loss"), means

    (loss, metrics), slopes_um2 = jax.value_and_grad(loss_of, has_aux=True)(policy_um2)
    return loss, run(policy, batch, slopes_um2)[2], metrics


@pytest.mark.parametrize("case", CASES)
def test_losses_and_slopes_are_those_of_trl(case: str):
    objective = CASES[case]
    arrays = [jnp.asarray(golden[name], jnp.float32) for name in ("policy_m2", "reference_m2", "counts_m2")]

    def loss_of(policy_m2, reference_m2, counts_m2):
        losses_m = preference.losses_and_metrics(policy_m2, reference_m2, counts_m2, objective=objective)["loss"]
        return jnp.sum(losses_m), losses_m

    slopes_m2, losses_m = jax.grad(loss_of, has_aux=True)(*arrays)
    np.testing.assert_allclose(losses_m, golden[f"{case}/losses_m"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slopes_m2, golden[f"{case}/slopes_m2"], rtol=1e-5, atol=1e-5)
    assert np.abs(golden[f"{case}/slopes_m2"]).max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_models_loss_and_gradient_are_those_of_trl(model, policy, reference, pairs, case: str, layout: str):
    loss, gradient, metrics = loss_and_gradient(model, policy, reference, batch_of(pairs, layout), CASES[case])
    np.testing.assert_allclose(loss, golden[f"model/{case}/loss"], rtol=1e-5)
    for new, old in LEAVES.items():
        expected = golden[f"model/{case}/grad_{old}"]
        # 1e-5 of the largest entry: an IPO gradient is larger than one.
        np.testing.assert_allclose(gradient[new], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if case == "dpo":
        theirs = {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margins"}
        for ours, name in {**theirs, "accuracy": "accuracies"}.items():
            np.testing.assert_allclose(metrics[ours], golden[f"model/rewards/{name}"], atol=1e-5)


@pytest.mark.parametrize(("case", "layout"), [("dpo_smoothed", "packed"), ("ipo", "a document a row")])
def test_a_step_in_parts_has_the_gradient_of_the_batch_and_training_widens_the_margin(
    model, policy, reference, pairs, case: str, layout: str
):
    """Three pairs in four parts, so that an average of averages is not the average."""
    config, params = model
    objective, batch = CASES[case], batch_of(pairs[:3], layout)
    in_parts = np.sum(np.asarray(batch["pairs_um"]).reshape(4, -1) >= 0, 1)
    assert len(set(in_parts.tolist())) > 1
    optimizer = optax.chain(optax.trace(decay=0.0), optax.adam(0.02))
    step = jax.jit(
        make_step(policy, optimizer, config=config, accumulate=4, objective=make_objective(objective)), donate_argnums=0
    )
    before = jax.tree.map(np.array, (params, reference))
    state, metrics = step(init_state(policy, optimizer), params, batch, reference)
    loss, gradient, means = loss_and_gradient(model, policy, reference, batch, objective)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    assert set(metrics.others) == set(preference.METRICS)
    for name, mean in means.items():
        np.testing.assert_allclose(metrics.others[name], mean, rtol=1e-5, atol=1e-5)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(state.optimizer[0].trace[name], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max())

    for _ in range(20):
        state, later = step(state, params, batch, reference)
    assert later.loss < 0.9 * metrics.loss
    assert later.others["margin"] > metrics.others["margin"]
    assert later.others["accuracy"] == 1
    jax.tree.map(np.testing.assert_array_equal, before, (params, reference))

    empty = {name: jnp.zeros_like(x) for name, x in batch.items()} | {"pairs_um": jnp.full_like(batch["pairs_um"], -1)}
    state, metrics = step(init_state(policy, optimizer), params, empty, reference)
    assert metrics.loss == metrics.grad_norm == 0
    jax.tree.map(np.testing.assert_array_equal, state.trainable, policy.trainable)


@pytest.mark.parametrize("name", ["reference", None])
def test_references_from_a_table_give_the_losses_of_those_computed_in_the_step(model, policy, pairs, request, name):
    config, params = model
    reference = request.getfixturevalue(name) if name else None
    rows = {"batch_size": ROWS, "sequence_length": LENGTH}
    reference_m2 = table(params, reference, eval_pair_batches(pairs, **rows), len(pairs), config=config)
    loss_sum = jax.jit(preference.loss_sum, static_argnames=("objective", "config"))
    run = functools.partial(loss_sum, params, policy, objective=CASES["dpo"], config=config)
    cached = run(None, batch_of(pairs, reference_m2=reference_m2))
    computed = run(reference, batch_of(pairs))
    np.testing.assert_allclose(cached[0], computed[0], rtol=1e-6)
    assert cached[1] == computed[1] == 4
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), cached[2], computed[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_sums_over_the_answers_tokens(model, policy, pairs, layout: str):
    config, params = model
    pairs = pairs[:2]
    batch = batch_of(pairs, layout)
    numbers = np.asarray(batch["pairs_um"])
    log_probs_um2, counts_um2, _ = log_probs_and_gradient(
        params, policy, batch, jnp.zeros((*numbers.shape, 2)), config=config
    )
    documents = [document for pair in pairs for document in (pair["chosen"], pair["rejected"])]
    tokens_bt = np.zeros((len(documents), LENGTH), np.int32)
    for row, document in enumerate(documents):
        tokens_bt[row, : len(document["tokens"])] = document["tokens"]
    logits_btv = np.asarray(apply(params, policy, tokens_bt, config=config), np.float64)
    log_probs_btv = logits_btv - np.log(np.exp(logits_btv).sum(-1, keepdims=True))
    for row, document in enumerate(documents):
        place = (*np.argwhere(numbers == row // 2)[0], row % 2)
        where = np.flatnonzero(document["loss_mask"])
        expected = log_probs_btv[row, where - 1, document["tokens"][where]].sum()
        np.testing.assert_allclose(log_probs_um2[place], expected, atol=1e-4)
        assert counts_um2[place] == len(where)
    assert (numbers < 0).any()
    assert not np.asarray(log_probs_um2)[numbers < 0].any()
    assert not np.asarray(counts_um2)[numbers < 0].any()


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


def test_every_objective_can_be_configured():
    names = ObjectiveConfig.__annotations__["name"].__args__
    assert set(names) == {"sft", *preference.LOSSES}
    assert make_objective(ObjectiveConfig()).metrics == ()
