"""Correctness of the attention implementations on this device, against the plain reference in float32."""

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


def check(length: int, only_compile: bool = False) -> dict[str, Any]:
    """Compares every implementation with the reference: packed rows, grouped queries, forward pass and gradients.

    Returns:
      "errors": the largest relative error by implementation, None where it is unsupported; "failed": a sentence for
      each implementation that is wrong or does not run.
    """
    errors, failed = {}, {}
    for name in () if only_compile else candidates():
        try:
            errors[name] = max(error(name, length, tokens) for tokens in TOKENS)
        except Unsupported as reason:
            errors[name] = None
            failed[name] = f"unsupported: {reason}"
        except Exception as reason:
            errors[name] = None
            failed[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"
        else:
            if not errors[name] <= TOLERANCE:
                failed[name] = f"differs by {errors[name]:.1e} from the reference"
    return {"errors": errors, "failed": failed}


def error(name: str, length: int, tokens: int) -> float:
    """Returns the largest relative error of outputs and gradients for a prefix of that many tokens."""
    rows, heads, kv_heads, head_dim = 2, 8, 2, 128 if length >= 128 else 8
    draw = np.random.default_rng(tokens)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(draw.standard_normal(shape), jnp.bfloat16)

    q, do = normal(rows, length, heads, head_dim), normal(rows, length, heads, head_dim)
    k, v = (normal(rows, length, kv_heads, head_dim) for _ in range(2))
    prefix = None
    if tokens:
        keys, values = (normal(1, tokens, kv_heads, head_dim) for _ in range(2))
        prefix = Prefix(keys, values, normal(1, heads).astype(jnp.float32))
    # Documents of unequal lengths, and padding at the end of a row.
    cuts = np.asarray([[length // 3, length // 2, length - length // 8], [length // 5, length // 2, length]])
    segments = 1 + (np.arange(length)[None, None] >= cuts[:, :, None]).sum(axis=1)
    segments_bt = jnp.asarray(np.where(np.arange(length)[None] >= cuts[:, 2:], 0, segments), jnp.int32)

    def ours(q, k, v, prefix):
        return attend(q, k, v, prefix, segment_ids_bt=segments_bt, implementation=name)

    def reference(q, k, v, prefix):
        keys = None if prefix is None else prefix.k_bpkh
        gated = None if prefix is None else gated_values(prefix, heads)
        return plain.attend(Inputs(q, k, v, segments_bt, keys, gated))

    def gradients(function, *inputs):
        def run(q, k, v, prefix, do):
            o, pull = jax.vjp(function, q, k, v, prefix)
            return o, *pull(do.astype(o.dtype))

        return jax.jit(run)(*inputs, do)

    found = gradients(ours, q, k, v, prefix)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (q, k, v, prefix))
    with jax.default_matmul_precision("float32"):
        expected = gradients(reference, *wide)
    # Positions of the padding attend to each other, which no loss sees.
    real = np.asarray(segments_bt > 0)[..., None, None]
    worst = 0.0
    for index, (mine, right) in enumerate(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)):
        mine, right = np.asarray(mine, np.float32), np.asarray(right, np.float32)
        if index == 0:
            mine, right = mine * real, right * real
        worst = max(worst, float(np.max(np.abs(mine - right)) / max(1e-3, np.max(np.abs(right)))))
    return worst
