"""Cross-entropy of an output head in chunks of tokens, so that only one chunk's logits exist at a time."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.llama import Head, Params, head_columns, unembed, unembed_vjp
from aligner_jax.model.logical import mesh_axes, on_each_device

MIN_CHUNK, MAX_CHUNK = 64, 512
"""Bounds of tokens per chunk. Smaller chunks are limited by reading the head, larger ones by their logits."""
VOCAB_BLOCK = 4096
"""Columns of a chunk's logits that exist at a time if the head is frozen; they fit a CPU's caches."""


def token_losses(
    params: Params,
    hidden_btd: Float[Array, "b t d"],
    targets_bt: Int[Array, "b t"],
    mask_bt: Bool[Array, "b t"],
    *,
    chunk: int | None = None,
) -> Float[Array, "b t"]:
    """Returns −log p(target) in nats where the mask is True, and 0 elsewhere, in float32.

    Masked-in positions are gathered to the front, and chunks without any are skipped, so the head's cost is
    proportional to the number of targets.

    If only the hidden states are differentiated (a frozen base), the residual of the forward pass is each token's
    gradient with respect to its hidden state, and the backward pass neither stores nor recomputes logits. One pass over
    blocks of the vocabulary computes loss and gradient, by the online softmax (arXiv 1805.02867). If the parameters are
    differentiated too, the backward pass recomputes the logits chunk by chunk.

    Args:
      params: parameters of the model, which include the output head.
      hidden_btd: hidden states after the final norm.
      targets_bt: target token id of each position.
      mask_bt: True at positions that have a loss.
      chunk: positions per chunk; by default a quarter of all, between `MIN_CHUNK` and `MAX_CHUNK`.
    """
    # Each device gathers the positions of its own rows, and needs the entire "embed" axis of its shard of the head.
    rows, head = ("batch", None), Head.of(params)
    of_head = {"head_dv": (None, "vocab"), "embed_vd": ("vocab", None)}
    head_axes = {name: axes for name, axes in of_head.items() if getattr(head, name) is not None}
    in_axes = (head._replace(**head_axes), (*rows, None), rows, rows)
    losses = on_each_device(functools.partial(_token_losses, chunk=chunk), in_axes, rows)
    return losses(head, hidden_btd, targets_bt, mask_bt)


def _token_losses(head: Head, hidden_btd, targets_bt, mask_bt, *, chunk: int | None):
    b, t, d = hidden_btd.shape
    chunk = chunk or min(max(b * t // 4, MIN_CHUNK), MAX_CHUNK)
    order = jnp.argsort(~mask_bt.reshape(-1), stable=True)
    order = jnp.pad(order, (0, -(b * t) % chunk), constant_values=b * t)
    hidden = hidden_btd.reshape(b * t, d).at[order].get(mode="fill", fill_value=0)
    targets = targets_bt.reshape(-1).at[order].get(mode="fill", fill_value=0)
    counts = mask_bt.reshape(-1).at[order].get(mode="fill", fill_value=False)
    losses = _chunked_losses(hidden, head, targets, counts, chunk)
    return jnp.zeros(b * t, jnp.float32).at[order].set(losses, mode="drop").reshape(b, t)


def _frozen_losses(hidden, head: Head, targets, counts, chunk: int):
    def losses_of(hidden_cd, targets_c, counts_c):
        return jnp.where(counts_c, _in_blocks(hidden_cd, head, targets_c, grads=False)[0], 0.0)

    return _scan(losses_of, _no_losses, (hidden, targets, counts), chunk).reshape(-1)


def _plain_losses(hidden, head: Head, targets, counts, chunk: int):
    def losses_of(hidden_cd, targets_c, counts_c):
        return jnp.where(counts_c, _losses(hidden_cd, head, targets_c), 0.0)

    return _scan(losses_of, _no_losses, (hidden, targets, counts), chunk).reshape(-1)


def _forward(hidden, head, targets, counts, chunk: int):
    perturbed = any(leaf.perturbed for leaf in jax.tree.leaves(head))
    hidden, head, targets, counts = jax.tree.map(lambda x: x.value, (hidden, head, targets, counts))
    if perturbed:
        return _plain_losses(hidden, head, targets, counts, chunk), (hidden, head, targets, counts)

    def losses_and_grads(hidden_cd, targets_c, counts_c):
        losses_c, grads_cd = _in_blocks(hidden_cd, head, targets_c, grads=True)
        assert grads_cd is not None
        return jnp.where(counts_c, losses_c, 0.0), jnp.where(counts_c[:, None], grads_cd, 0.0).astype(hidden_cd.dtype)

    def nothing(hidden_cd, targets_c, counts_c):
        return _no_losses(hidden_cd, targets_c, counts_c), jnp.zeros_like(hidden_cd)

    losses, grads = _scan(losses_and_grads, nothing, (hidden, targets, counts), chunk)
    return losses.reshape(-1), grads.reshape(hidden.shape)


def _backward(chunk: int, residuals, d_losses):
    if isinstance(residuals, tuple):
        hidden, head, targets, counts = residuals
        plain = functools.partial(_plain_losses, targets=targets, counts=counts, chunk=chunk)
        return (*jax.vjp(plain, hidden, head)[1](d_losses), None, None)
    return (residuals.astype(jnp.float32) * d_losses[:, None]).astype(residuals.dtype), None, None, None


_chunked_losses = jax.custom_vjp(_frozen_losses, nondiff_argnums=(4,))
_chunked_losses.defvjp(_forward, _backward, symbolic_zeros=True)


class _Sums(NamedTuple):
    """Running sums of the online softmax, relative to the largest logit; grads_cd sums the columns weighted by p."""

    largest_c1: Float[Array, "c 1"]
    denominator_c1: Float[Array, "c 1"]
    grads_cd: Float[Array, "c d"] | None


def _in_blocks(hidden_cd, head: Head, targets_c, *, grads: bool):
    """Returns losses and, with `grads`, their gradients with respect to the hidden states, in float32."""

    def add(sums: _Sums, block: Head) -> _Sums:
        logits_cv = unembed(block, hidden_cd)
        largest_c1 = jnp.maximum(sums.largest_c1, jnp.max(logits_cv, axis=-1, keepdims=True))
        shrink_c1, powers_cv = jnp.exp(sums.largest_c1 - largest_c1), jnp.exp(logits_cv - largest_c1)
        denominator_c1 = sums.denominator_c1 * shrink_c1 + jnp.sum(powers_cv, axis=-1, keepdims=True)
        if sums.grads_cd is None:
            return _Sums(largest_c1, denominator_c1, None)
        # The powers are rounded to the head's dtype, so that the product is fast.
        grads_cd = sums.grads_cd * shrink_c1 + unembed_vjp(block, powers_cv.astype(hidden_cd.dtype))
        return _Sums(largest_c1, denominator_c1, grads_cd)

    def step(sums: _Sums, start):
        return add(sums, head.block(start, size)), None

    size = min(VOCAB_BLOCK, head.vocab_size)
    whole = head.vocab_size // size
    zeros_c1 = jnp.zeros((len(targets_c), 1))
    sums = _Sums(zeros_c1 - jnp.inf, zeros_c1, jnp.zeros(hidden_cd.shape) if grads else None)
    sums = jax.lax.scan(step, sums, jnp.arange(whole) * size)[0]
    if rest := head.vocab_size - whole * size:
        sums = add(sums, head.block(whole * size, rest))
    sums = _over_all_parts(sums)
    # The gradient of the logits is p − 1 at the target and p elsewhere; subtracting the target's column applies the −1.
    column_cd = _of_target(head, targets_c, lambda local_c: head_columns(head, local_c).astype(jnp.float32))
    of_target_c = jnp.sum(hidden_cd.astype(jnp.float32) * column_cd, axis=-1)
    losses_c = (sums.largest_c1 + jnp.log(sums.denominator_c1))[:, 0] - of_target_c
    return losses_c, None if sums.grads_cd is None else sums.grads_cd / sums.denominator_c1 - column_cd


def _over_all_parts(sums: _Sums) -> _Sums:
    """Combines the sums of each device's shard of the vocabulary."""
    split_over = mesh_axes("vocab")
    if not split_over:
        return sums
    largest_c1 = jax.lax.pmax(sums.largest_c1, split_over)
    shrink_c1 = jnp.exp(sums.largest_c1 - largest_c1)
    denominator_c1 = jax.lax.psum(sums.denominator_c1 * shrink_c1, split_over)
    if sums.grads_cd is None:
        return _Sums(largest_c1, denominator_c1, None)
    return _Sums(largest_c1, denominator_c1, jax.lax.psum(sums.grads_cd * shrink_c1, split_over))


