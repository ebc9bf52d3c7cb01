"""The training step of an arm, for runs that are trained at once: each with rows, a rate and a state of its own."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.loss import Loss
from aligner_jax.objectives.step import TrainState, init_state, make_step
from aligner_jax.peft import Adapter
from aligner_jax.peft.rows import stack_adapters, unstack_adapter
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.optim import make_optimizer


class Steps:
    """Trains runs of one arm side by side. Rates are arguments, so nothing compiles for another rate.

    Attributes:
      together: number of runs that a step trains.
    """

    def __init__(
        self,
        adapter: Adapter,
        optim: OptimConfig,
        *,
        config: LlamaConfig,
        together: int = 1,
        loss: Loss = sft.LOSS,
        remat: Remat = "dots",
    ) -> None:
        """Makes the step; it is compiled when it is first called.

        Args:
          adapter: an adapter of the arm; its arrays are not used.
          optim: the optimizer. Its rate and schedule are not used.
          config: configuration of the base.
          together: number of runs; 1 for methods that rows cannot differ in, and for losses with a reference.
          loss: loss to minimize.
          remat: rematerialization, see `model.remat`.
        """
        self.together = together
        self._like, self._loss = adapter, loss
        self._optim = dataclasses.replace(optim, lr=1.0, schedule="constant")
        self._step = jax.jit(functools.partial(self._one_step, config=config, remat=remat), donate_argnames=("state",))
        self._state: TrainState | None = None
        self._reference: Adapter | None = None

    def place(self, index: int, adapter: Adapter, reference: Adapter | None = None) -> None:
        """Begins a run at `index` with an initial adapter, in place of the one before.

        Args:
          index: place of the run, from 0 to `together` - 1.
          adapter: initial adapter.
          reference: frozen adapter that the loss compares with, if any.
        """
        self._reference = reference
        if self.together == 1:
            self._state = init_state(adapter, self._optimizer(1.0))
            return
        if self._state is None:
            stack = stack_adapters([adapter] * self.together)
            self._state = init_state(stack, self._optimizer(np.ones(self.together, np.float32)))
            return
        fresh = init_state(stack_adapters([adapter]), self._optimizer(np.ones(1, np.float32)))
        self._state = dataclasses.replace(
            self._state,
            trainable=_placed(self._state.trainable, fresh.trainable, index),
            optimizer=_placed(self._state.optimizer, fresh.optimizer, index),
        )

    def __call__(self, params: Params, batches: Sequence[Batch], rates: Sequence[float]) -> None:
        """Updates all runs: run i with the rows of batches[i] and the rate rates[i]."""
        assert self._state is not None
        self._state = self._step(self._state, params, _joined(batches), self._reference, np.asarray(rates, np.float32))

    def release(self) -> None:
        """Frees the state of all runs."""
        self._state = self._reference = None

    def adapter(self, index: int) -> Adapter:
        """Returns a copy of a run's adapter."""
        assert self._state is not None
        if self.together == 1:
            return self._like.replace(trainable=jax.tree.map(jnp.copy, self._state.trainable))
        return unstack_adapter(self._like.replace(trainable=self._state.trainable), index)

    def _optimizer(self, rates: Any) -> optax.GradientTransformation:
        if self.together == 1:
            return make_optimizer(self._optim, 1, rate=rates if isinstance(rates, float) else rates[0])

        def init(params: Any) -> Any:
            return jax.vmap(lambda p: make_optimizer(self._optim, 1).init(p))(params)

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return jax.vmap(lambda rate, u, s, p: make_optimizer(self._optim, 1, rate=rate).update(u, s, p))(
                rates, updates, state, params
            )

        return optax.GradientTransformation(init, update)

    def _one_step(
        self, state: TrainState, params: Params, batch: Batch, reference: Adapter | None, rate_a: Array, *,
        config: LlamaConfig, remat: Remat,
    ) -> TrainState:  # fmt: skip
        many = None if self.together == 1 else self.together
        step = make_step(
            self._like, self._optimizer(rate_a), config=config, remat=remat, loss=self._loss, num_adapters=many
        )
        return step(state, params, batch, reference)[0]


def _placed(tree: Any, fresh: Any, index: int) -> Any:
    return jax.tree.map(lambda all_a, one_a: all_a.at[index].set(one_a[0]), tree, fresh)


def _joined(batches: Sequence[Batch]) -> Batch:
    """Returns all rows as one batch that says whose each is."""
    if len(batches) == 1:
        return batches[0]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    owners = np.repeat(np.arange(len(batches), dtype=np.int32), len(batches[0].tokens_bt))
    return dataclasses.replace(joined, adapter_b=owners)
