"""Adapters of rows in shapes that do not depend on them: rows with other methods, tokens and ranks share a program.

Every adapter is bound to the base alone. A row adds a weighted sum of its adapters' effects. The sum is exact:
constants and biases are added, ranks of LoRA stand side by side, and so do the tokens of longer prefixes, each with the
softmax of its own prefix.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model.attention import gated_values
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params, param_specs
from aligner_jax.model.logical import constrain
from aligner_jax.model.row_prefix import RowPrefix
from aligner_jax.model.updates import LowRank
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.methods import fresh_adapter
from aligner_jax.peft.together import bind


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Sizes that the adapters of one row may have. Any number of prefixes of one token fits: they are a constant.

    Attributes:
      tokens: tokens of all prefixes of two or more tokens.
      rank: sum of the ranks of all low-rank updates of one weight.
      factors: fields of `Layers` that have low-rank updates.
      biases: fields of `Layers` that are biases and are added to.
    """

    tokens: int = 0
    rank: int = 0
    factors: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()

    def joined(self, other: "Capacity") -> "Capacity":
        """Returns the smallest capacity that holds what either of the two holds."""
        return Capacity(
            max(self.tokens, other.tokens),
            max(self.rank, other.rank),
            tuple(sorted({*self.factors, *other.factors})),
            tuple(sorted({*self.biases, *other.biases})),
        )

    def holds(self, other: "Capacity") -> bool:
        """Returns True if no size of the other is larger."""
        return self.joined(other) == self


@flax.struct.dataclass
class RowAdapters:
    """Effects of adapters on rows, for all layers; zero where a row has no adapter.

    Attributes:
      constant_lbnh: sum of the outputs of prefixes of one token, before the output projection.
      k_lbpkh, v_lbpkh, gate_lbpn, group_lbp: tokens of longer prefixes, see `RowPrefix`; None without capacity.
      a, b: factors of low-rank updates by field of `Layers`, [l, b, *summed axes, r] and [l, b, r, *other axes].
      biases: added biases by field of `Layers`, [l, b, …].
    """

    constant_lbnh: Float[Array, "l b n h"]
    k_lbpkh: Float[Array, "l b p k h"] | None
    v_lbpkh: Float[Array, "l b p k h"] | None
    gate_lbpn: Float[Array, "l b p n"] | None
    group_lbp: Int[Array, "l b p"] | None
    a: dict[str, Array]
    b: dict[str, Array]
    biases: dict[str, Array]

    @property
    def num_rows(self) -> int:
        """Number of rows, or of places."""
        return self.constant_lbnh.shape[1]

    def adapted(self) -> Adapted:
        """Returns these adapters in the form that the model takes."""
        prefix = RowPrefix(self.constant_lbnh, self.k_lbpkh, self.v_lbpkh, self.gate_lbpn, self.group_lbp)
        updates = {name: LowRank(a=a, b=self.b[name]) for name, a in self.a.items()}
        return Adapted(range(len(self.constant_lbnh)), row_prefix=prefix, updates={**updates, **self.biases})


