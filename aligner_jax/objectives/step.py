"""The training step: what is differentiated, accumulated and updated. Only the adapter is; the base is an argument."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from aligner_jax.data.pipeline import Batch
from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives import sft
from aligner_jax.peft import Adapter


@flax.struct.dataclass
class TrainState:
    """All that training changes. A checkpoint holds this and the position in the data, and nothing else."""

    trainable: dict[str, Array]
    optimizer: optax.OptState
    step: Int[Array, ""]


class StepMetrics(NamedTuple):
    """Of one optimizer step: loss in nats a target before the update, and the gradient's global norm."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


Step = Callable[[TrainState, Params, Batch], tuple[TrainState, StepMetrics]]


def init_state(adapter: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. The trainable arrays are copied: the step donates its state."""
    trainable = jax.tree.map(jnp.copy, adapter.trainable)
    return TrainState(trainable=trainable, optimizer=optimizer.init(trainable), step=jnp.int32(0))


def make_step(
    adapter: Adapter,
    optimizer: optax.GradientTransformation,
    *,
    config: LlamaConfig,
    accumulate: int = 1,
    remat: Remat = "full",
) -> Step:
    """A pure function of (state, params, batch): one optimizer step. The caller jits it and donates the state.

    Args:
      adapter: says what method is trained, with what options; its arrays are not used.
      accumulate: the batch's rows are taken in this many parts, one after the other; losses and gradients are summed
        over all parts' targets and then divided, so that the step is the same as in one part.
      remat: see `llama.forward`.
    """

    def micro(trainable: dict[str, Array], params: Params, batch: Batch):
        return sft.loss_sum(params, adapter.replace(trainable=trainable), batch, config=config, remat=remat)

    def step(state: TrainState, params: Params, batch: Batch) -> tuple[TrainState, StepMetrics]:
        def add(total, part):
            (loss, count), gradient = jax.value_and_grad(micro, has_aux=True)(state.trainable, params, part)
            return jax.tree.map(jnp.add, total, (loss, count, gradient)), None

        nothing: Any = (jnp.float32(0), jnp.int32(0), jax.tree.map(jnp.zeros_like, state.trainable))
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        (loss, count, gradient), _ = jax.lax.scan(add, nothing, parts)
        count = jnp.maximum(count, 1)
        gradient = jax.tree.map(lambda g: g / count.astype(g.dtype), gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = StepMetrics(loss=loss / count, grad_norm=optax.tree.norm(gradient))
        return TrainState(cast(dict[str, Array], trainable), optimizer_state, state.step + 1), metrics

    return step
