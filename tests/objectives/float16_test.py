"""Training in float16: it follows float32, and no gradient underflows or overflows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter

METHODS = {
    "one token": ("aligner", {"num_tokens": 1, "start_layer": 0}),
    "tokens": ("aligner", {"num_tokens": 3, "start_layer": 0}),
    "lora": ("lora", {"rank": 2, "dropout": 0.0}),
    "prefix": ("prefix", {"num_tokens": 3}),
}
STEPS, LENGTH = 12, 24


@pytest.fixture(scope="module")
def batch(pack):
    """Packed rows, in which the padding at the end attends to itself alone."""
    rng = np.random.default_rng(0)
    documents = [[(rng.integers(0, 40, n).tolist(), [0, *[1] * (n - 1)]) for n in row] for row in ((9, 12), (7, 8, 6))]
    return pack(documents, LENGTH)


@pytest.fixture(scope="module")
def usual(params: Params) -> Params:
    """The shared model with weights of usual size; three times as large, they overflow nothing but train badly."""
    return jax.tree.map(lambda x: x if x.ndim < 2 else x / 3, params)


def trained(method: str, config: LlamaConfig, params: Params, batch) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns the trained arrays, the losses, and the flags of skipped steps."""
    name, options = METHODS[method]
    adapter, optimizer = init_adapter(name, config, **options), optax.adamw(1e-2)
    step = jax.jit(make_step(adapter, optimizer, config=config, accumulate=2))
    state, taken = init_state(adapter, optimizer), []
    for _ in range(STEPS):
        state, metrics = step(state, params, batch)
        taken.append(metrics)
    return state.trainable, np.asarray([each.loss for each in taken]), np.asarray([each.skipped for each in taken])


@pytest.mark.parametrize("method", METHODS)
def test_training_follows_float32(method: str, config: LlamaConfig, usual: Params, batch):
    half = jax.tree.map(lambda x: x.astype(jnp.float16), usual)
    # The reference has the same rounded weights, so that only the computation differs.
    same = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    expected, expected_losses, _ = trained(method, config, same, batch)
    found, losses, skipped = trained(method, config, half, batch)
    assert not skipped.any()
    assert expected_losses[-1] < expected_losses[0] - 0.01
    np.testing.assert_allclose(losses, expected_losses, atol=2e-3)
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}
    initial = init_adapter(METHODS[method][0], config, **METHODS[method][1]).trainable
    for name, x in found.items():
        moved = np.linalg.norm(expected[name] - initial[name])
        assert np.linalg.norm(x - expected[name]) < 0.1 * moved, name


@functools.partial(jax.jit, static_argnames="config")
def first_loss(params: Params, batch, config: LlamaConfig):
    adapter = init_adapter("aligner", config, start_layer=0)
    step = make_step(adapter, optax.sgd(1.0), config=config)
    return step(init_state(adapter, optax.sgd(1.0)), params, batch)[1]


def test_activations_that_overflow_skip_the_step(config: LlamaConfig, usual: Params, batch):
    layers = usual.layers
    huge = usual.replace(layers=layers.replace(gate_ldf=layers.gate_ldf * 1e3, up_ldf=layers.up_ldf * 1e3))
    assert not first_loss(huge, batch, config=config).skipped
    assert first_loss(jax.tree.map(lambda x: x.astype(jnp.float16), huge), batch, config=config).skipped
