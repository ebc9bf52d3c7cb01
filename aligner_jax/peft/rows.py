"""Many adapters in one batch: a leading axis a on the trained arrays, and an adapter's number for every row."""

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
    """One adapter whose arrays have a leading axis a, of adapters of one method with the same options.

    Raises:
      InputError: there is none, or they differ in method or options.
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
    """The adapter of that number out of a stack."""
    return adapter.replace(trainable=_entry(adapter.trainable, replicate(np.int32(index))))


@jax.jit
def _entry(trainable: dict[str, Array], index: Array) -> dict[str, Array]:
    return jax.tree.map(lambda leaf: leaf[index], trainable)


def num_stacked(adapter: Adapter) -> int:
    """The number of adapters in a stack."""
    return next(iter(adapter.trainable.values())).shape[0]


def bind_rows(
    adapter: Adapter,
    params: Params,
    config: LlamaConfig,
    adapter_b: Int[Array, " b"],
    *,
    dropout_key: Array | None = None,
) -> Bound:
    """What the model needs to know where row i has the adapter adapter_b[i] of a stack.

    Every adapter is bound once, however many rows it has. A row's output does not depend on the other rows' adapters.

    Raises:
      InputError: rows cannot have adapters of this method of their own.
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
        """[a, l, …] to [l, b, …]."""
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
            # Within one adapter all rows share its prefix: [a, l, 1, …] to [l, b, …].
            leaves = (rows(x[:, :, 0]) for x in (prefix.k_bpkh, prefix.v_bpkh, prefix.gate_bn))
            prefix = Prefix(*leaves, joint=prefix.joint)
        updates = {name: update_rows(update) for name, update in part.updates.items()}
        return Adapted(part.layers, prefix=prefix, updates=updates)

    return dataclasses.replace(bound, adapted=tuple(map(part_rows, bound.adapted)))
