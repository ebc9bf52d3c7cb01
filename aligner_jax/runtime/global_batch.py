"""Batches of a run on many processes: each holds its devices' rows, and together they hold every row as one would."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from aligner_jax.errors import InputError


def global_batch[B](batch: B, sharding: NamedSharding) -> B:
    """Returns the batch as arrays over all processes' devices, of which this process copies its own devices' rows.

    Every process makes the same batches, since their order follows from the seed, and a row's position in the batch
    says which devices have it. So the batches, and the position in the data that a checkpoint holds, are the same for
    every number of processes; and processes that share rows, because their devices split something else, need no
    special case. Every process packs all rows, which takes it about a millisecond a row of 512 tokens, while a step
    runs.

    Args:
      batch: a pytree of arrays with the rows on the first axis of each, the same on every process.
      sharding: of that first axis, from `sharding.batch_sharding`.

    Raises:
      InputError: the sharding does not divide the rows.
    """
    return jax.tree_util.tree_map_with_path(lambda path, rows: _spread(path, rows, sharding), batch)


def _spread(path: jax.tree_util.KeyPath, rows: np.ndarray, sharding: NamedSharding) -> Array:
    try:
        sharding.shard_shape(rows.shape)
    except ValueError as error:
        name = jax.tree_util.keystr(path, simple=True)
        raise InputError(
            f"{name} of a batch has {len(rows)} rows, which the mesh {dict(sharding.mesh.shape)} does not divide"
        ) from error
    # Not make_array_from_callback: its transfers count as implicit, which the training loop disallows.
    index_of = sharding.addressable_devices_indices_map(rows.shape)
    parts = jax.device_put([rows[index] for index in index_of.values()], list(index_of))
    return jax.make_array_from_single_device_arrays(rows.shape, sharding, parts)


def replicate[T](tree: T) -> T:
    """Returns arrays of the host as arrays that every device of the mesh in context holds, by explicit transfers.

    Args:
      tree: arrays that are the same on every process.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.size == 1:
        return jax.device_put(tree)
    return global_batch(tree, NamedSharding(mesh, PartitionSpec()))
