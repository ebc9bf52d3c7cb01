"""Full fine-tuning: trains a float32 difference to every parameter of the base; for small models.

Training differences, not copies, leaves the base unchanged, and weight decay pulls towards the base.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params, abstract_params
from aligner_jax.model.quantized import Quantized
from aligner_jax.peft.adapter import Method, Options, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.roofline import AdapterCost

_LAYERS = "layers."


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters by field of `Params`; names of fields of `Layers` begin with "layers."."""
    paths = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    return {".".join(str(key.name) for key in path): leaf.shape for path, leaf in paths}


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns zeros, so that the model equals the base."""
    return {name: jnp.zeros(shape) for name, shape in shapes(options, config).items()}


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """Returns the differences of layers as updates, and the other parameters as sums, which are rounded once.

    Raises:
      InputError: the base is quantized.
    """
    leaves = jax.tree.leaves(params.layers, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    if any(isinstance(leaf, Quantized) for leaf in leaves):
        raise InputError("the base is quantized, and an adapter of method 'full' cannot change its weights")
    updates = {name.removeprefix(_LAYERS): x for name, x in trainable.items() if name.startswith(_LAYERS)}

    def total(name: str, difference: Array) -> Array:
        weight = getattr(params, name)
        return (weight.astype(jnp.float32) + difference.astype(jnp.float32)).astype(weight.dtype)

    return Bound(
        adapted=(Adapted(range(config.num_layers), updates=updates),),
        parameters={name: total(name, x) for name, x in trainable.items() if not name.startswith(_LAYERS)},
    )


def cost(options: Options, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of a backward pass of every layer; `Method.trains_base` adds that of the base's gradients."""
    return AdapterCost()


# A row of a batch cannot have weights of its own.
FULL = Method(
    options=Options, shapes=shapes, init=init, bind=bind, cost=cost, with_strength=scaled(""),
    per_row=False, trains_base=True,
)  # fmt: skip
