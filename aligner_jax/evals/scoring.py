"""Computes log-likelihoods of continuations in batches of static shapes, and stores every finished batch."""

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.batches import in_batches, length_bucket
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.peft import Adapter, bind, hidden_states
from aligner_jax.runtime.progress import Count

TARGETS_A_CALL = 64
"""Positions per call of `_of_targets`, which bounds the memory of their logits."""


class Continuation(NamedTuple):
    """Tokens of which the last are scored, given the tokens before them.

    Attributes:
      ids: token ids of context and continuation; the context has at least one token.
      scored: number of tokens of the continuation.
    """

    ids: tuple[int, ...]
    scored: int

    @property
    def key(self) -> str:
        """Hash of the fields: the key of the score in `ResultStore`."""
        return hashlib.sha256(json.dumps([self.ids, self.scored]).encode()).hexdigest()[:32]


class Score(NamedTuple):
    """Score of a continuation.

    Attributes:
      log_likelihood: sum of its tokens' log-probabilities, in nats.
      is_greedy: True if greedy decoding gives the continuation.
    """

    log_likelihood: float
    is_greedy: bool


def score(subject: Subject, continuations: Sequence[Continuation], store: ResultStore, console: Console) -> list[Score]:
    """Returns the scores of continuations. Scores that `store` has are not computed again.

    Continuations that differ only in their last token share a row, as the four letters of a multiple choice do.

    Args:
      subject: base and adapter.
      continuations: continuations whose ids exceed the model's context by at most one token.
      store: finished scores by `Continuation.key`; finished batches are added to it.
      console: console for progress lines.

    Raises:
      InputError: the base has no embedding of a token, a log-likelihood is not finite, or a finished batch cannot be
        written.
    """
    rows: dict[tuple[int, ...], dict[str, Continuation]] = {}
    for each in continuations:
        subject.tokenizer.check_ids(each.ids)
        rows.setdefault(each.ids[:-1], {})[each.key] = each
    inputs = list(rows)
    buckets = [length_bucket(len(ids), subject.base.config.context_length) for ids in inputs]
    batches = in_batches(buckets, subject.batch_size)
    wanted = [{key: each for i in batch for key, each in rows[inputs[i]].items()} for batch in batches]
    unfinished = [not all(key in store for key in keys) for keys in wanted]
    total = sum(map(len, wanted))
    done = total - sum(len(keys) for keys, left in zip(wanted, unfinished, strict=True) if left)
    with Count(console, "log-likelihoods", total=total, done=done) as count:
        for batch, left in zip(batches, unfinished, strict=True):
            if left:
                members = [rows[inputs[i]] for i in batch]
                store.add(_scored(subject, [inputs[i] for i in batch], members, buckets[batch[0]]))
                count.add(sum(map(len, members)))
    return [Score(*store[each.key]) for each in continuations]


def _scored(
    subject: Subject, inputs: Sequence[tuple[int, ...]], members: Sequence[dict[str, Continuation]], bucket: int
) -> dict[str, Score]:
    """Returns the scores, by key, of all continuations of one batch."""
    tokens_bt = np.zeros((subject.batch_size, bucket), np.int32)
    places: list[tuple[int, int, int]] = []
    starts: dict[str, tuple[int, int]] = {}
    for row, (ids, continuations) in enumerate(zip(inputs, members, strict=True)):
        tokens_bt[row, : len(ids)] = ids
        for key, each in continuations.items():
            starts[key] = (len(places), len(places) + each.scored)
            first = len(each.ids) - each.scored
            places += [(row, first - 1 + i, target) for i, target in enumerate(each.ids[first:])]
    model = subject.base.params, subject.adapter
    hidden_btd = hidden(*model, jnp.asarray(tokens_bt), config=subject.base.config)
    padded_m3 = np.zeros((-(-len(places) // TARGETS_A_CALL) * TARGETS_A_CALL, 3), np.int32)
    padded_m3[: len(places)] = places
    found = [
        _of_targets(*model, hidden_btd, *jnp.asarray(part_c3.T), config=subject.base.config)
        for part_c3 in padded_m3.reshape(-1, TARGETS_A_CALL, 3)
    ]
    log_probs_m, greedy_m = (np.concatenate(parts) for parts in zip(*jax.device_get(found), strict=True))
    if not np.isfinite(log_probs_m[: len(places)]).all():
        raise InputError(
            f"{subject.name} gives log-likelihoods that are not finite: numbers of the base or of the adapter are too "
            "large for the base's dtype"
        )
    return {
        key: Score(float(np.sum(log_probs_m[start:end], dtype=np.float64)), bool(np.all(greedy_m[start:end])))
        for key, (start, end) in starts.items()
    }


@functools.partial(jax.jit, static_argnames=("config",))
def hidden(
    params: Params, adapter: Adapter | None, tokens_bt: Int[Array, "b t"], *, config: LlamaConfig
) -> Float[Array, "b t d"]:
    """Returns the last hidden states of texts, from which `_of_targets` scores `TARGETS_A_CALL` positions per call."""
    # Padding needs no mask: it follows a row's tokens, and attention is causal.
    return hidden_states(params, adapter, tokens_bt, config=config)[0]


@functools.partial(jax.jit, static_argnames=("config",))
def _of_targets(
    params: Params,
    adapter: Adapter | None,
    hidden_btd: Float[Array, "b t d"],
    rows_c: Int[Array, " c"],
    positions_c: Int[Array, " c"],
    targets_c: Int[Array, " c"],
    *,
    config: LlamaConfig,
) -> tuple[Float[Array, " c"], Bool[Array, " c"]]:
    """Returns the log-probabilities of targets that follow positions of rows, and True for the most probable tokens."""
    # An adapter may replace the head.
    params = bind(adapter, params, config).on(params)
    logits_cv = unembed(params, hidden_btd[rows_c, positions_c])
    of_target_c = jnp.take_along_axis(logits_cv, targets_c[:, None], axis=-1)[:, 0]
    log_probs_c = of_target_c - jax.scipy.special.logsumexp(logits_cv, axis=-1)
    return log_probs_c, jnp.argmax(logits_cv, axis=-1) == targets_c
