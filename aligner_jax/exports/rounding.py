"""Compares a written base with the adapters over their own base, layer by layer, so that neither is ever in memory."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase
from aligner_jax.model.attention import attend, gated_values
from aligner_jax.model.llama import Layers, LlamaConfig, Params, rms_norm, transform
from aligner_jax.model.rope import rotation
from aligner_jax.model.updates import updated
from aligner_jax.peft import Adapter, Bound, bind
from aligner_jax.peft.fold import at_layer
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.leaves import leaf_specs

NUM_TOKENS = 16
_HEAD_COLUMNS = 8192


def logit_difference(job: Job, written: StoredBase) -> float:
    """Returns the largest absolute difference of logits that rounding made, over `NUM_TOKENS` fixed random token ids.

    Both sides are computed in float32, so that the difference is due to the rounding of the written weights and to the
    order of sums.

    Args:
      job: the adapters and their base.
      written: the base into which they were folded.
    """
    tokens_t = np.random.default_rng(0).integers(0, job.base.config.vocab_size, NUM_TOKENS)
    base, folded = job.base.open_parts(job.base.stored_dtype), folded_parts(job.base, job.fold, "float32")
    expected_tv = streamed_logits(job.base.config, base, tokens_t, job.fold.adapters, outside=folded)
    found_tv = streamed_logits(written.config, written.open_parts(written.stored_dtype), tokens_t)
    return float(np.abs(expected_tv - found_tv).max())


def streamed_logits(
    config: LlamaConfig,
    parts: Parts,
    tokens_t: Int[np.ndarray, " t"],
    adapters: Sequence[Adapter] = (),
    outside: Parts | None = None,
) -> Float[np.ndarray, "t v"]:
    """Returns float32 logits of an adapted model that is read one layer at a time.

    Args:
      config: configuration of the model.
      parts: reads the leaves of its layers.
      tokens_t: token ids.
      adapters: adapters with an effect on layers alone, sums in parts (`Fold.adapters`); any replacements of other
        leaves are in `outside`.
      outside: reads embedding, final norm and head; None means `parts`.
    """
    specs, outside = leaf_specs(config), outside or parts
    one = dataclasses.replace(config, num_layers=1)
    rows = outside("embed_vd", [[slice(token, token + 1), slice(None)] for token in tokens_t.tolist()])
    x_btd = jnp.asarray(np.concatenate(rows).astype(np.float32))[None]
    with jax.default_matmul_precision("highest"):
        for layer in range(config.num_layers):
            leaves = {
                leaf: parts(leaf, [[slice(layer, layer + 1), *[slice(None)] * (len(spec.shape) - 1)]])[0]
                for leaf, spec in specs.items()
                if spec.axes[0] == "layers"
            }
            x_btd = jax.block_until_ready(_transformed(x_btd, leaves, at_layer(adapters, layer, config), config=one))
            # The layer's buffers are released before the next one is read.
            del leaves
        norm_d = jnp.asarray(outside("norm_d", [[slice(None)]])[0], jnp.float32)
        x_td = rms_norm(x_btd[0], norm_d, config.norm_eps)
        return np.concatenate([np.asarray(x_td @ head_dv) for head_dv in _heads(config, outside)], axis=1)


def _heads(config: LlamaConfig, parts: Parts) -> Iterator[np.ndarray]:
    """Yields the output projection, `_HEAD_COLUMNS` tokens at a time."""
    for start in range(0, config.vocab_size, _HEAD_COLUMNS):
        tokens = slice(start, min(start + _HEAD_COLUMNS, config.vocab_size))
        if config.tied_embeddings:
            yield parts("embed_vd", [[tokens, slice(None)]])[0].astype(np.float32).T
        else:
            yield parts("head_dv", [[slice(None), tokens]])[0].astype(np.float32)


def _transformed(
    x_btd: Array, leaves: dict[str, np.ndarray], adapters: list[Adapter], config: LlamaConfig
) -> Float[Array, "b t d"]:
    """Returns the output of a layer, the only one of a model of this configuration.

    The layer is not compiled as a whole, which would convert all of its weights to float32 at once.
    """
    stacked = {leaf: jnp.asarray(x) for leaf, x in leaves.items()}
    bound = _bound(stacked, adapters, config)
    updates = [{leaf: _first(update) for leaf, update in part.updates.items()} for part in bound.adapted]
    changed = {leaf for update in updates for leaf in update}
    layer = {leaf: x[0].astype(jnp.float32) if leaf in changed else x[0] for leaf, x in stacked.items()}
    weights = functools.reduce(updated, updates, Layers(**layer))  # pyright: ignore[reportArgumentType]
    prefixes = [_first(part.prefix) for part in bound.adapted if part.prefix is not None]

    def attention(q_btnh: Array, k_bskh: Array, v_bskh: Array) -> Array:
        # Prefixes that can be folded have one token, which adds its values.
        return sum((gated_values(prefix, config.num_heads) for prefix in prefixes), attend(q_btnh, k_bskh, v_bskh))

    cos_sin = rotation(jnp.arange(x_btd.shape[1], dtype=jnp.int32)[None], config)
    return transform(x_btd, weights, attention, cos_sin=cos_sin, config=config)


@functools.partial(jax.jit, static_argnames="config")
def _bound(leaves: dict[str, Array], adapters: list[Adapter], config: LlamaConfig) -> Bound:
    """Returns the adapters bound to a layer; only the weights that they are computed from are read."""
    given = {leaf: x.astype(jnp.float32) for leaf, x in leaves.items()}
    # Adapters may look at the other leaves' shapes, so zeros stand for them, and are never computed.
    others = {leaf: jnp.zeros(spec.shape) for leaf, spec in leaf_specs(config).items() if leaf not in given}
    bound = bind(adapters or None, Params(layers=Layers(**given), **others), config)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(bound, parameters={})


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
