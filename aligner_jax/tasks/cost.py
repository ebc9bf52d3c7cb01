"""Roofline cost of a config's training step."""

import jax
from jax.sharding import Mesh

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import METHODS
from aligner_jax.runtime import roofline
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.memory import bits
from aligner_jax.tasks.first_adapter import first_adapter_shapes


def step_cost(config: TrainConfig, model: LlamaConfig, mesh: Mesh, params: Params) -> roofline.Cost:
    """Returns the cost of one device's rows, before heads, MLP and vocabulary are split over `tensor`.

    Args:
      params: parameters of the base, or `jax.ShapeDtypeStruct`s.
    """
    adapter = first_adapter_shapes(config, model)
    method = METHODS[adapter.method]
    rows = config.data.batch_size // (mesh.size // mesh.shape["tensor"])
    held_bytes = sum(bits(leaf.dtype) * leaf.size for leaf in jax.tree.leaves(params.layers)) / 8
    return roofline.train_step(
        model, batch_size=rows * (config.sweep.num_adapters or 1), sequence_length=config.data.sequence_length,
        adapter=method.cost(adapter.options, model), trains_base=method.trains_base,
        accumulate=config.optim.accumulate, remat=config.remat,
        weight_bytes=held_bytes / (roofline.layer_weights(model) * model.num_layers),
        head_bytes=bits(params.embed_vd.dtype) / 8,
    )  # fmt: skip


def first_adapted(config: TrainConfig, model: LlamaConfig) -> int:
    """Returns the index of the first layer with a backward pass."""
    adapter = first_adapter_shapes(config, model)
    return METHODS[adapter.method].cost(adapter.options, model).start_layer
