"""Log-likelihoods: equal to those of `apply` for each row alone in any batch, and never computed twice."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from aligner_jax.evals import scoring
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.scoring import Continuation, score
from aligner_jax.evals.subject import Subject
from aligner_jax.peft import Adapter, apply, init_adapter

QUIET = Console(quiet=True)
apply_jit = jax.jit(apply, static_argnames=("config",))
METHODS = [None, "aligner", "full"]


@pytest.fixture(scope="module")
def continuations() -> list[Continuation]:
    """Continuations of lengths on both sides of the buckets' ends, and four that share a row."""
    draw = np.random.default_rng(0)
    lengths = [(2, 1), (9, 4), (33, 3), (34, 20), (49, 1), (31, 30), (49, 48)]
    made = [Continuation(tuple(draw.integers(0, 380, length).tolist()), count) for length, count in lengths]
    context = tuple(draw.integers(0, 380, 40).tolist())
    return [*made, *(Continuation((*context, letter), 1) for letter in (3, 4, 5, 6))]


@pytest.fixture(scope="module")
def adapted(tiny_subject: Callable[..., Subject], randomized: Callable[..., Adapter]) -> Callable[..., Subject]:
    def make(method: str | None, batch_size: int = 4) -> Subject:
        config = tiny_subject().base.config
        adapter = None if method is None else randomized(init_adapter(method, config))
        return tiny_subject(adapter, batch_size)

    return make


def alone(subject: Subject, each: Continuation) -> tuple[float, bool]:
    tokens_bt = jnp.asarray([each.ids[:-1]])
    logits_tv = apply_jit(subject.base.params, subject.adapter, tokens_bt, config=subject.base.config)[0]
    targets = np.asarray(each.ids[-each.scored :])
    log_probs_cv = np.asarray(jax.nn.log_softmax(logits_tv), np.float64)[-each.scored :]
    return log_probs_cv[np.arange(each.scored), targets].sum(), bool((log_probs_cv.argmax(-1) == targets).all())


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_each_row_alone(method, adapted, continuations, tmp_path: Path):
    subject = adapted(method)
    greedy = Continuation(continuations[1].ids, 1)
    tokens_bt = jnp.asarray([greedy.ids[:-1]])
    logits_btv = apply_jit(subject.base.params, subject.adapter, tokens_bt, config=subject.base.config)
    greedy = Continuation((*greedy.ids[:-1], int(jnp.argmax(logits_btv[0, -1]))), 1)
    found = score(subject, [*continuations, greedy], ResultStore(tmp_path / "store.jsonl", {}), QUIET)
    wanted = [alone(subject, each) for each in [*continuations, greedy]]
    np.testing.assert_allclose([s.log_likelihood for s in found], [w for w, _ in wanted], rtol=1e-5, atol=1e-5)
    assert [s.is_greedy for s in found] == [w for _, w in wanted]
    assert found[-1].is_greedy


def test_neither_the_batch_nor_the_order_changes_a_score(adapted, continuations, tmp_path: Path):
    of_four = score(adapted("aligner", 4), continuations, ResultStore(tmp_path / "four.jsonl", {}), QUIET)
    of_two = score(adapted("aligner", 2), continuations[::-1], ResultStore(tmp_path / "two.jsonl", {}), QUIET)[::-1]
    np.testing.assert_allclose([s[0] for s in of_two], [s[0] for s in of_four], rtol=1e-5)
    assert [s.is_greedy for s in of_two] == [s.is_greedy for s in of_four]


def test_continuations_of_two_context_share_a_row_and_equal_ones_are_one(adapted, continuations, tmp_path, monkeypatch):
    rows = []
    real = scoring._scored
    monkeypatch.setattr(scoring, "_scored", lambda *args: rows.extend(args[1]) or real(*args))
    choices = continuations[-4:]
    found = score(adapted(None), [*choices, *choices], ResultStore(tmp_path / "store.jsonl", {}), QUIET)
    assert rows == [choices[0].ids[:-1]]
    assert found[:4] == found[4:]
    assert len({s.log_likelihood for s in found}) == 4


def test_finished_batches_are_not_repeated_and_an_unfinished_one_gives_the_same_bits(
    adapted, continuations, tmp_path, monkeypatch
):
    subject, path = adapted("aligner", 2), tmp_path / "store.jsonl"
    whole = score(subject, continuations, ResultStore(tmp_path / "whole.jsonl", {}), QUIET)
    batches: list[int] = []
    real = scoring._scored

    def counted(*args):
        batches.append(len(args[1]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(scoring, "_scored", counted)
    with pytest.raises(KeyboardInterrupt):
        score(subject, continuations, ResultStore(path, {}), QUIET)
    # The kill came within the second batch's lines: its first document is complete, its last is truncated.
    path.write_bytes(path.read_bytes()[:-20])
    batches[:] = [0] * 10
    assert score(subject, continuations, ResultStore(path, {}), QUIET) == whole
    rows = len({each.ids[:-1] for each in continuations})
    assert sum(batches) == rows - 2
    batches.clear()
    assert score(subject, continuations, ResultStore(path, {}), QUIET) == whole
    assert batches == []


def test_greedy_is_what_every_token_is(adapted, tmp_path: Path):
    subject = adapted("aligner")

    def greedy_after(ids: tuple[int, ...]) -> int:
        tokens_bt = jnp.zeros((1, 6), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        logits_btv = apply_jit(subject.base.params, subject.adapter, tokens_bt, config=subject.base.config)
        return int(jnp.argmax(logits_btv[0, len(ids) - 1]))

    start = (5, 6, 7, 8)
    first = greedy_after(start)
    second = greedy_after((*start, first))
    rows = [
        (*start, first, second),
        (*start, first, (second + 1) % 380),
        (*start, (first + 1) % 380, greedy_after((*start, (first + 1) % 380))),
    ]
    found = score(subject, [Continuation(row, 2) for row in rows], ResultStore(tmp_path / "store.jsonl", {}), QUIET)
    assert [each.is_greedy for each in found] == [True, False, False]


def test_a_continuations_key_tells_how_much_is_scored():
    keys = {Continuation(ids, scored).key for ids, scored in (((1, 2, 3), 1), ((1, 2, 3), 2), ((1, 3, 2), 1))}
    assert len(keys) == 3
