"""Training step of a config as a program for a device mesh. Training runs it, and the planner compiles it."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params, abstract_params
from aligner_jax.model.quantized import Quantization
from aligner_jax.model.remat import AUTO, parts
from aligner_jax.objectives.batch import Batch, abstract
from aligner_jax.objectives.step import Step, init_state, make_step
from aligner_jax.peft import Adapter
from aligner_jax.runtime import optim, sharding
from aligner_jax.runtime.config import BaseConfig, TrainConfig
from aligner_jax.tasks.first_adapter import first_adapter_shapes
from aligner_jax.tasks.objectives import objective_of
from aligner_jax.tasks.task import row_options


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step that is jitted for a mesh, with the shardings of its arguments.

    Attributes:
      step: maps (state, params, batch, reference) to (state, metrics); donates the state. Trace it within `use()`.
      optimizer: the optimizer that the step applies.
      params_sharding: shardings of the base's parameters.
      batch_sharding: sharding of every array of a batch.
      replicated: sharding of the state, the reference and the metrics.
    """

    step: Step
    optimizer: optax.GradientTransformation
    mesh: Mesh
    rules: sharding.Rules
    params_sharding: Params
    batch_sharding: NamedSharding
    replicated: NamedSharding

    def use(self) -> Any:
        """Returns the context in which the step is traced: mesh and rules."""
        return sharding.use(self.mesh, self.rules)


def make_program(config: TrainConfig, model: LlamaConfig, adapter: Adapter, mesh: Mesh) -> Program:
    """Returns the program of a config's training step.

    Args:
      adapter: the adapter, or the sweep's stack of adapters; its arrays may be `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: the mesh does not divide the rows or the model, or remat names more layers than there are.
    """
    rules = sharding.rules_of(config.mesh)
    _check_rows(config, mesh, rules)
    _check_remat(config, model)
    optimizer = make_optimizer(config)
    objective, options = objective_of(config)
    step = make_step(
        adapter, optimizer, config=model, accumulate=config.optim.accumulate, remat=config.remat,
        loss=objective.loss(options), seed=config.seed, num_adapters=config.sweep.num_adapters,
    )  # fmt: skip
    params_sharding = sharding.param_shardings(model, mesh, rules, quantization_of(config.base))
    rows, replicated = sharding.batch_sharding(mesh, rules), sharding.replicated(mesh)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, params_sharding, rows, replicated),
        out_shardings=(replicated, replicated),
    )
    return Program(jitted, optimizer, mesh, rules, params_sharding, rows, replicated)


def abstract_arguments(
    config: TrainConfig, model: LlamaConfig, program: Program, dtype: str, reference: Adapter | None = None
) -> tuple[Any, ...]:
    """Returns the step's arguments as `jax.ShapeDtypeStruct`s with the program's shardings; allocates nothing.

    Args:
      dtype: dtype of the base.
      reference: the reference adapter that the steps compare with. If None, one like the initial adapter is assumed,
        which is enough for planning.

    Returns:
      (state, params, batch, reference), for `program.step.lower`.
    """
    adapter = first_adapter_shapes(config, model)
    state = jax.eval_shape(functools.partial(init_state, optimizer=program.optimizer), adapter)
    _, options = objective_of(config)
    compared = (adapter if reference is None else reference) if options.reference_in_steps else None
    return (
        _placed(state, program.replicated),
        jax.tree.map(_struct, abstract_params(model, dtype, quantization_of(config.base)), program.params_sharding),
        _placed(abstract_batch(config), program.batch_sharding),
        _placed(compared, program.replicated),
    )


def quantization_of(base: BaseConfig) -> Quantization | None:
    """Returns the quantization of the base's projections, or None."""
    return None if base.quantization == "none" else Quantization(base.quantization, base.group_size)


def abstract_batch(config: TrainConfig) -> Batch:
    """Returns a batch of the config, with `jax.ShapeDtypeStruct`s in place of arrays."""
    objective, options = objective_of(config)
    sizes = objective.batch.sizes(**row_options(config.data))
    return abstract(objective.batch, sizes, carrying=options.carried, packed=config.data.packing)


def _placed(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _struct(leaf, where), tree)


def _struct(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the run's optimizer, for one adapter or for a sweep."""
    if config.sweep.num_adapters is None:
        return optim.make_optimizer(config.optim, config.steps)
    rates = config.sweep.lr or (config.optim.lr,) * config.sweep.num_adapters
    # A constant of the step: one on a device would be copied back, implicitly, when the step is lowered.
    return optim.make_sweep_optimizer(config.optim, config.steps, np.asarray(rates, np.float32))


def row_multiple(config: TrainConfig, mesh: Mesh, rules: sharding.Rules | None = None) -> int:
    """Returns the rows that `data.batch_size` must be a multiple of, to give all devices equal rows in every part."""
    shards = sharding.batch_sharding(mesh, rules or sharding.rules_of(config.mesh)).shard_shape((mesh.size,))
    objective, _ = objective_of(config)
    return mesh.size // shards[0] * config.optim.accumulate * objective.batch.rows_per_unit(config.data.packing)


def _check_remat(config: TrainConfig, model: LlamaConfig) -> None:
    if config.remat != AUTO:
        try:
            parts(config.remat, range(model.num_layers))
        except InputError as error:
            raise InputError(f"config.{error}") from None


def _check_rows(config: TrainConfig, mesh: Mesh, rules: sharding.Rules) -> None:
    batch_size, multiple = config.data.batch_size, row_multiple(config, mesh, rules)
    if batch_size % multiple:
        raise InputError(
            f"config.data.batch_size is {batch_size}, but on the mesh {dict(mesh.shape)} with config.optim.accumulate "
            f"{config.optim.accumulate} it must be a multiple of {multiple}, such as "
            f"{-(-batch_size // multiple) * multiple}"
        )
