"""AdamW and its schedules: what the paper meant, what it ran, and arithmetic in float32 or bfloat16."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from aligner_jax.runtime.config import OptimConfig


def learning_rate(optim: OptimConfig, steps: int) -> optax.Schedule:
    """The rate of update `count` (0 for the first) of a run of `steps` updates.

    - "constant": lr.
    - "warmup_constant": lr · (count + 1) / warmup_steps up to lr, then lr. The paper as intended. The first update
      already has a rate, so a short run wastes none.
    - "cosine": the same warm-up, then half a cosine from lr that reaches 0 at `count` = `steps`, after the last update,
      as in optax.cosine_decay_schedule and in transformers. With `cosine_zero` "at_last" it is one update further, so
      that the last one has rate 0: the schedule of runs that older versions began.
    - "paper_as_run": lr · count / warmup_steps, up to lr; the first update has rate 0. The paper as it really ran.

    The paper's training (arXiv 2312.05503; the authors' code is a fork of lit-llama) warms up over 2 epochs. Its code
    computes the length of the warm-up in forward passes of a micro-batch of 8, 2 · 50,000 / 8 = 12,500 for Alpaca,
    and compares it with a counter of optimizer steps of 64, of which all 8 epochs have 8 · 50,000 / 64 = 6,250. So the
    ramp never ends: the rate is 9e-3 · step / 12,500 and at the end of training it is 4.5e-3, half of the published
    9e-3. DPO has the same slip. Its 3 epochs of 160,000 sequences are 3 · 160,000 / 64 = 7,500 steps, its warm-up of
    half an epoch is 0.5 · 160,000 / 8 = 10,000, and the rate ends at 1e-4 · 7,500 / 10,000 = 7.5e-5. To repeat them,
    set warmup_steps to 12,500 and 10,000. As intended, Alpaca's warm-up is 2 · 50,000 / 64 = 1,562 steps.
    """
    return _SCHEDULES[optim.schedule](optim, steps)


def make_optimizer(
    optim: OptimConfig, steps: int, *, rate: Float[Array, ""] | float = 1.0
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on every leaf, p ← p − rate · decay · p, after clipping by global norm if any.

    With `state_dtype` "bfloat16" the parameters and both moments are bfloat16, and every operation rounds to it, as in
    the authors' runs (PyTorch's AdamW, precision "bf16-true"). An entry then moves only when its update is more than
    half the spacing of bfloat16 numbers around it, 2⁻⁹ to 2⁻⁸ of its size; the second moment cannot decay, because
    0.999 v rounds back to v; and most tokens, which start as N(0, 1), keep their initial values. It exists to
    reproduce that, not because it is better.

    Args:
      optim: gradients and parameters given to the transformation should have its `state_dtype`; see `to_state_dtype`.
      steps: of the run, for the schedules that end.
      rate: what the schedule's rate is multiplied by.
    """
    schedule = learning_rate(optim, steps)

    def scaled(count):
        return schedule(count) * rate

    if optim.state_dtype == "bfloat16":
        adamw = _adamw_bfloat16(optim, scaled)
    else:
        adamw = optax.adamw(scaled, b1=optim.b1, b2=optim.b2, eps=optim.eps, weight_decay=optim.weight_decay)
    return adamw if optim.clip is None else optax.chain(optax.clip_by_global_norm(optim.clip), adamw)


def make_sweep_optimizer(optim: OptimConfig, steps: int, rates_a: Float[Array, " a"]) -> optax.GradientTransformation:
    """`make_optimizer` for arrays with a leading axis a, each entry of it on its own and at its own rate.

    Args:
      rates_a: stand for `optim.lr`.
    """
    # Adam's step is proportional to the rate, and so is the decay.
    one = dataclasses.replace(optim, lr=1.0)

    def at(rate) -> optax.GradientTransformation:
        return make_optimizer(one, steps, rate=rate)

    def init(params):
        return jax.vmap(lambda rate, p: at(rate).init(p))(rates_a, params)

    def update(updates, state, params=None):
        return jax.vmap(lambda rate, u, s, p: at(rate).update(u, s, p))(rates_a, updates, state, params)

    return optax.GradientTransformation(init, update)


def updates_made(state: optax.OptState) -> Int[np.ndarray, "*a"]:
    """Returns an optimizer's count of updates, which skipped steps leave as it is; of a sweep, each adapter's."""
    counts = optax.tree.get_all_with_path(state, "count")
    return np.asarray(counts[0][1])


def to_state_dtype(trainable: PyTree[Float[Array, "..."]], optim: OptimConfig) -> PyTree[Float[Array, "..."]]:
    """The arrays in the dtype they are trained in."""
    return jax.tree.map(lambda leaf: leaf.astype(optim.state_dtype), trainable)


def _constant(optim: OptimConfig, steps: int) -> optax.Schedule:
    return lambda count: jnp.full(jnp.shape(count), optim.lr, jnp.float32)


def _warmup_constant(optim: OptimConfig, steps: int) -> optax.Schedule:
    return lambda count: optim.lr * jnp.minimum(1.0, (count + 1) / max(optim.warmup_steps, 1))


def _cosine(optim: OptimConfig, steps: int) -> optax.Schedule:
    warmup, length = optim.warmup_steps, max(steps - optim.warmup_steps, 1)

    ahead = 1 if optim.cosine_zero == "at_last" else 0

    def rate(count):
        progress = jnp.clip((count + ahead - warmup) / length, 0.0, 1.0)
        return _warmup_constant(optim, steps)(count) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return rate


def _paper_as_run(optim: OptimConfig, steps: int) -> optax.Schedule:
    return lambda count: optim.lr * jnp.minimum(1.0, count / optim.warmup_steps)


_SCHEDULES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    "constant": _constant,
    "warmup_constant": _warmup_constant,
    "cosine": _cosine,
    "paper_as_run": _paper_as_run,
}


def _bf16(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # Not astype: XLA may drop a pair of conversions, and with it the rounding.
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def _adamw_bfloat16(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's order of operations (foreach=False); each works in float32 and rounds its result to bfloat16."""

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params=None):
        rate, count = schedule(state.count), state.count + 1
        # 1 - b**count, which in float32 would lose to cancellation what PyTorch's float64 keeps.
        size = rate / -jnp.expm1(count * math.log(optim.b1)) if optim.b1 else rate
        root = jnp.sqrt(-jnp.expm1(count * math.log(optim.b2))) if optim.b2 else jnp.float32(1)

        def first_moment(g, m):
            return _bf16(m + (1 - optim.b1) * (_bf16(g) - m))

        def second_moment(g, v):
            return _bf16(_bf16(optim.b2 * v.astype(jnp.float32)) + (1 - optim.b2) * _bf16(g) ** 2)

        def change(p, m, v):
            decayed = _bf16(p.astype(jnp.float32) * (1 - rate * optim.weight_decay))
            denominator = _bf16(_bf16(_bf16(jnp.sqrt(v)) / root) + optim.eps)
            return _bf16(decayed - size * (m / denominator)) - p.astype(jnp.float32)

        mu = jax.tree.map(first_moment, updates, state.mu)
        nu = jax.tree.map(second_moment, updates, state.nu)
        changes = jax.tree.map(change, params, mu, nu)
        mu, nu = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (mu, nu))
        return changes, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)
