"""In what order arrays lie in a device's memory."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint


def as_stored(x: jax.Array) -> jax.Array:
    """The same array; on TPUs with its axes in their order, where the compiler might like another better."""

    def keep(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    return jax.lax.platform_dependent(x, tpu=keep, default=lambda x: x)
