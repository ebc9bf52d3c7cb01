"""TPU programs read a layer's weights in place in the stack, even if a device's part of an axis fills no register."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aligner_jax.model.layout import as_stored
from aligner_jax.planning.compiled import compile_for
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import chips, sharding

LAYERS, D, F = 32, 4096, 4 * 1376


@functools.partial(jax.jit, static_argnames=("axes",))
def last(x_bd, stack_ldf, axes):
    def one(x_bd, index):
        weight_df = as_stored(stack_ldf[index], axes)
        return jnp.tanh(x_bd @ weight_df) @ weight_df.T, None

    def all_layers(x_bd, _):
        return jax.lax.scan(one, x_bd, jnp.arange(LAYERS))

    # In a loop, as in decoding, the compiler would copy the whole stack into another layout once, ahead of the loop.
    return jax.lax.scan(all_layers, x_bd, None, length=8)[0]


@pytest.mark.parametrize(("axes", "copied"), [((None, "mlp"), False), (None, True)], ids=str)
def test_a_stack_whose_rows_do_not_fill_the_lanes_is_not_copied(axes, copied: bool):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    devices = topology_devices("v5e:2x2")
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=4, devices=devices)
    stack = jax.ShapeDtypeStruct(
        (LAYERS, D, F), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    )
    x_bd = jax.ShapeDtypeStruct((8, D), jnp.bfloat16, sharding=sharding.replicated(mesh))
    with sharding.use(mesh):
        compiled = compile_for(chips.CHIPS["TPU v5 lite"], last, x_bd, stack, axes=axes)
    assert compiled.temporary_bytes is not None
    assert (compiled.temporary_bytes >= LAYERS * D * F // 4 * 2) == copied
