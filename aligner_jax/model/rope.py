"""Rotary position embeddings in Hugging Face's half-split layout: dimension i is paired with dimension i + h/2."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aligner_jax.model.config import LlamaConfig, RopeScaling


def rotation(
    positions_bt: Int[Array, "b t"], config: LlamaConfig
) -> tuple[Float[Array, "b t 1 h/2"], Float[Array, "b t 1 h/2"]]:
    """Returns float32 cosines and sines for `rotate`, with an axis of size 1 for the heads."""
    angles_bth = positions_bt[..., None].astype(jnp.float32) * jnp.asarray(inverse_frequencies(config))[None, None]
    return jnp.cos(angles_bth)[:, :, None], jnp.sin(angles_bth)[:, :, None]


def rotate(x_btnh: Float[Array, "b t n h"], cos_sin: tuple[Array, Array]) -> Float[Array, "b t n h"]:
    """Rotates queries or keys in float32; returns x's dtype."""
    with jax.named_scope("rope"):
        cos_bt1h, sin_bt1h = cos_sin
        first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
        rotated = (first * cos_bt1h - second * sin_bt1h, second * cos_bt1h + first * sin_bt1h)
        return jnp.concatenate(rotated, axis=-1).astype(x_btnh.dtype)


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """Returns radians per position of the h/2 pairs, float32 [h/2], with LLaMA 3.1's scaling if configured."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _llama3_scaled(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)


def _llama3_scaled(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    turns = scaling.original_context_length * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return frequencies * (blend + (1 - blend) / scaling.factor)
