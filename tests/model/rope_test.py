"""Rotary embeddings against complex multiplication, LLaMA 3.1's scaling against its definition by wavelength."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.model.config import LlamaConfig, RopeScaling, llama_config
from aligner_jax.model.rope import inverse_frequencies, rotate, rotation

X_BTNH = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 4, 6)), jnp.float32)
POSITIONS_BT = jnp.asarray([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 30, 31]])


def test_rotation_is_multiplication_by_a_unit_complex_number(config: LlamaConfig):
    frequencies = 10_000.0 ** (-np.arange(3) / 3)
    x = np.asarray(X_BTNH, np.float64)
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * np.asarray(POSITIONS_BT)[..., None, None] * frequencies)
    rotated = rotate(X_BTNH, rotation(POSITIONS_BT, config))
    np.testing.assert_allclose(rotated, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_position_zero_is_the_identity_bit_for_bit(config: LlamaConfig):
    rotated = rotate(X_BTNH, rotation(jnp.zeros((1, 7), jnp.int32), config))
    np.testing.assert_array_equal(rotated, X_BTNH)


def test_scores_depend_on_the_distance_alone(config: LlamaConfig):
    def scores(shift: int):
        rotated = rotate(X_BTNH, rotation(POSITIONS_BT + shift, config))
        return jnp.einsum("btnh,bsnh->btsn", rotated, rotated)

    np.testing.assert_allclose(scores(25), scores(0), atol=2e-5)


def test_rotate_keeps_the_dtype(config: LlamaConfig):
    assert rotate(X_BTNH.astype(jnp.bfloat16), rotation(POSITIONS_BT, config)).dtype == jnp.bfloat16


def test_theta_sets_the_slowest_wavelength():
    config = llama_config("llama3_8b")
    assert inverse_frequencies(config)[0] == 1.0
    np.testing.assert_allclose(inverse_frequencies(config)[-1], 500_000.0 ** (-126 / 128), rtol=1e-6)


@pytest.mark.parametrize("name", ["llama3_1_8b", "llama3_2_1b"])
def test_llama3_scaling_by_wavelength(name: str):
    config = llama_config(name)
    scaling = config.rope_scaling
    assert isinstance(scaling, RopeScaling)
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None)).astype(np.float64)
    kept = stretched = blended = 0
    for frequency, scaled in zip(plain, inverse_frequencies(config), strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < scaling.original_context_length / scaling.high_freq_factor:
            expected, kept = frequency, kept + 1
        elif wavelength > scaling.original_context_length / scaling.low_freq_factor:
            expected, stretched = frequency / scaling.factor, stretched + 1
        else:
            smooth = (scaling.original_context_length / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            expected, blended = (1 - smooth) * frequency / scaling.factor + smooth * frequency, blended + 1
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    assert min(kept, stretched, blended) > 0
