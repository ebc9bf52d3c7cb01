"""Attention compiled by the real TPU compiler, without TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from aligner_jax.model.attention import Prefix, attend
from aligner_jax.planning.compiled import chip_of, compile_for
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import sharding

pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@functools.cache
def devices(chip: str):
    return topology_devices(TOPOLOGIES[chip])


def structs(tree, split):
    """Returns shapes and dtypes with shardings: one sharding for all leaves, or one for each."""
    if isinstance(split, jax.sharding.Sharding):
        split = jax.tree.map(lambda _: split, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, split)


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
    ("head_dim", "length", "tokens", "dtype", "packed"),
    [
        (64, 512, 300, "bfloat16", True),
        (128, 2048, 10, "bfloat16", False),
        (128, 8192, 2, "float32", True),
        (64, 32768, 10, "bfloat16", False),
    ],
)
def test_attention_compiles_without_a_mesh_in_context(chip, head_dim, length, tokens, dtype, packed):
    alone = sharding.replicated(Mesh(np.array(devices(chip)[:1]), ("x",)))

    def gradients(q, k, v, prefix, segments, do):
        o, pull = jax.vjp(lambda *inputs: attend(*inputs, segment_ids_bt=segments), q, k, v, prefix)
        return o, pull(do)

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    q, kv = array(1, length, 4, head_dim), array(1, length, 2, head_dim)
    prefix = Prefix(*[array(1, tokens, 2, head_dim)] * 2, array(1, 4, dtype=jnp.float32))
    segments = array(1, length, dtype=jnp.int32) if packed else None
    arguments = structs((q, kv, kv, prefix, segments, q), alone)
    program = compile_for(chip_of(devices(chip)[0]), jax.jit(gradients), *arguments).text
    assert program is not None
    assert "aligner_attention_forward" in program
    assert "aligner_attention_backward" in program
