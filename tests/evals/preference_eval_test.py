"""Held-out preferences: means over pairs, and a policy that is its own reference."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from aligner_jax.data.pair_rows import eval_pair_batches
from aligner_jax.data.pairs import prompt_numbers
from aligner_jax.errors import InputError
from aligner_jax.evals import preference
from aligner_jax.evals.interval import grouped_interval
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.dpo import DPOOptions
from aligner_jax.objectives.preference import compare, losses_and_metrics
from aligner_jax.objectives.reference import table, token_log_probs

DPO = DPOOptions(beta=0.3)
ROWS = {"batch_size": 2, "sequence_length": 24}
PROMPTS = [7, 7, 8, 9, 9, 7, 5, 6, 4]


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    random = np.random.default_rng(0)

    def document(prompt: int):
        tokens = np.append(prompt, random.integers(0, 40, random.integers(1, 11))).astype(np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) > 0}

    return [{"chosen": document(prompt), "rejected": document(prompt)} for prompt in PROMPTS]


def test_the_measures_are_means_over_all_pairs(config: LlamaConfig, params: Params, trained_adapter, pairs):
    policy, reference = trained_adapter(1, key=3), trained_adapter(1, key=4)
    batches = list(eval_pair_batches(pairs, **ROWS))
    assert len(batches) > 1
    prompts_m = prompt_numbers(pairs)
    assert prompts_m.tolist() == [0, 0, 1, 2, 2, 0, 3, 4, 5]
    options = {"prompts_m": prompts_m, "options": DPO, "config": config}
    found = preference.measure(params, policy, reference, batches, **options)
    each = []
    for pair in pairs:
        (batch,) = eval_pair_batches([pair], **ROWS)
        both = (token_log_probs(params, adapter, batch, config=config) for adapter in (policy, reference))
        of_pair = losses_and_metrics(compare(*both, batch), options=DPO)
        each.append({name: float(value[0, 0]) for name, value in of_pair.items()})
    for name in each[0]:
        assert getattr(found, name) == pytest.approx(np.mean([one[name] for one in each]), abs=1e-5)
    assert (found.pairs, found.prompts) == (9, 6)
    assert found.each == list(zip(prompts_m, [one["accuracy"] for one in each], strict=True))
    assert 0 < found.accuracy < 1
    assert found.accuracy_interval == grouped_interval(np.array([one["accuracy"] for one in each]), prompts_m)
    # Results are in the pairs' order, for any order of the batches.
    assert preference.measure(params, policy, reference, batches[::-1], **options).each == found.each
    assert found.as_metrics()["heldout_accuracy_low"] == found.accuracy_interval[0]

    reference_t = table(params, reference, batches, pairs, config=config)
    cached = list(eval_pair_batches(pairs, reference_t=reference_t, **ROWS))
    assert preference.measure(params, policy, None, cached, **options) == found


def test_a_policy_that_is_its_own_reference(config: LlamaConfig, params: Params, trained_adapter, pairs):
    policy = trained_adapter(1)
    batches = list(eval_pair_batches(pairs, **ROWS))
    reference_t = table(params, policy, batches, pairs, config=config)
    cached = list(eval_pair_batches(pairs, reference_t=reference_t, **ROWS))
    for reference, some in ((policy, batches), (None, cached)):
        options = {"prompts_m": prompt_numbers(pairs), "options": DPO, "config": config}
        found = preference.measure(params, policy, reference, some, **options)
        assert (found.accuracy, found.margin, found.kl, found.chosen_reward) == (0.5, 0, 0, 0)
        assert found.loss == pytest.approx(np.log(2))


def test_a_policy_that_diverged_has_no_accuracy(config: LlamaConfig, params: Params, trained_adapter, pairs):
    policy = trained_adapter(1)
    policy = policy.replace(trainable=jax.tree.map(lambda leaf: leaf * np.nan, policy.trainable))
    options = {"prompts_m": prompt_numbers(pairs), "options": DPO, "config": config}
    found = preference.measure(params, policy, None, eval_pair_batches(pairs, **ROWS), **options)
    assert np.isnan([found.loss, found.accuracy, *found.accuracy_interval]).all()


def test_no_pairs_are_refused(config: LlamaConfig, params: Params):
    with pytest.raises(InputError, match="no preference pairs"):
        preference.measure(params, None, None, [], prompts_m=np.zeros(0, int), options=DPO, config=config)


def test_the_table():
    measured = preference.PreferenceMetrics(9, 6, 0.6, 0.75, (0.4, 0.9), 0.02, 0.01, -0.01, 0.3, [(0, 1.0)])
    screen = io.StringIO()
    result = preference.PreferenceReport(measured, measured, 5_056, 20_000)
    preference.show(result, Console(width=100, force_terminal=False, file=screen))
    for shown in ("0.6000", "75.0%", "40.0% to 90.0%", "+0.0200", "+0.0100, -0.0100", "9, 6", "5,056", "20,000 bytes"):
        assert shown in screen.getvalue()
    assert result.as_dict()["after"]["accuracy"] == 0.75
