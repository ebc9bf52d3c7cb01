"""Held-out preferences: means over pairs, and a policy that is its own reference."""

import io

import numpy as np
import pytest
from rich.console import Console

from aligner_jax.data.pair_rows import eval_pair_batches
from aligner_jax.errors import InputError
from aligner_jax.evals import preference
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.preference import compare, losses_and_metrics
from aligner_jax.objectives.reference import table, token_log_probs
from aligner_jax.runtime.config import ObjectiveConfig

DPO = ObjectiveConfig(name="dpo", beta=0.3)
ROWS = {"batch_size": 2, "sequence_length": 24}


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    random = np.random.default_rng(0)

    def document():
        tokens = random.integers(0, 40, random.integers(2, 12)).astype(np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) > 0}

    return [{"chosen": document(), "rejected": document()} for _ in range(9)]


def test_the_measures_are_means_over_all_pairs(config: LlamaConfig, params: Params, trained_adapter, pairs):
    policy, reference = trained_adapter(1, key=3), trained_adapter(1, key=4)
    batches = list(eval_pair_batches(pairs, **ROWS))
    assert len(batches) > 1
    found = preference.measure(params, policy, reference, batches, objective=DPO, config=config)
    each = []
    for pair in pairs:
        (batch,) = eval_pair_batches([pair], **ROWS)
        both = (token_log_probs(params, adapter, batch, config=config) for adapter in (policy, reference))
        of_pair = losses_and_metrics(compare(*both, batch), objective=DPO)
        each.append({name: float(value[0, 0]) for name, value in of_pair.items()})
    for name in each[0]:
        assert getattr(found, name) == pytest.approx(np.mean([one[name] for one in each]), abs=1e-5)
    assert found.pairs == 9
    assert 0 < found.accuracy < 1
    assert found.accuracy_interval == wilson_interval(found.accuracy * 9, 9)
    assert found.as_metrics()["heldout_accuracy_low"] == found.accuracy_interval[0]

    reference_t = table(params, reference, batches, pairs, config=config)
    cached = list(eval_pair_batches(pairs, reference_t=reference_t, **ROWS))
    assert preference.measure(params, policy, None, cached, objective=DPO, config=config) == found


def test_a_policy_that_is_its_own_reference(config: LlamaConfig, params: Params, trained_adapter, pairs):
    policy = trained_adapter(1)
    batches = list(eval_pair_batches(pairs, **ROWS))
    reference_t = table(params, policy, batches, pairs, config=config)
    cached = list(eval_pair_batches(pairs, reference_t=reference_t, **ROWS))
    for reference, some in ((policy, batches), (None, cached)):
        found = preference.measure(params, policy, reference, some, objective=DPO, config=config)
        assert (found.accuracy, found.margin, found.kl, found.chosen_reward) == (0.5, 0, 0, 0)
        assert found.loss == pytest.approx(np.log(2))


def test_no_pairs_are_refused(config: LlamaConfig, params: Params):
    with pytest.raises(InputError, match="no preference pairs"):
        preference.measure(params, None, None, [], objective=DPO, config=config)


def test_the_table():
    measured = preference.Preferred(9, 0.6, 0.75, (0.4, 0.9), 0.02, 0.01, -0.01, 0.3)
    screen = io.StringIO()
    result = preference.BeforeAfter(measured, measured, 5_056, 20_000)
    preference.show(result, Console(width=100, force_terminal=False, file=screen))
    for shown in ("0.6000", "75.0%", "40.0% to 90.0%", "+0.0200", "+0.0100, -0.0100", "5,056", "20,000 bytes"):
        assert shown in screen.getvalue()
    assert result.as_dict()["after"]["accuracy"] == 0.75
