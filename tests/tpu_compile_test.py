"""What the real TPU compiler makes of attention and of the training step, for chips that need not be here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.config import llama_config
from aligner_jax.model.llama import abstract_params
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import sharding

pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@functools.cache
def devices(chip: str):
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices


@pytest.fixture(scope="module", autouse=True)
def _without_a_cache_of_programs():
    """A program compiled for chips that are not here cannot be read back from JAX's cache on disk."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def _beside_other_compilers(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def structs(tree, split):
    """Shapes and dtypes with shardings: one for all, or one for each."""
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
    lowered = jax.jit(gradients).lower(*structs((q, kv, kv, prefix, segments, q), alone))
    program = lowered.compile().as_text()
    assert "aligner_attention_forward" in program
    assert "aligner_attention_backward" in program


def test_the_7b_step_compiles_with_the_kernel_under_fsdp():
    config, mesh = llama_config("llama2_7b"), sharding.make_mesh(devices=devices("v5e"))
    optimizer = optax.adamw(9e-3)
    adapter = jax.eval_shape(lambda: init_adapter("aligner", config, num_tokens=10))
    state = jax.eval_shape(lambda: init_state(init_adapter("aligner", config, num_tokens=10), optimizer))
    params = structs(abstract_params(config, "bfloat16"), sharding.param_shardings(config, mesh))
    fields = {"tokens_bt": "int32", "segment_ids_bt": "int32", "positions_bt": "int32", "loss_mask_bt": "bool"}
    batch = {name: jax.ShapeDtypeStruct((64, 512), dtype) for name, dtype in fields.items()}
    step = make_step(adapter, optimizer, config=config, remat="full")
    with sharding.use(mesh):
        whole = structs(state, sharding.replicated(mesh))
        lowered = jax.jit(step, donate_argnums=0).lower(whole, params, structs(batch, sharding.batch_sharding(mesh)))
    compiled = lowered.compile()
    calls = re.findall(r"custom-call\(.*tpu_custom_call.*op_name=\"[^\"]*(forward|backward)", compiled.as_text())
    assert {"forward", "backward"} <= set(calls)
    assert compiled.memory_analysis().peak_memory_in_bytes < 3.5 * 2**30
