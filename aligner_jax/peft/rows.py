"""Batches whose rows have different adapters of a stack: trained arrays have a leading axis a."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.updates import LowRank, Update
from aligner_jax.peft.adapter import Adapter
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.methods import METHODS
from aligner_jax.runtime.global_batch import replicate


def stack_adapters(adapters: list[Adapter]) -> Adapter:
    """Stacks adapters of the same method and options on a new leading axis a of their arrays.

    Raises:
      InputError: the list is empty, or the adapters differ in method or options.
    """
    if not adapters:
        raise InputError("there are no adapters to stack")
    first = adapters[0]
    for adapter in adapters[1:]:
        if (adapter.method, adapter.options) != (first.method, first.options):
            raise InputError(f"adapters of one batch have one method and the same options, not {first} and {adapter}")
    trees = [adapter.trainable for adapter in adapters]
    return first.replace(trainable=jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))


def unstack_adapter(adapter: Adapter, index: int) -> Adapter:
    """Returns the adapter at `index` of a stack."""
    return adapter.replace(trainable=_entry(adapter.trainable, replicate(np.int32(index))))


@jax.jit
def _entry(trainable: dict[str, Array], index: Array) -> dict[str, Array]:
    return jax.tree.map(lambda leaf: leaf[index], trainable)


def num_stacked(adapter: Adapter) -> int:
    """Returns the number of adapters in a stack."""
    return next(iter(adapter.trainable.values())).shape[0]


def bind_rows(
    adapter: Adapter,
    params: Params,
    config: LlamaConfig,
    adapter_b: Int[Array, " b"],
    *,
    dropout_key: Array | None = None,
) -> Bound:
    """Binds a stack of adapters, so that row b has the adapter adapter_b[b].

    Every adapter is bound once, whatever its number of rows. A row's output does not depend on other rows' adapters.

    Args:
      adapter: a stack of adapters (`stack_adapters`).
      params: parameters of the base.
      config: configuration of the base.
      adapter_b: index of each row's adapter in the stack.
      dropout_key: a `jax.random.key` of this training step; None applies no dropout.

    Raises:
      InputError: rows cannot have different adapters of this method.
    """
    method = METHODS[adapter.method]
    if not method.per_row:
        raise InputError(
            f"adapters of method {adapter.method!r} cannot share a batch: each has weights of its own for every row"
        )

    def bind_one(trainable):
        return method.bind(trainable, adapter.options, params, config, dropout_key)

    bound = jax.vmap(bind_one)(adapter.trainable)

    def rows(leaf_al):
        """Maps [a, l, …] to [l, b, …]."""
        return jnp.swapaxes(leaf_al[adapter_b], 0, 1)

    def update_rows(update: Update) -> Update:
        if not isinstance(update, LowRank):
            return rows(update)
        # Keys are the same for all adapters.
        keys = None if update.keys is None else update.keys[0]
        return dataclasses.replace(update, a=rows(update.a), b=rows(update.b), keys=keys)

    def part_rows(part: Adapted) -> Adapted:
        prefix = part.prefix
        if prefix is not None:
            # All rows of an adapter share its prefix, so its batch axis has size 1: [a, l, 1, …] to [l, b, …].
            leaves = (rows(x[:, :, 0]) for x in (prefix.k_bpkh, prefix.v_bpkh, prefix.gate_bn))
            prefix = Prefix(*leaves, joint=prefix.joint)
        updates = {name: update_rows(update) for name, update in part.updates.items()}
        return Adapted(part.layers, prefix=prefix, updates=updates)

    return dataclasses.replace(bound, adapted=tuple(map(part_rows, bound.adapted)))
