"""The training step: what is differentiated, accumulated and updated. Only the adapter is; the base is an argument."""

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
    """All that training changes. A checkpoint holds this and the position in the data, and nothing else."""

    trainable: dict[str, Array]
    optimizer: optax.OptState
    step: Int[Array, ""]


class StepMetrics(NamedTuple):
    """Of one optimizer step: the loss before the update, the gradient's global norm, and the objective's own metrics.

    All but the norm are means over what the objective counts: target tokens, or preference pairs. Of many adapters,
    each one's own. Where the loss or the norm is not finite, the step is skipped.
    """

    loss: Float[Array, "*a"]
    grad_norm: Float[Array, "*a"]
    skipped: Bool[Array, "*a"]
    others: dict[str, Float[Array, "*a"]]

    def as_dict(self) -> dict[str, Float[Array, "*a"]]:
        """All numbers by name; `skipped` is none."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, **self.others}


class Step(Protocol):
    """One optimizer step. The reference is a frozen adapter that some objectives compare with, over the same base."""

    def __call__(
        self, state: TrainState, params: Params, batch: Batch, reference: Adapter | None = None
    ) -> tuple[TrainState, StepMetrics]: ...


def init_state(adapter: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. All arrays are copies, since the step donates its state: optax may give one array twice."""
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
    """A pure function of (state, params, batch, reference). The caller jits it and donates the state.

    A step whose loss or gradient is not finite is skipped: of the state only the step's number changes. Of many
    adapters each is skipped on its own.

    Args:
      adapter: says what method is trained, with what options; its arrays are not used.
      accumulate: the batch's rows are taken in this many parts, one after the other; losses and gradients are summed
        over all parts' targets (or pairs) and then divided, so that the step is the same as in one part.
      remat: see `llama.forward`.
      loss: what is minimised, from `Objective.loss` of a run's objective.
      seed: of the dropout, where the method has any; what is dropped depends on it, the step and the part.
      num_adapters: of a stack of adapters (`peft.rows`) that are trained at once, each as if alone, with an optimizer
        from `make_sweep_optimizer`. All have the batch's rows, or each the rows that the batch's adapter_b gives it.
    """
    of_adapters = () if num_adapters is None else (num_adapters,)

    def micro(trainable: dict[str, Array], params: Params, reference: Adapter | None, batch: Batch, dropout_key: Array):
        policy = adapter.replace(trainable=trainable)
        if num_adapters is not None and batch.adapter_b is None:
            batch = _for_each(batch, num_adapters)
        losses, totals = loss.sums(
            params, policy, reference, batch, config=config, remat=remat, dropout_key=dropout_key
        )
        # Each adapter's loss knows nothing of the others, so the sum's gradient is that of each.
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
        # optax.apply_if_finite does not look at the loss, and lets what is not finite through after so many.
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        trainable, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(_along(finite, new), new, old), updated, (state.trainable, state.optimizer)
        )
        means = {name: total / count for name, total in others.items()}
        metrics = StepMetrics(mean_loss, grad_norm, ~finite, means)
        return TrainState(cast(dict[str, Array], trainable), optimizer_state, state.step + 1), metrics

    return step


def _in_parts(x: Array, accumulate: int) -> Array:
    """The rows in parts on a leading axis; each device's in so many, so that none has to move."""
    devices = num_parts("batch")
    x = x.reshape(devices, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x.reshape(accumulate, -1, *x.shape[3:]), None, "batch", *(None,) * (x.ndim - 3))


def _for_each(batch: Batch, num_adapters: int) -> Batch:
    """The batch's rows once for every adapter."""
    rows = len(batch.tokens_bt)
    tiled = jax.tree.map(lambda x: jnp.tile(x, (num_adapters,) + (1,) * (x.ndim - 1)), batch)
    return dataclasses.replace(tiled, adapter_b=jnp.repeat(jnp.arange(num_adapters), rows))


def _divided(leaf: Array, count: Array) -> Array:
    """The leaf over the count, divided in float32: bfloat16 has no 257, and would divide by 256."""
    return (leaf.astype(jnp.float32) / _along(count, leaf).astype(jnp.float32)).astype(leaf.dtype)


def _along(values: Array, leaf: Array) -> Array:
    """The adapters' values, each beside its adapter's part of the leaf."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim)) if values.ndim else values