def empty_rows(config: LlamaConfig, rows: int, capacity: Capacity, dtype: Any) -> RowAdapters:
    """Returns rows without adapters. Keys, values and `a` have the given dtype; so have constants, `b` and biases."""
    n, k, h, layers = config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
    p, specs = capacity.tokens, param_specs(config).layers

    def zeros(*shape: int, dtype: Any = dtype) -> Array:
        return constrain(jnp.zeros((layers, rows, *shape), dtype), None, "batch", *[None] * len(shape))

    def sides(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = getattr(specs, name).shape[1:]
        cut = 2 if name == "o_lnhd" else 1
        return shape[:cut], shape[cut:]

    bias_shapes = {"q_bias_lnh": (n, h), "k_bias_lkh": (k, h), "v_bias_lkh": (k, h), "o_bias_ld": (config.d_model,)}
    return RowAdapters(
        constant_lbnh=zeros(n, h),
        k_lbpkh=zeros(p, k, h) if p else None,
        v_lbpkh=zeros(p, k, h) if p else None,
        gate_lbpn=zeros(p, n, dtype=jnp.float32) if p else None,
        group_lbp=zeros(p, dtype=jnp.int32) if p else None,
        a={name: zeros(*sides(name)[0], capacity.rank) for name in capacity.factors},
        b={name: zeros(capacity.rank, *sides(name)[1]) for name in capacity.factors},
        biases={name: zeros(*bias_shapes[name]) for name in capacity.biases},
    )


def capacity_of(method: str, options: Options, params: Params, config: LlamaConfig) -> Capacity:
    """Returns the capacity that an adapter needs.

    Args:
      method: a key of `METHODS`.
      options: complete options of the method.
      params: parameters of the base or their shapes.
      config: configuration of the base.

    Raises:
      InputError: rows cannot have different adapters of this method.
    """

    def bound(params: Params) -> Bound:
        return bind(fresh_adapter(method, config, 0, options), params, config)

    found = jax.eval_shape(bound, params)
    tokens, ranks, biases = 0, {}, set()
    joint = any(part.prefix is not None and part.prefix.joint for part in found.adapted)
    weights = {name for part in found.adapted for name, x in part.updates.items() if not _is_of_rows(name, x)}
    if found.parameters or found.first_position or joint or weights:
        raise InputError(
            f"adapters of method {method!r} cannot be different in the rows of a batch: they share the text's softmax, "
            "or change weights by more than a low rank"
        )
    for part in found.adapted:
        if part.prefix is not None and part.prefix.k_bpkh.shape[2] > 1:
            tokens += part.prefix.k_bpkh.shape[2]
        for name, update in part.updates.items():
            if isinstance(update, LowRank):
                ranks[name] = ranks.get(name, 0) + update.a.shape[-1]
            else:
                biases.add(name)
    return Capacity(tokens, max(ranks.values(), default=0), tuple(sorted(ranks)), tuple(sorted(biases)))


def _is_of_rows(name: str, update: LowRank | Array) -> bool:
    return isinstance(update, LowRank) or "_bias_" in name


def as_row(bound: Bound, config: LlamaConfig, capacity: Capacity, dtype: Any) -> RowAdapters:
    """Returns a bound adapter as one row.

    Args:
      bound: the adapter; its capacity (`capacity_of`) fits.
      config: configuration of the base.
      capacity: capacity of the result.
      dtype: dtype of the result, see `empty_rows`.
    """
    row = empty_rows(config, 1, capacity, jnp.float32)
    token, group, rank = 0, 0, dict.fromkeys(capacity.factors, 0)
    for part in bound.adapted:
        layers = slice(part.layers.start, part.layers.stop)
        if part.prefix is not None and part.prefix.k_bpkh.shape[2] == 1:
            outputs_lbpnh = jax.vmap(lambda prefix: gated_values(prefix, config.num_heads))(part.prefix)
            row = dataclasses.replace(row, constant_lbnh=row.constant_lbnh.at[layers].add(outputs_lbpnh[:, :, 0]))
        elif part.prefix is not None:
            group += 1
            row, token = _with_tokens(row, part, layers, token, group), token + part.prefix.k_bpkh.shape[2]
        for name, update in part.updates.items():
            if isinstance(update, LowRank):
                r = slice(rank[name], rank[name] + update.a.shape[-1])
                rank[name] = r.stop
                row.a[name] = row.a[name].at[layers, 0, ..., r].set(update.a)
                row.b[name] = row.b[name].at[layers, 0, r].set(update.b * update.scale)
            else:
                row.biases[name] = row.biases[name].at[layers, 0].add(update)
    exact = {"gate_lbpn": row.gate_lbpn, "group_lbp": row.group_lbp}
    return dataclasses.replace(jax.tree.map(lambda x: x.astype(dtype), row), **exact)


def _with_tokens(row: RowAdapters, part: Adapted, layers: slice, first: int, group: int) -> RowAdapters:
    prefix = part.prefix
    assert prefix is not None
    assert row.k_lbpkh is not None
    assert row.v_lbpkh is not None
    assert row.gate_lbpn is not None
    assert row.group_lbp is not None
    here = slice(first, first + prefix.k_bpkh.shape[2])
    return dataclasses.replace(
        row,
        k_lbpkh=row.k_lbpkh.at[layers, :, here].set(prefix.k_bpkh),
        v_lbpkh=row.v_lbpkh.at[layers, :, here].set(prefix.v_bpkh),
        gate_lbpn=row.gate_lbpn.at[layers, :, here].set(prefix.gate_bn[:, :, None]),
        # Group 0 is that of tokens that are not used.
        group_lbp=row.group_lbp.at[:, :, here].set(group),
    )


def with_row(held: RowAdapters, row: RowAdapters, index: Int[Array, ""] | int) -> RowAdapters:
    """Returns `held` with its place `index` replaced by the only row of `row`."""

    def put(mine: Array, new: Array) -> Array:
        start = (0, index, *[0] * (mine.ndim - 2))
        return jax.lax.dynamic_update_slice(mine, new.astype(mine.dtype), start)

    return jax.tree.map(put, held, row)


def num_bytes(config: LlamaConfig, capacity: Capacity, dtype: Any) -> int:
    """Returns the bytes of one row."""
    row = jax.eval_shape(lambda: empty_rows(config, 1, capacity, dtype))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