def _of_target(head: Head, targets_c, of_local):
    """Applies `of_local` to the targets' indices in the head, each on the device that holds the target's column."""
    split_over = mesh_axes("vocab")
    if not split_over:
        return of_local(targets_c)
    local_c = targets_c - jax.lax.axis_index(split_over) * head.vocab_size
    here_c = (local_c >= 0) & (local_c < head.vocab_size)
    found = of_local(jnp.where(here_c, local_c, 0))
    return jax.lax.psum(jnp.where(here_c.reshape(-1, *(1,) * (found.ndim - 1)), found, 0), split_over)


def _losses(hidden_cd, head: Head, targets_c):
    logits_cv = unembed(head, hidden_cd)
    largest_c = jax.lax.stop_gradient(jnp.max(logits_cv, axis=-1))
    if split_over := mesh_axes("vocab"):
        largest_c = jax.lax.pmax(largest_c, split_over)
    denominator_c = jnp.sum(jnp.exp(logits_cv - largest_c[:, None]), axis=-1)
    if split_over:
        denominator_c = jax.lax.psum(denominator_c, split_over)
    take = lambda local_c: jnp.take_along_axis(logits_cv, local_c[:, None], axis=-1)[:, 0]  # noqa: E731
    return largest_c + jnp.log(denominator_c) - _of_target(head, targets_c, take)


def _no_losses(hidden_cd, targets_c, counts_c):
    return jnp.zeros(counts_c.shape, jnp.float32)


def _scan(do, do_nothing, arrays, chunk: int):
    """Scans `do` over the chunks of the arrays, or `do_nothing` for chunks without targets."""

    def step(_, inputs):
        return None, jax.lax.cond(jnp.any(inputs[2]), do, do_nothing, *inputs)

    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), arrays)
    return jax.lax.scan(jax.checkpoint(step), None, chunks)[1]
