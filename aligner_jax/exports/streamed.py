"""Forward passes of models that are read one layer at a time, so that none is ever whole in memory."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aligner_jax.data.token_ids import check_ids
from aligner_jax.exports.source import StoredBase
from aligner_jax.model.attention import attend, gated_values
from aligner_jax.model.llama import Layers, LlamaConfig, Params, rms_norm, transform
from aligner_jax.model.rope import rotation
from aligner_jax.model.updates import updated
from aligner_jax.peft import Adapter, Bound, bind
from aligner_jax.peft.canary import Row, padded
from aligner_jax.peft.fold import at_layer
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.leaves import leaf_specs

_HEAD_COLUMNS = 8192


class Pass(NamedTuple):
    """One of the forward passes that share the reading of a model's layers.

    Attributes:
      tokens_bt: token ids.
      adapters: adapters with an effect on layers alone, sums in parts (`Fold.adapters`); any replacements of other
        leaves are in `outside`.
      outside: reads embedding, final norm and head; None means the model's own.
    """

    tokens_bt: Int[np.ndarray, "b t"]
    adapters: Sequence[Adapter] = ()
    outside: Parts | None = None


def streamed_logits(config: LlamaConfig, parts: Parts, tokens_t: Int[np.ndarray, " t"]) -> Float[np.ndarray, "t v"]:
    """Returns float32 logits of a model that is read one layer at a time."""
    (hidden_btd,) = streamed(config, parts, [Pass(np.asarray(tokens_t)[None])])
    return logits(config, parts, hidden_btd[0])


def streamed_next_logits(base: StoredBase, prompts: Sequence[Row]) -> Float[np.ndarray, "b v"]:
    """Returns float32 logits of the token after each prompt, of a model that is read one layer at a time.

    Raises:
      InputError: the model has no embedding of a token.
    """
    for row in prompts:
        check_ids(row.ids, base.config.vocab_size, what="the canary's prompt")
    parts = base.open_parts(base.stored_dtype)
    tokens_bt, last_b = padded(prompts)
    (hidden_btd,) = streamed(base.config, parts, [Pass(tokens_bt)])
    return logits(base.config, parts, at(hidden_btd, last_b))


def streamed(config: LlamaConfig, parts: Parts, passes: Sequence[Pass]) -> list[Float[Array, "b t d"]]:
    """Returns float32 hidden states after the final norm for every pass, of a model that is read one layer at a time.

    Args:
      config: configuration of the model.
      parts: reads the leaves of its layers.
      passes: the passes.
    """
    specs, one = leaf_specs(config), dataclasses.replace(config, num_layers=1)
    states = [_embedded(each.outside or parts, each.tokens_bt) for each in passes]
    with jax.default_matmul_precision("highest"):
        for layer in range(config.num_layers):
            leaves = {
                leaf: parts(leaf, [[slice(layer, layer + 1), *[slice(None)] * (len(spec.shape) - 1)]])[0]
                for leaf, spec in specs.items()
                if spec.axes[0] == "layers"
            }
            for i, each in enumerate(passes):
                adapters = at_layer(each.adapters, layer, config)
                states[i] = jax.block_until_ready(_transformed(states[i], leaves, adapters, config=one))
            # The layer's buffers are released before the next one is read.
            del leaves
        norms = [jnp.asarray((each.outside or parts)("norm_d", [[slice(None)]])[0], jnp.float32) for each in passes]
        return [rms_norm(x_btd, norm_d, config.norm_eps) for x_btd, norm_d in zip(states, norms, strict=True)]


def logits(config: LlamaConfig, parts: Parts, hidden_md: Float[Array, "m d"]) -> Float[np.ndarray, "m v"]:
    """Returns float32 logits of hidden states after the final norm; `parts` reads the head."""
    with jax.default_matmul_precision("highest"):
        return np.concatenate([np.asarray(hidden_md @ head_dv) for head_dv in _heads(config, parts)], axis=1)


def _embedded(parts: Parts, tokens_bt: Int[np.ndarray, "b t"]) -> Float[Array, "b t d"]:
    ids, places_bt = np.unique(tokens_bt, return_inverse=True)
    rows = parts("embed_vd", [[slice(token, token + 1), slice(None)] for token in ids.tolist()])
    return jnp.asarray(np.concatenate(rows).astype(np.float32)[places_bt.reshape(tokens_bt.shape)])


def at(x_btd: Float[Array, "b t d"], positions_b: Int[np.ndarray, " b"]) -> Float[Array, "b d"]:
    """Returns the hidden state of each row at its position."""
    return x_btd[np.arange(len(positions_b)), positions_b]


def _heads(config: LlamaConfig, parts: Parts) -> Iterator[np.ndarray]:
    """Yields the output projection, `_HEAD_COLUMNS` tokens at a time."""
    for start in range(0, config.vocab_size, _HEAD_COLUMNS):
        tokens = slice(start, min(start + _HEAD_COLUMNS, config.vocab_size))
        if config.tied_embeddings:
            yield parts("embed_vd", [[tokens, slice(None)]])[0].astype(np.float32).T
        else:
            yield parts("head_dv", [[slice(None), tokens]])[0].astype(np.float32)


def _transformed(
    x_btd: Array, leaves: dict[str, np.ndarray], adapters: list[Adapter], config: LlamaConfig
) -> Float[Array, "b t d"]:
    """Returns the output of a layer, the only one of a model of this configuration.

    The layer is not compiled as a whole, which would convert all of its weights to float32 at once.
    """
    stacked = {leaf: jnp.asarray(x) for leaf, x in leaves.items()}
    bound = _bound(stacked, adapters, config)
    updates = [{leaf: _first(update) for leaf, update in part.updates.items()} for part in bound.adapted]
    changed = {leaf for update in updates for leaf in update}
    layer = {leaf: x[0].astype(jnp.float32) if leaf in changed else x[0] for leaf, x in stacked.items()}
    weights = functools.reduce(updated, updates, Layers(**layer))  # pyright: ignore[reportArgumentType]
    prefixes = [_first(part.prefix) for part in bound.adapted if part.prefix is not None]

    def attention(q_btnh: Array, k_bskh: Array, v_bskh: Array) -> Array:
        # Prefixes that can be folded have one token, which adds its values.
        return sum((gated_values(prefix, config.num_heads) for prefix in prefixes), attend(q_btnh, k_bskh, v_bskh))

    cos_sin = rotation(jnp.arange(x_btd.shape[1], dtype=jnp.int32)[None], config)
    return transform(x_btd, weights, attention, cos_sin=cos_sin, config=config)


@functools.partial(jax.jit, static_argnames="config")
def _bound(leaves: dict[str, Array], adapters: list[Adapter], config: LlamaConfig) -> Bound:
    """Returns the adapters bound to a layer; only the weights that they are computed from are read."""
    given = {leaf: x.astype(jnp.float32) for leaf, x in leaves.items()}
    # Adapters may look at the other leaves' shapes, so zeros stand for them, and are never computed.
    others = {leaf: jnp.zeros(spec.shape) for leaf, spec in leaf_specs(config).items() if leaf not in given}
    bound = bind(adapters or None, Params(layers=Layers(**given), **others), config)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(bound, parameters={})


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
