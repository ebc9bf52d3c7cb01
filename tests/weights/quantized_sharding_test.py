"""Quantization and a quantized step over eight devices, in a separate process, equal those on one device."""

import json
import sys

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import optax
import pytest

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params, init_params
from aligner_jax.model.quantized import Quantization
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import sharding
from aligner_jax.weights.quantize import quantizer

CONFIG = LlamaConfig(
    vocab_size=64, d_model=64, d_mlp=96, num_layers=3, num_heads=16, num_kv_heads=8, head_dim=64, context_length=128
)
KINDS = ("int8", "int4")


def quantized(params: Params, kind: str, shardings: Params | None = None) -> Params:
    """Returns the parameters quantized, on the devices of `shardings`."""
    finish = quantizer(CONFIG, Quantization(kind), shardings)
    layers = {name: finish(name, jnp.copy(leaf)) for name, leaf in vars(params.layers).items() if leaf is not None}
    return params.replace(layers=Layers(**layers))


def difference(kind: str) -> float:
    """Returns the relative difference of the loss on a mesh and on one device. Fails if quantized parameters differ."""
    original = init_params(CONFIG)
    params, adapter = quantized(original, kind), init_adapter("aligner", CONFIG, num_tokens=2, start_layer=1)
    draw = np.random.default_rng(0)
    batch = Batch(
        tokens_bt=draw.integers(0, 64, (8, 128)).astype(np.int32),
        segment_ids_bt=np.ones((8, 128), np.int32),
        positions_bt=np.tile(np.arange(128, dtype=np.int32), (8, 1)),
        loss_mask_bt=np.ones((8, 128), bool),
    )
    step = make_step(adapter, optax.adamw(1e-3), config=CONFIG, remat="full")
    state = init_state(adapter, optax.adamw(1e-3))
    _, alone = jax.jit(step)(state, params, batch)
    mesh = sharding.make_mesh(data=2)
    with sharding.use(mesh):
        shardings = sharding.param_shardings(CONFIG, mesh, quantization=Quantization(kind))
        split = quantized(jax.device_put(original, sharding.param_shardings(CONFIG, mesh)), kind, shardings)
        assert jax.tree.map(lambda x: x.sharding, split) == shardings
        jax.tree.map(np.testing.assert_array_equal, split, params)
        on_mesh = jax.device_put(state, sharding.replicated(mesh))
        _, found = jax.jit(step)(on_mesh, split, jax.device_put(batch, sharding.batch_sharding(mesh)))
    return abs(float(found.loss - alone.loss)) / float(alone.loss)


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_and_a_step_split_over_a_mesh_are_those_of_one_device(kind: str):
    child = many_devices.run([sys.executable, __file__, kind], 8)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) < 1e-5


if __name__ == "__main__":
    print(json.dumps(difference(sys.argv[1])))
