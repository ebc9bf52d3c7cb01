"""Correctness of the attention implementations on this device, against the plain reference in float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.model.attention import IMPLEMENTATIONS, Prefix, attend, gated_values
from aligner_jax.model.kernels import plain
from aligner_jax.model.kernels.kernel import Inputs, Unsupported

TOKENS = (0, 1, 10, 300)
TOLERANCE = 2e-2
"""Largest error of bfloat16 outputs and gradients, relative to the largest value of the reference."""
ELSEWHERE = ("pallas", "pallas_interpret", "triton_interpret")
"""Implementations of other platforms, and simulations."""


def candidates() -> tuple[str, ...]:
    """Returns the implementations that a GPU can run."""
    return tuple(name for name in IMPLEMENTATIONS if name not in ELSEWHERE)


def check(length: int) -> dict[str, Any]:
    """Compares every implementation with the reference, forward pass and gradients, with grouped queries.

    Args:
      length: positions of a row; the rows have one document, or are packed.

    Returns:
      "errors": the largest relative error by implementation, None where it is unsupported or not finite; "failed": a
      sentence for each implementation that is wrong or does not run.
    """
    errors, failed = {}, {}
    for name in candidates():
        errors[name] = None
        try:
            worst = max(error(name, length, tokens, packed) for tokens in TOKENS for packed in (False, True))
        except Unsupported as reason:
            failed[name] = f"unsupported: {reason}"
        except Exception as reason:
            failed[name] = f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0][:200]}"
        else:
            if not np.isfinite(worst):
                failed[name] = "its outputs or gradients are not finite"
                continue
            errors[name] = worst
            if worst > TOLERANCE:
                failed[name] = f"differs by {worst:.1e} from the reference"
    return {"errors": errors, "failed": failed}


def error(name: str, length: int, tokens: int, packed: bool) -> float:
    """Returns the largest relative error of outputs and gradients; infinity if one is not finite.

    Args:
      name: name of the implementation.
      length: positions of a row.
      tokens: tokens of the prefix.
      packed: True for packed rows, False for rows of one document, which have no segment ids.
    """
    inputs, do, segments_bt = draw(length, tokens, packed)

    def ours(q, k, v, prefix):
        return attend(q, k, v, prefix, segment_ids_bt=segments_bt, implementation=name)

    worst = 0.0
    for mine, right in zip(gradients(ours, inputs, do, segments_bt), expected(length, tokens, packed), strict=True):
        difference = float(np.max(np.abs(mine - right)) / max(1e-3, np.max(np.abs(right))))
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


@functools.cache
def expected(length: int, tokens: int, packed: bool) -> list[np.ndarray]:
    """Returns the output and the gradients of the reference in float32."""
    inputs, do, segments_bt = draw(length, tokens, packed)

    def reference(q, k, v, prefix):
        keys = None if prefix is None else prefix.k_bpkh
        gated = None if prefix is None else gated_values(prefix, q.shape[2])
        return plain.attend(Inputs(q, k, v, segments_bt, keys, gated))

    wide = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    with jax.default_matmul_precision("float32"):
        return gradients(reference, wide, do, segments_bt)


def draw(length: int, tokens: int, packed: bool) -> tuple[tuple, jax.Array, jax.Array | None]:
    """Returns random queries, keys, values and prefix, the cotangent of the output, and segment ids."""
    rows, heads, kv_heads, head_dim = 2, 8, 2, 128 if length >= 128 else 8
    random = np.random.default_rng(tokens)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.bfloat16)

    q, do = normal(rows, length, heads, head_dim), normal(rows, length, heads, head_dim)
    k, v = (normal(rows, length, kv_heads, head_dim) for _ in range(2))
    prefix = None
    if tokens:
        keys, values = (normal(1, tokens, kv_heads, head_dim) for _ in range(2))
        prefix = Prefix(keys, values, normal(1, heads).astype(jnp.float32))
    if not packed:
        return (q, k, v, prefix), do, None
    # Documents of unequal lengths, and padding at the end of a row.
    cuts = np.asarray([[length // 3, length // 2, length - length // 8], [length // 5, length // 2, length]])
    segments = 1 + (np.arange(length)[None, None] >= cuts[:, :, None]).sum(axis=1)
    return (q, k, v, prefix), do, jnp.asarray(np.where(np.arange(length)[None] >= cuts[:, 2:], 0, segments), jnp.int32)


def gradients(function: Callable, inputs: tuple, do: jax.Array, segments_bt: jax.Array | None) -> list[np.ndarray]:
    """Returns the output, zero at padding, and the gradients of the inputs, in float32."""

    @jax.jit
    def run(inputs, do):
        o, pull = jax.vjp(function, *inputs)
        return o, *pull(do.astype(o.dtype))

    o, *found = (np.asarray(x, np.float32) for x in jax.tree.leaves(run(inputs, do)))
    # Positions of the padding attend to each other, which no loss sees.
    return [o if segments_bt is None else o * np.asarray(segments_bt > 0)[..., None, None], *found]
