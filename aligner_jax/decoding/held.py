"""Bound adapters on the device: a fixed number of places, the least recently used adapter replaced first."""

import collections
import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import replicated
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.methods import METHODS, fresh_adapter
from aligner_jax.peft.row_adapters import Capacity, RowAdapters, as_row, capacity_of, empty_rows, with_row
from aligner_jax.peft.row_sums import MOST_IN_A_SUM, Sums, Term, check_fits
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime import sharding


class HeldAdapters:
    """Adapters in the places of a `RowAdapters` at unit strength.

    Attributes:
      rows: the places.
      hits, misses: lookups that found their adapter in a place, and that had to bind it.
    """

    def __init__(self, params: Params, config: LlamaConfig, capacity: Capacity, places: int) -> None:
        """Makes empty places.

        Args:
          params: parameters of the base.
          config: configuration of the base.
          capacity: capacity of a place, and of a row.
          places: number of places, at least `MOST_IN_A_SUM`.
        """
        assert places >= MOST_IN_A_SUM
        self._params, self._config, self.capacity = params, config, capacity
        self._mesh_and_rules = sharding.for_other_threads()
        self.rows: RowAdapters = empty_places(params, config=config, capacity=capacity, places=places)
        self._places: collections.OrderedDict[Hashable, int] = collections.OrderedDict()
        self._free = list(range(places))
        self._needs: dict[tuple[str, Options], Capacity] = {}
        self._prepared: dict[tuple[str, Options], jax.stages.Compiled] = {}
        self._was_bound: set[tuple[str, Options]] = set()
        # The places themselves belong to the engine's thread, which donates them.
        self._shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.rows)
        self.hits = self.misses = 0

    def needs(self, adapter: StoredAdapter) -> Capacity:
        """Returns the capacity that the adapter needs. Raises InputError if rows cannot have adapters of its method."""
        kind = adapter.method, adapter.options
        if kind not in self._needs:
            self._needs[kind] = capacity_of(*kind, self._params, self._config)
        return self._needs[kind]

    def check(self, adapters: Sequence[StoredAdapter]) -> None:
        """Refuses adapters that do not fit a row together. Raises InputError."""
        check_fits([self.needs(adapter) for adapter in adapters], self.capacity)

    def terms(self, adapters: Sequence[tuple[StoredAdapter, float]]) -> list[Term]:
        """Returns the terms of a row's sum, after every adapter that no place holds was bound to one.

        Raises:
          InputError: the numbers of an adapter cannot be read.
        """
        return [Term(self._place(adapter), weight, self.needs(adapter)) for adapter, weight in adapters if weight]

    def sums(self, terms: Sequence[Sequence[Term]], rows: int) -> Sums:
        """Returns the sums of rows; copies of the last one fill up to `rows`."""
        return Sums.of([*terms, *[terms[-1]] * (rows - len(terms))], self.capacity)

    def warm_up(self, method: str, options: Options) -> None:
        """Compiles the program that binds adapters of this method and these options. May use up a place."""
        adapter = StoredAdapter.of(fresh_adapter(method, self._config, 0, options), None)
        self.needs(adapter)
        place = self._next_place()
        self._bind(adapter, adapter.read(), place)
        self._free.append(place)

    def prepare(self, adapter: StoredAdapter) -> None:
        """Compiles the program that binds adapters of this kind, unless there is one.

        May be called from any thread while another one uses the places.

        Args:
          adapter: an adapter of the kind.

        Raises:
          InputError: rows cannot have adapters of its method.
        """
        kind = adapter.method, adapter.options
        if kind not in self._was_bound and kind not in self._prepared:
            arrays = {name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in adapter.read().items()}
            place = jax.ShapeDtypeStruct((), jnp.int32)
            with self._mesh_and_rules():
                lowered = _bound.lower(self._params, self._shapes, arrays, place, **self._static(adapter))
                self._prepared[kind] = lowered.compile()

    def _place(self, adapter: StoredAdapter) -> int:
        if adapter.key in self._places:
            self.hits += 1
            self._places.move_to_end(adapter.key)
            return self._places[adapter.key]
        self.misses += 1
        # Read first: numbers that cannot be read must not cost a place.
        trainable = adapter.read()
        place = self._next_place()
        self._bind(adapter, trainable, place)
        self._places[adapter.key] = place
        return place

    def _next_place(self) -> int:
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]

    def _bind(self, adapter: StoredAdapter, trainable: Mapping[str, np.ndarray], place: int) -> None:
        arrays = {name: np.asarray(x, np.float32) for name, x in trainable.items()}
        kind = adapter.method, adapter.options
        program = self._prepared.get(kind) or functools.partial(_bound, **self._static(adapter))
        self.rows = program(self._params, self.rows, arrays, np.int32(place))
        self._was_bound.add(kind)

    def _static(self, adapter: StoredAdapter) -> dict[str, Any]:
        return {
            "method": adapter.method, "options": adapter.options, "config": self._config, "capacity": self.capacity,
            "is_constant": self.needs(adapter) == Capacity(),
        }  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config", "capacity", "places"))
def empty_places(params: Params, *, config: LlamaConfig, capacity: Capacity, places: int) -> RowAdapters:
    """Returns places without adapters."""
    # Constants and factors are float32, and rounded once when they are summed.
    held = empty_rows(config, places, capacity, jnp.float32)
    return _on_every_device(_with_dtype(held, params))


@functools.partial(
    jax.jit, static_argnames=("method", "options", "config", "capacity", "is_constant"), donate_argnames=("held",)
)
def _bound(
    params: Params,
    held: RowAdapters,
    trainable: dict[str, Array],
    place: Int[Array, ""],
    *,
    method: str,
    options: Options,
    config: LlamaConfig,
    capacity: Capacity,
    is_constant: bool,
) -> RowAdapters:
    """Binds an adapter to the base, and returns the places with it. A constant needs no capacity."""

    def as_one(trainable: dict[str, Array]) -> RowAdapters:
        bound = METHODS[method].bind(trainable, options, params, config, None)
        return _with_dtype(as_row(bound, config, capacity, jnp.float32), params)

    if is_constant:
        # On CPUs XLA projects a single token in three times the time of two.
        pair = jax.vmap(as_one)({name: jnp.stack([x, x]) for name, x in trainable.items()})
        row = jax.tree.map(lambda x: x[0], pair)
    else:
        row = as_one(trainable)
    return _on_every_device(with_row(held, row, place))


def _with_dtype(rows: RowAdapters, params: Params) -> RowAdapters:
    """Returns rows with keys and values in the parameters' dtype."""
    if rows.k_lbpkh is None or rows.v_lbpkh is None:
        return rows
    dtype = params.embed_vd.dtype
    return dataclasses.replace(rows, k_lbpkh=rows.k_lbpkh.astype(dtype), v_lbpkh=rows.v_lbpkh.astype(dtype))


def _on_every_device(held: RowAdapters) -> RowAdapters:
    """Returns the places replicated: any row may take any of them."""
    return jax.tree.map(replicated, held)
