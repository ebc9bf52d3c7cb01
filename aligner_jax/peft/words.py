"""Embeddings of frequent tokens of a base's vocabulary, as first values of trained tokens."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from aligner_jax.model.llama import Params

_FREQUENT = range(300, 4300)
"""Ids of frequent tokens. BPE numbers its tokens in the order of their frequency in the tokenizer's training data,
after special tokens and the 256 bytes."""


def frequent_embeddings(params: Params, count: int, key: Array) -> Float[Array, "p d"]:
    """Returns the embeddings of frequent tokens in float32; no token is chosen twice, unless there are too few.

    Args:
      params: parameters of the base.
      count: p, the number of embeddings.
      key: a `jax.random.key` that chooses the tokens.
    """
    embed_vd = params.embed_vd
    size = embed_vd.shape[0]
    ids = jnp.arange(min(_FREQUENT.start, size // 2), min(_FREQUENT.stop, size))
    chosen_p = jax.random.choice(key, ids, (count,), replace=count > len(ids))
    # Rows of a table that is split over processes are gathered, so that each of them has all values.
    split = embed_vd.sharding if isinstance(embed_vd.sharding, NamedSharding) else None
    replicated = None if split is None else NamedSharding(split.mesh, PartitionSpec())
    rows_pd = jax.jit(lambda x_vd, ids_p: x_vd[ids_p].astype(jnp.float32), out_shardings=replicated)
    return jnp.asarray(jax.device_get(rows_pd(embed_vd, jax.device_get(chosen_p))))
