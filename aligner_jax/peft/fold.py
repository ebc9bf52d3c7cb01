"""Folds adapters into the weights of a base, one leaf of one layer at a time.

One prefix token is a constant: it adds W_O (g ⊙ V_a) at every position, which is a bias of the output projection. So
is a sum of tokens with a gate each. If all query heads of a kv head share a gate, it is also a bias g ⊙ V_a of the
value projection, since the text's attention weights sum to 1. Updates of weights are added to them. Sums are float32.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array, Float

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix, gated_values
from aligner_jax.model.llama import Layers, LlamaConfig, Params
from aligner_jax.model.updates import LowRankWeight, updated
from aligner_jax.peft.adapter import Adapter, LayerOptions, Options
from aligner_jax.peft.methods import check_fits
from aligner_jax.peft.sum import parts_of
from aligner_jax.peft.together import bind
from aligner_jax.weights.finite import all_finite
from aligner_jax.weights.leaves import leaf_specs

Target = Literal["o", "v"]

_QKV_BIASES, _O_BIAS = ("q_bias_lnh", "k_bias_lkh", "v_bias_lkh"), "o_bias_ld"
_LAYER_FIELDS = frozenset(field.name for field in dataclasses.fields(Layers))


class Unfoldable(InputError):
    """No change of the base's weights has the adapter's effect; the message says why."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """Adapters as changes of a base's leaves.

    Attributes:
      adapters: adapters in the order in which they are applied; parts of sums one by one.
      config: configuration of the base.
      target: projection whose bias holds a prefix.
      needs: names of the base's leaves that a changed leaf is computed from, by the name of the changed leaf. Biases
        that the base lacks are among the changed leaves.
    """

    adapters: tuple[Adapter, ...]
    config: LlamaConfig
    target: Target
    needs: Mapping[str, frozenset[str]]

    @property
    def folded_config(self) -> LlamaConfig:
        """Configuration of the folded base."""
        return dataclasses.replace(
            self.config,
            qkv_bias=self.config.qkv_bias or any(name in self.needs for name in _QKV_BIASES),
            o_bias=self.config.o_bias or _O_BIAS in self.needs,
        )

    def leaf(self, name: str, layer: int | None, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "..."]:
        """Returns a changed leaf in float32, without a layer axis.

        Args:
          name: name of the leaf, a key of `needs`.
          layer: index of the layer; None for a leaf without layers.
          inputs: the base's leaves `needs[name]`, without a layer axis.

        Raises:
          InputError: a number of the result is beyond float32.
        """
        given = {key: jnp.asarray(inputs[key], jnp.float32) for key in self.needs[name]}
        here = self.adapters if layer is None else at_layer(self.adapters, layer, self.config)
        with jax.default_matmul_precision("highest"):
            folded = _folded(_arrays(here), given, _Program.of(self, here, name)) if here else None
        if folded is not None:
            if not all_finite(result := np.asarray(folded)):
                where = "" if layer is None else f" in layer {layer}"
                raise InputError(
                    f"with the adapter, {name}{where} holds numbers beyond float32: the adapter's numbers, or its "
                    "strength, are too large"
                )
            return result
        # No adapter changes the leaf in this layer.
        shape = leaf_specs(self.folded_config)[name].shape[1:]
        return np.asarray(given[name]) if name in given else np.zeros(shape, np.float32)


def make_fold(adapters: Sequence[Adapter], config: LlamaConfig, target: Target = "o") -> Fold:
    """Returns adapters as changes of a base's leaves; reads no weights.

    Args:
      adapters: adapters in the order in which they are applied.
      config: configuration of the base.
      target: projection whose bias holds a prefix: "o", or "v" if all query heads of a kv head share a gate.

    Raises:
      Unfoldable: an adapter has more than one prefix token, a prefix in the text's softmax, or positions of its own; or
        target is "v" and query heads of a kv head have gates of their own.
      InputError: an adapter does not fit the base.
    """
    adapters = [part for adapter in adapters for part in parts_of(adapter)]
    for adapter in adapters:
        check_fits(adapter, config)
        if target == "v":
            _check_gates(adapter, config)
    fold = Fold(tuple(adapters), config, target, {})
    # All adapters adapt the last layer.
    last, needs = at_layer(adapters, config.num_layers - 1, config), {}
    for name in dict.fromkeys([*leaf_specs(config), *_QKV_BIASES, _O_BIAS]):
        here = last if name in _LAYER_FIELDS else adapters
        needs[name] = _needs(_arrays(here), _Program.of(fold, here, name))
    return dataclasses.replace(fold, needs={name: used for name, used in needs.items() if used is not None})


@dataclasses.dataclass(frozen=True)
class _Program:
    """Static arguments of `_folded`: the leaf to compute, and the adapters without their arrays."""

    adapters: tuple[tuple[str, Options], ...]
    config: LlamaConfig
    target: Target
    name: str

    @classmethod
    def of(cls, fold: Fold, adapters: Sequence[Adapter], name: str) -> "_Program":
        config = dataclasses.replace(fold.config, num_layers=1) if name in _LAYER_FIELDS else fold.config
        return cls(tuple((each.method, each.options) for each in adapters), config, fold.target, name)

    def shape(self, leaf: str) -> tuple[int, ...]:
        """Returns the shape of a leaf of the base, without a layer axis."""
        return leaf_specs(self.config)[leaf].shape[leaf in _LAYER_FIELDS :]

    def inputs(self) -> list[str]:
        """Returns the names of the leaves that the result may depend on."""
        if self.name in _LAYER_FIELDS:
            return sorted(leaf for leaf in leaf_specs(self.config) if leaf in _LAYER_FIELDS)
        return [self.name]


def at_layer(adapters: Sequence[Adapter], layer: int, config: LlamaConfig) -> list[Adapter]:
    """Returns the adapters that adapt a layer, each reduced to this layer for a model of one layer.

    Arrays whose first axis is "l" (see `Method.shapes`) are indexed; an axis of size 1 is shared by the layers.

    Args:
      adapters: adapters that fit `config`; sums in parts (`sum.parts_of`).
      layer: index of the layer.
      config: configuration of the whole base.
    """
    found = []
    for adapter in adapters:
        adapted, options = range(config.num_layers), adapter.options
        if isinstance(options, LayerOptions):
            adapted, options = options.adapted(config), dataclasses.replace(options, start_layer=0)
        if layer not in adapted:
            continue
        trainable = {}
        for name, x in adapter.trainable.items():
            index = layer - adapted.start if x.shape[0] > 1 else 0
            trainable[name] = x[index : index + 1] if name.rpartition("_")[2].startswith("l") else x
        found.append(adapter.replace(trainable=trainable, options=options))
    return found


def _arrays(adapters: Sequence[Adapter]) -> list[dict[str, Array]]:
    return [adapter.trainable for adapter in adapters]


@functools.partial(jax.jit, static_argnames="program")
def _folded(arrays: list[dict[str, Array]], inputs: dict[str, Array], program: _Program) -> Array | None:
    """Returns the folded leaf; None if the adapters leave it as it is."""
    adapters = [
        Adapter(trainable, method=method, options=options)
        for trainable, (method, options) in zip(arrays, program.adapters, strict=True)
    ]
    layered = program.name in _LAYER_FIELDS
    # The result does not depend on leaves that are not given, so zeros stand for them and are never computed.
    leaves = {
        leaf: inputs[leaf].reshape(spec.shape) if leaf in inputs else jnp.zeros(spec.shape)
        for leaf, spec in leaf_specs(program.config).items()
    }
    layers = Layers(**{leaf: leaves.pop(leaf, None) for leaf in sorted(_LAYER_FIELDS)})  # pyright: ignore[reportArgumentType]
    bound = bind(adapters, Params(layers=layers, **leaves), program.config)
    if bound.first_position:
        raise Unfoldable("prompt tuning changes no weight: its tokens take positions of their own, so it is not folded")
    if not layered:
        return bound.parameters.get(program.name)
    layer = before = jax.tree.map(_first, layers)
    for part in bound.adapted:
        layer = updated(layer, {field: jax.tree.map(_first, update) for field, update in part.updates.items()})
    for part in bound.adapted:
        if part.prefix is not None:
            layer = _with_prefix(layer, jax.tree.map(_first, part.prefix), program)
    after = getattr(layer, program.name)
    return None if after is getattr(before, program.name) else _merged(after)


def _needs(arrays: list[dict[str, Array]], program: _Program) -> frozenset[str] | None:
    """Returns the names of the leaves that the folded leaf depends on; None if it is not changed."""
    inputs = {leaf: jax.ShapeDtypeStruct(program.shape(leaf), jnp.float32) for leaf in program.inputs()}
    inputs = {leaf: struct for leaf, struct in inputs.items() if leaf in leaf_specs(program.config)}
    if jax.eval_shape(functools.partial(_folded, program=program), arrays, inputs) is None:
        return None
    jaxpr = jax.make_jaxpr(lambda inputs: _folded(arrays, inputs, program))(inputs).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return frozenset(leaf for leaf, is_used in zip(inputs, used, strict=True) if is_used)


def _with_prefix(layer: Layers, prefix: Prefix, program: _Program) -> Layers:
    """Returns a layer whose bias holds a prefix of one token."""
    num_tokens = prefix.v_bpkh.shape[1]
    if prefix.joint:
        raise Unfoldable("a prefix that shares the text's softmax takes attention from the text: no bias can hold it")
    if num_tokens > 1:
        raise Unfoldable(
            f"the adapter has {num_tokens} prefix tokens, whose weights depend on the query: a bias holds exactly one "
            "token; to export the bias that is closest on held-out examples, add --nearest --data=FILE"
        )
    v_nh = gated_values(prefix, program.config.num_heads)[0, 0]
    if program.target == "v":
        v_kgh = v_nh.reshape(program.config.num_kv_heads, -1, v_nh.shape[-1])
        return updated(layer, {"v_bias_lkh": v_kgh[:, 0]})
    return updated(layer, {_O_BIAS: jnp.einsum("nh,nhd->d", v_nh, _merged(layer.o_lnhd))})


def _merged(weight) -> Array:
    if not isinstance(weight, LowRankWeight):
        return weight
    return _merged(weight.weight) + weight.update.scale * jnp.tensordot(weight.update.a, weight.update.b, 1)


def _first(x: Array) -> Array:
    return x[0]


def _check_gates(adapter: Adapter, config: LlamaConfig) -> None:
    gates = [np.asarray(x) for name, x in adapter.trainable.items() if name.startswith("gates_")]
    if not gates or gates[0].shape[-1] == 1:
        return
    of_heads = np.repeat(gates[0], config.num_heads // gates[0].shape[-1], axis=-1)
    by_kv_head = of_heads.reshape(-1, config.num_kv_heads, config.group_size)
    if (by_kv_head != by_kv_head[..., :1]).any():
        raise Unfoldable(
            f"query heads that share a kv head have gates of their own (gates={adapter.options['gates']!r}), so no "
            f"bias of the value projection holds them: fold into the output projection (target 'o')"
        )
