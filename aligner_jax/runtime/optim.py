"""Optimizers and learning-rate schedules, among them the paper's as intended and as run."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, PyTree

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import OptimConfig


def learning_rate(optim: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning-rate schedule, a function of the update `count` (0 for the first).

    - "constant": lr.
    - "warmup_constant": lr · (count + 1) / warmup_steps up to lr, then lr. The paper's schedule as intended. The rate
      of the first update is not 0, so that a short run wastes no update.
    - "cosine": the same warm-up, then half a cosine from lr that reaches 0 at `count` = `steps`, after the last update,
      as in optax.cosine_decay_schedule and in transformers. With `cosine_zero` "at_last" it reaches 0 one update
      earlier, at the last update, as in runs that older versions began.
    - "paper_as_run": lr · count / warmup_steps, up to lr. The paper's schedule as run; the first update has rate 0.

    The paper's training (arXiv 2312.05503; the authors' code is a fork of lit-llama) warms up over 2 epochs. Its code
    computes the length of the warm-up in forward passes of micro-batches of 8 sequences: 2 · 50,000 / 8 = 12,500 for
    Alpaca. It compares that with a counter of optimizer steps, which take 64 sequences: all 8 epochs have only
    8 · 50,000 / 64 = 6,250. So the warm-up never ends: the rate is 9e-3 · step / 12,500, and at the end of training it
    is 4.5e-3, half of the published 9e-3. DPO has the same error. Its 3 epochs of 160,000 sequences are
    3 · 160,000 / 64 = 7,500 steps, its warm-up of half an epoch is 0.5 · 160,000 / 8 = 10,000, and the rate ends at
    1e-4 · 7,500 / 10,000 = 7.5e-5. To reproduce these runs, set warmup_steps to 12,500 and 10,000. As intended,
    Alpaca's warm-up is 2 · 50,000 / 64 = 1,562 steps.

    Args:
      optim: section of the config.
      steps: updates of the run, for schedules that end.
    """
    return _SCHEDULES[optim.schedule](optim, steps)


def make_optimizer(
    optim: OptimConfig, steps: int, *, rate: Float[Array, ""] | float = 1.0
) -> optax.GradientTransformation:
    """Returns the optimizer `optim.name`, with clipping by global norm if `clip` is set.

    Weight decay is decoupled: p ← p − rate · decay · p. It applies to all leaves, or to those named tokens_* if
    `decay_on` is "tokens". `gate_rate` multiplies the rate of leaves named gates_*, and so their decay.

    - "adamw": `optax.adamw`.
    - "lion": `optax.lion`. An update has the size of its rate in every entry, so rates are about a tenth of AdamW's.
    - "muon": `optax.contrib.muon` for matrices, AdamW for other leaves. A leaf whose name says that its first axis are
      layers is a stack of arrays and no matrix: of an Aligner, the tokens are the matrix. Updates have the root mean
      square 0.2, which is about AdamW's, so that one rate serves both. `b1` and `b2` are those of AdamW; Muon's own
      momentum is optax's default.

    With `state_dtype` "bfloat16", parameters and both moments are bfloat16 and every operation rounds to it, as in the
    authors' runs (PyTorch's AdamW, precision "bf16-true"). This exists to reproduce those runs, not because it is
    better. An entry then changes only if its update exceeds half the spacing of bfloat16 numbers around it, 2⁻⁹ to 2⁻⁸
    of its size. The second moment cannot decay, because 0.999 v rounds back to v. Most entries of the adapter's tokens,
    which start as N(0, 1), keep their initial values.

    Args:
      optim: section of the config. Gradients and parameters given to the transformation should have its `state_dtype`;
        see `to_state_dtype`.
      steps: updates of the run, for schedules that end.
      rate: factor on the schedule's rate.

    Raises:
      InputError: `init` was given arrays among which there is none that a field of the section is for.
    """
    schedule = learning_rate(optim, steps)

    def scaled(count):
        return schedule(count) * rate

    optimizer = (
        _adamw_bfloat16(optim, scaled) if optim.state_dtype == "bfloat16" else _OPTIMIZERS[optim.name](optim, scaled)
    )
    if optim.gate_rate != 1:
        gates = optax.masked(optax.scale(optim.gate_rate), functools.partial(_named, _is_gate))
        optimizer = optax.chain(optimizer, gates)
    if optim.clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(optim.clip), optimizer)
    return optax.GradientTransformation(functools.partial(_init, optim, optimizer.init), optimizer.update)


