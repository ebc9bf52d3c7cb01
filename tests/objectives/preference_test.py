"""Preference objectives: TRL's losses and gradients, for any layout of pairs in rows and any split of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import GOLDENS

from aligner_jax.data.pair_rows import eval_pair_batches
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import preference
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.objectives.dpo import DPOOptions
from aligner_jax.objectives.ipo import IPOOptions
from aligner_jax.objectives.preference import PreferenceOptions
from aligner_jax.objectives.reference import table
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import Adapter, apply, init_adapter
from aligner_jax.tasks.preference import DPO
from aligner_jax.weights.hf import load_hf

CASES = {
    "dpo": DPOOptions(beta=0.1),
    "dpo_steep": DPOOptions(beta=0.7),
    "dpo_smoothed": DPOOptions(beta=0.1, label_smoothing=0.2),
    "ipo": IPOOptions(beta=0.1),
    "ipo_steep": IPOOptions(beta=0.7),
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


def batch_of(pairs: list[dict], layout: str = "packed", **options) -> PairBatch:
    """Returns all pairs in one batch."""
    (batch,) = eval_pair_batches(pairs, batch_size=ROWS, sequence_length=LENGTH, packing=LAYOUTS[layout], **options)
    return jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnames=("config",))
def log_probs_and_gradient(params, adapter, batch, slopes_bt, *, config):
    """Returns token log-probabilities, and their vector-Jacobian product with the slopes for the adapter."""

    def of(trainable):
        return preference.token_log_probs(params, adapter.replace(trainable=trainable), batch, config=config)

    log_probs_bt, pull = jax.vjp(of, adapter.trainable)
    return log_probs_bt, pull(slopes_bt)[0]


def loss_and_gradient(model, policy: Adapter, reference: Adapter, batch: PairBatch, options: PreferenceOptions):
    """Returns means over the pairs: loss, gradient and metrics. The model is compiled once for all objectives."""
    config, params = model
    run = functools.partial(log_probs_and_gradient, params, config=config)
    policy_bt, reference_bt = (run(adapter, batch, jnp.zeros((ROWS, LENGTH)))[0] for adapter in (policy, reference))
    there_um = batch.pairs_um >= 0

    def loss_of(policy_bt):
        answers = preference.compare(policy_bt, reference_bt, batch)
        of_pairs = preference.losses_and_metrics(answers, options=options)
        means = {name: jnp.mean(x_um, where=there_um) for name, x_um in of_pairs.items()}
        return means.pop("loss"), means

    (loss, metrics), slopes_bt = jax.value_and_grad(loss_of, has_aux=True)(policy_bt)
    return loss, run(policy, batch, slopes_bt)[1], metrics


@pytest.mark.parametrize("case", CASES)
def test_losses_and_slopes_are_those_of_trl(case: str):
    options = CASES[case]
    arrays = [jnp.asarray(golden[name], jnp.float32) for name in ("policy_m2", "reference_m2", "counts_m2")]

    def loss_of(policy_m2, reference_m2, counts_m2):
        losses_m = options.losses(policy_m2, reference_m2, counts_m2)
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
        # The tolerance is 1e-5 of the largest entry, since an IPO gradient is larger than one.
        np.testing.assert_allclose(gradient[new], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if case == "dpo":
        theirs = {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margins"}
        for ours, name in {**theirs, "accuracy": "accuracies"}.items():
            np.testing.assert_allclose(metrics[ours], golden[f"model/rewards/{name}"], atol=1e-5)


@pytest.mark.parametrize(("case", "layout"), [("dpo_smoothed", "packed"), ("ipo", "a document a row")])
def test_a_step_in_parts_has_the_gradient_of_the_batch_and_training_widens_the_margin(
    model, policy, reference, pairs, case: str, layout: str
):
    """Three pairs are split in four parts, so that a mean of means differs from the mean."""
    config, params = model
    options, batch = CASES[case], batch_of(pairs[:3], layout)
    in_parts = np.sum(np.asarray(batch.pairs_um).reshape(4, -1) >= 0, 1)
    assert len(set(in_parts.tolist())) > 1
    optimizer = optax.chain(optax.trace(decay=0.0), optax.adam(0.02))
    step = jax.jit(make_step(policy, optimizer, config=config, accumulate=4, loss=DPO.loss(options)), donate_argnums=0)
    before = jax.tree.map(np.array, (params, reference))
    state, metrics = step(init_state(policy, optimizer), params, batch, reference)
    loss, gradient, means = loss_and_gradient(model, policy, reference, batch, options)
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

    empty = dataclasses.replace(jax.tree.map(jnp.zeros_like, batch), pairs_um=jnp.full_like(batch.pairs_um, -1))
    state, metrics = step(init_state(policy, optimizer), params, empty, reference)
    assert metrics.loss == metrics.grad_norm == 0
    jax.tree.map(np.testing.assert_array_equal, state.trainable, policy.trainable)


@pytest.mark.parametrize("name", ["reference", None])
def test_references_from_a_table_give_the_losses_of_those_computed_in_the_step(model, policy, pairs, request, name):
    config, params = model
    reference = request.getfixturevalue(name) if name else None
    rows = {"batch_size": ROWS, "sequence_length": LENGTH}
    reference_t = table(params, reference, eval_pair_batches(pairs, **rows), pairs, config=config)
    sums = jax.jit(preference.sums, static_argnames=("options", "config"))
    run = functools.partial(sums, params, policy, options=CASES["dpo"], config=config)
    cached = run(None, batch_of(pairs, reference_t=reference_t))
    computed = run(reference, batch_of(pairs))
    np.testing.assert_allclose(cached[0], computed[0], rtol=1e-6)
    assert cached[1].number == computed[1].number == 4
    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(check, cached[1].metrics, computed[1].metrics)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_compared_over_their_own_tokens(model, policy, reference, pairs, layout: str):
    """Log-probabilities are checked against each document's own logits, the divergence against its definition."""
    config, params = model
    pairs = pairs[:2]
    batch = batch_of(pairs, layout)
    numbers = np.asarray(batch.pairs_um)
    answers = preference.compare(
        *(
            log_probs_and_gradient(params, adapter, batch, jnp.zeros((ROWS, LENGTH)), config=config)[0]
            for adapter in (policy, reference)
        ),
        batch,
    )
    documents = [document for pair in pairs for document in (pair["chosen"], pair["rejected"])]
    tokens_bt = np.zeros((len(documents), LENGTH), np.int32)
    for row, document in enumerate(documents):
        tokens_bt[row, : len(document["tokens"])] = document["tokens"]
    both_btv = [
        np.asarray(jax.nn.log_softmax(apply(params, adapter, tokens_bt, config=config)), np.float64)
        for adapter in (policy, reference)
    ]
    for row, document in enumerate(documents):
        place = (*np.argwhere(numbers == row // 2)[0], row % 2)
        where = np.flatnonzero(document["loss_mask"])
        policy_t, reference_t = (x_btv[row, where - 1, document["tokens"][where]] for x_btv in both_btv)
        ratios_t = np.exp(policy_t - reference_t)
        np.testing.assert_allclose(answers.policy_m2[place], policy_t.sum(), atol=1e-4)
        np.testing.assert_allclose(answers.reference_m2[place], reference_t.sum(), atol=1e-4)
        divergence = (ratios_t - 1 - np.log(ratios_t)).sum()
        np.testing.assert_allclose(answers.divergence_m2[place], divergence, rtol=1e-4, atol=1e-4)
        assert answers.counts_m2[place] == len(where)
    assert (numbers < 0).any()
    for x_m2 in answers:
        assert not np.asarray(x_m2)[numbers < 0].any()


def test_rewards_and_the_accuracy_of_ties():
    policy_m2, reference_m2 = jnp.array([[-3.0, -5.0], [-1.0, -1.0]]), jnp.array([[-4.0, -2.0], [-1.0, -1.0]])
    counts_m2, divergence_m2 = jnp.ones((2, 2), jnp.int32), jnp.array([[1.0, 2.0], [0.0, 0.0]])
    options = DPOOptions(beta=0.5)
    found = preference.losses_and_metrics(
        preference.Answers(policy_m2, reference_m2, counts_m2, divergence_m2), options=options
    )
    np.testing.assert_allclose(found["chosen_reward"], [0.5, 0.0])
    np.testing.assert_allclose(found["rejected_reward"], [-1.5, 0.0])
    np.testing.assert_allclose(found["margin"], [2.0, 0.0])
    np.testing.assert_allclose(found["accuracy"], [1.0, 0.5])
    np.testing.assert_allclose(found["kl"], [1.5, 0.0])
    swapped = preference.Answers(reference_m2, policy_m2, counts_m2, divergence_m2)
    np.testing.assert_allclose(preference.losses_and_metrics(swapped, options=options)["accuracy"], [0.0, 0.5])
    assert set(found) == {"loss", *preference.METRICS}
