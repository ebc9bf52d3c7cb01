"""The training step: gradient of the adapter, accumulation, and update. The base is an argument and stays frozen."""

import dataclasses
from typing import Any, NamedTuple, Protocol, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.model.logical import constrain, num_parts
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.loss import Loss, Totals
from aligner_jax.peft import Adapter


@flax.struct.dataclass
class TrainState:
    """State that training changes. A checkpoint holds only this and the position in the data."""

    trainable: dict[str, Array]
    optimizer: optax.OptState
    step: Int[Array, ""]


class StepMetrics(NamedTuple):
    """Metrics of one optimizer step; one value per adapter of a stack.

    Attributes:
      loss: loss before the update, a mean over target tokens or preference pairs.
      grad_norm: global norm of the gradient.
      skipped: True if the step was skipped, since loss or norm is not finite.
      others: the objective's metrics by name, means like the loss.
    """

    loss: Float[Array, "*a"]
    grad_norm: Float[Array, "*a"]
    skipped: Bool[Array, "*a"]
    others: dict[str, Float[Array, "*a"]]

    def as_dict(self) -> dict[str, Float[Array, "*a"]]:
        """Returns all metrics by name, except `skipped`."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, **self.others}


class Step(Protocol):
    """Runs one optimizer step; `reference` is a frozen adapter over the same base, which some objectives need."""

    def __call__(
        self, state: TrainState, params: Params, batch: Batch, reference: Adapter | None = None
    ) -> tuple[TrainState, StepMetrics]: ...


def init_state(adapter: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state at step 0. Arrays are copied, since the step donates them and optax may share one array."""
    trainable = jax.tree.map(jnp.copy, adapter.trainable)
    state = jax.tree.map(jnp.copy, optimizer.init(trainable))
    return TrainState(trainable=trainable, optimizer=state, step=jnp.int32(0))


def make_step(
    adapter: Adapter,
    optimizer: optax.GradientTransformation,
    *,
    config: LlamaConfig,
    accumulate: int = 1,
    remat: Remat = "full",
    loss: Loss = sft.LOSS,
    seed: int = 0,
    num_adapters: int | None = None,
) -> Step:
    """Returns the training step, a pure function; the caller compiles it with `jax.jit` and donates the state.

    A step whose loss or gradient is not finite is skipped: only `TrainState.step` changes. Adapters of a stack are
    skipped separately.

    Args:
      adapter: adapter with the method and options to train; its arrays are not used.
      optimizer: optimizer of the trained arrays.
      config: configuration of the base.
      accumulate: number of parts that the batch's rows are split into. Losses and gradients are summed over all parts
        and then divided by the number of targets (or pairs), so the result equals that of one part.
      remat: rematerialization, see `model.remat.parts`.
      loss: the loss to minimize (`Objective.loss`).
      seed: seed of the dropout, if the method has any; the dropout also depends on the step and the part.
      num_adapters: size of a stack of adapters (`peft.rows`) that are trained together, each as if alone, with an
        optimizer from `make_sweep_optimizer`. The batch's adapter_b assigns rows to adapters; without it, every adapter
        has all rows. None trains a single adapter.
    """
    of_adapters = () if num_adapters is None else (num_adapters,)

    def micro(trainable: dict[str, Array], params: Params, reference: Adapter | None, batch: Batch, dropout_key: Array):
        policy = adapter.replace(trainable=trainable)
        if num_adapters is not None and batch.adapter_b is None:
            batch = _for_each(batch, num_adapters)
        losses, totals = loss.sums(
            params, policy, reference, batch, config=config, remat=remat, dropout_key=dropout_key
        )
        # An adapter's loss does not depend on the others, so the gradient of the sum has every adapter's gradient.
        # Sums over targets are divided in float32, after the gradient, so their number scales a float16 loss.
        # Gradients of an Aligner on SmolLM2-135M are off by 0.2 % in float16 (2 % in bfloat16), and of LoRA by 0.6 %
        # (5 %). Another factor of 64 or 1/64 changes neither, so there is none.
        return jnp.sum(losses), (losses, totals)

    def step(
        state: TrainState, params: Params, batch: Batch, reference: Adapter | None = None
    ) -> tuple[TrainState, StepMetrics]:
        def add(total, part_and_key):
            gradient_of = jax.value_and_grad(micro, has_aux=True)
            (_, (losses, totals)), gradient = gradient_of(state.trainable, params, reference, *part_and_key)
            return jax.tree.map(jnp.add, total, (losses, totals, gradient)), None

        zero = jnp.zeros(of_adapters, jnp.float32)
        none = Totals(jnp.zeros(of_adapters, jnp.int32), dict.fromkeys(loss.metrics, zero))
        nothing: Any = (zero, none, jax.tree.map(jnp.zeros_like, state.trainable))
        parts = jax.tree.map(lambda x: _in_parts(x, accumulate), batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), accumulate)
        (losses, (count, others), gradient), _ = jax.lax.scan(add, nothing, (parts, keys))
        count = jnp.maximum(count, 1)
        gradient = jax.tree.map(lambda g: _divided(g, count), gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        updated = optax.apply_updates(state.trainable, updates), optimizer_state
        norm = optax.tree.norm if num_adapters is None else jax.vmap(optax.tree.norm)
        mean_loss, grad_norm = losses / count, norm(gradient)
        # optax.apply_if_finite does not check the loss, and applies updates that are not finite after a limit.
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        trainable, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(_along(finite, new), new, old), updated, (state.trainable, state.optimizer)
        )
        means = {name: total / count for name, total in others.items()}
        metrics = StepMetrics(mean_loss, grad_norm, ~finite, means)
        return TrainState(cast(dict[str, Array], trainable), optimizer_state, state.step + 1), metrics

    return step


def _in_parts(x: Array, accumulate: int) -> Array:
    """Splits the rows into parts on a leading axis, within each device's rows, so that no row moves."""
    devices = num_parts("batch")
    x = x.reshape(devices, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x.reshape(accumulate, -1, *x.shape[3:]), None, "batch", *(None,) * (x.ndim - 3))


def _for_each(batch: Batch, num_adapters: int) -> Batch:
    """Repeats the batch's rows for every adapter."""
    rows = len(batch.tokens_bt)
    tiled = jax.tree.map(lambda x: jnp.tile(x, (num_adapters,) + (1,) * (x.ndim - 1)), batch)
    return dataclasses.replace(tiled, adapter_b=jnp.repeat(jnp.arange(num_adapters), rows))


def _divided(leaf: Array, count: Array) -> Array:
    """Divides a leaf by the count in float32, since bfloat16 would round a count such as 257."""
    return (leaf.astype(jnp.float32) / _along(count, leaf).astype(jnp.float32)).astype(leaf.dtype)


def _along(values: Array, leaf: Array) -> Array:
    """Reshapes a value per adapter to broadcast along the leaf's leading axis."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim)) if values.ndim else values