def make_sweep_optimizer(
    optim: OptimConfig, steps: int, rates_a: Float[np.ndarray, " a"]
) -> optax.GradientTransformation:
    """Returns `make_optimizer` mapped over a leading axis a of all arrays, with a learning rate per entry.

    Args:
      rates_a: learning rates, in place of `optim.lr`.
    """
    # Every optimizer's step is proportional to the rate, and so is the decay.
    one = dataclasses.replace(optim, lr=1.0)

    def at(rate) -> optax.GradientTransformation:
        return make_optimizer(one, steps, rate=rate)

    def init(params):
        return jax.vmap(lambda rate, p: at(rate).init(p))(rates_a, params)

    def update(updates, state, params=None):
        return jax.vmap(lambda rate, u, s, p: at(rate).update(u, s, p))(rates_a, updates, state, params)

    return optax.GradientTransformation(init, update)


def updates_made(state: optax.OptState) -> Int[np.ndarray, "*a"]:
    """Returns the optimizer's count of updates, one per adapter for a sweep. Skipped steps do not count."""
    counts = optax.tree.get_all_with_path(state, "count")
    return np.asarray(counts[0][1])


def to_state_dtype(trainable: PyTree[Float[Array, "..."]], optim: OptimConfig) -> PyTree[Float[Array, "..."]]:
    """Casts trainable arrays to the dtype in which they are trained."""
    return jax.tree.map(lambda leaf: leaf.astype(optim.state_dtype), trainable)


def _adamw(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=optim.b1, b2=optim.b2, eps=optim.eps, weight_decay=optim.weight_decay, mask=_decay_mask(optim)
    )


def _lion(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(rate, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, mask=_decay_mask(optim))


def _muon(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    muon = optax.contrib.muon(
        rate, weight_decay=optim.weight_decay, weight_decay_mask=_decay_mask(optim), consistent_rms=0.2
    )
    return optax.partition({"muon": muon, "adamw": _adamw(optim, rate)}, _muon_labels)


_OPTIMIZERS: dict[str, Callable[[OptimConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
}


def _init(optim: OptimConfig, init: Callable[[Any], optax.OptState], params: Any) -> optax.OptState:
    """Returns the optimizer's state. Raises InputError if a field of the section is for none of the arrays."""
    for is_set, belongs, field, purpose in (
        (optim.gate_rate != 1, _is_gate, "gate_rate", "arrays named gates_*"),
        (optim.decay_on == "tokens", _is_token, "decay_on", "arrays named tokens_*"),
        (optim.name == "muon", _is_matrix, "name", "matrices"),
    ):
        if is_set and not any(map(belongs, params)):
            raise InputError(
                f"config.optim.{field} is {getattr(optim, field)!r}, which is for {purpose}, but the trained arrays "
                f"are {', '.join(sorted(params))}: leave it out"
            )
    return init(params)


def _decay_mask(optim: OptimConfig) -> Callable[[dict[str, Array]], dict[str, bool]] | None:
    return None if optim.decay_on == "all" else functools.partial(_named, _is_token)


def _muon_labels(params: dict[str, Array]) -> dict[str, str]:
    return {name: "muon" if _is_matrix(name) else "adamw" for name in params}


def _named(belongs: Callable[[str], bool], params: dict[str, Array]) -> dict[str, bool]:
    return {name: belongs(name) for name in params}


def _own(name: str) -> str:
    """Returns an array's name without that of its part of a sum."""
    return name.rpartition("/")[2]


def _is_gate(name: str) -> bool:
    return _own(name).startswith("gates_")


def _is_token(name: str) -> bool:
    return _own(name).startswith("tokens_")


def _is_matrix(name: str) -> bool:
    axes = name.rpartition("_")[2]
    return len(axes) == 2 and axes[0] != "l"


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
    # XLA may drop a pair of astype conversions, and with it the rounding.
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def _adamw_bfloat16(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW in PyTorch's order of operations (foreach=False); each computes in float32 and rounds to bfloat16."""

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params=None):
        rate, count = schedule(state.count), state.count + 1
        # expm1 avoids the cancellation in 1 - b**count, which PyTorch computes in float64.
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
