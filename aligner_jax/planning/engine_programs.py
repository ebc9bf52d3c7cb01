"""The engine's programs, compiled for TPUs that are not attached."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aligner_jax.decoding import programs
from aligner_jax.decoding.arrivals import Arrivals
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.held import empty_places
from aligner_jax.decoding.lengths import prompts_at_once
from aligner_jax.decoding.request import Request
from aligner_jax.decoding.state import State
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import num_parts
from aligner_jax.peft import Adapter, Bound
from aligner_jax.peft.row_adapters import RowAdapters
from aligner_jax.peft.row_sums import Sums
from aligner_jax.planning.compiled import Compiled, compile_for
from aligner_jax.runtime import chips, sharding
from aligner_jax.runtime.memory import nbytes

STOPS = 2
"""Number of stop tokens; it does not change the plan."""


class EngineTooLarge(InputError):
    """The arrays of an engine alone do not fit the devices."""


class EnginePrograms:
    """Compiles the programs of an engine; mesh and rules are in context.

    Attributes:
      shared: shapes of the bound adapter that all rows share, with shardings.
      state: shapes of the engine's state, with shardings.
      held: shapes of the places of adapters, with shardings; None if rows have no adapters of their own.
    """

    def __init__(
        self,
        chip: chips.Chip,
        mesh: Mesh,
        config: LlamaConfig,
        params: Params,
        options: EngineOptions,
        adapter: Adapter | None = None,
    ) -> None:
        """Compiles the programs that make the engine.

        Args:
          chip: chip of the mesh's devices.
          mesh: mesh of the engine.
          config: configuration of the base.
          params: shapes of the base's parameters, with shardings.
          options: sizes of the engine.
          adapter: shapes of an adapter that all rows share, with shardings.

        Raises:
          EngineTooLarge: its arrays do not fit the devices.
        """
        self._chip, self._mesh, self._config, self._params, self._options = chip, mesh, config, params, options
        self.shared: Bound = self._results(programs.bind_shared, params, adapter, config=config)
        self.state: State = self._results(
            programs.make_state, config=config, batch_size=options.rows, slots=options.slots,
            dtype=params.embed_vd.dtype, first_position=self.shared.first_position, alternatives=options.alternatives,
            has_penalty=options.has_penalty, capacity=options.capacity,
        )  # fmt: skip
        self.held: RowAdapters | None = None
        if options.capacity is not None:
            self.held = self._results(
                empty_places, params, config=config, capacity=options.capacity,
                places=options.all_places(num_parts("batch"), "tpu"),
            )  # fmt: skip

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values on one device."""
        return nbytes((self.state.cache.k_lbksh, self.state.cache.v_lbksh))

    def admit(self, tokens: int, new_tokens: int) -> Compiled:
        """Compiles the program that prefills and inserts prompts of a length, which is not prefilled in parts."""
        width = self._options.width(tokens)
        assert width is not None
        arrivals = self._arrivals([0] * tokens, width, self._group(width), new_tokens, with_adapters=True)
        return compile_for(
            self._chip, programs.admit, self._params, self.shared, self.held, self.state, arrivals, self._ids(STOPS),
            config=self._config,
        )  # fmt: skip

    def parts(self, tokens: int) -> Iterator[tuple[str, Compiled, State | None]]:
        """Compiles the programs of a prompt that is prefilled in parts, up to the first one that does not fit.

        Args:
          tokens: tokens of the prompt.

        Yields:
          The name of a program, the program, and the shapes of the state of parts, with shardings; None for that if the
          first program does not fit.
        """
        longest = self._options.longest_part
        group, last = self._group(longest), min(tokens - longest, longest)
        first = self._arrivals([0] * longest, longest, group, 1, with_adapters=True)
        begun, state = self._made(
            programs.begin_parts, self._params, self.shared, self.held, first, config=self._config,
            slots=self._options.slots + longest, has_penalty=self._options.has_penalty,
        )  # fmt: skip
        yield "first parts", begun, state
        if state is None:
            return
        if tokens > 2 * longest:
            next_part = self._arrivals([0] * longest, longest, group, 1)
            added = compile_for(
                self._chip, programs.add_part, self._params, self.shared, state, next_part, config=self._config
            )
            yield "next parts", added, state
        width = self._options.width(last)
        assert width is not None
        admitted = compile_for(
            self._chip, programs.admit_parts, self._params, self.shared, self.state, state,
            self._arrivals([0] * last, width, group, 1), self._ids(STOPS), config=self._config,
        )  # fmt: skip
        yield "last parts", admitted, state

    def decode(self, count: int) -> Compiled:
        """Compiles the program that decodes `count` tokens per row."""
        return compile_for(
            self._chip, programs.decode, self._params, self.shared, self.state, self._ids(self._options.rows),
            self._ids(STOPS), config=self._config, count=count,
        )  # fmt: skip

    def _ids(self, count: int) -> Any:
        return on_device(jax.ShapeDtypeStruct((count,), jnp.int32), self._mesh)

    def _group(self, width: int) -> int:
        return prompts_at_once(width, self._options.rows, num_parts("batch"), "tpu")

    def _arrivals(self, ids: list[int], width: int, group: int, new_tokens: int, with_adapters: bool = False) -> Any:
        arrivals = Arrivals.of([Request(ids, new_tokens)], [0], [ids], width=width, group=group)
        if with_adapters and self._options.capacity is not None:
            arrivals = dataclasses.replace(arrivals, sums=Sums.of([[]] * group, self._options.capacity))
        return on_device(arrivals, self._mesh)

    def _results(self, jitted: Any, *arguments: Any, **static: Any) -> Any:
        made, results = self._made(jitted, *arguments, **static)
        if results is None:
            raise EngineTooLarge(
                f"the engine's arrays alone need {made.peak_bytes / 2**30:.2f} GiB a device, and there are "
                f"{made.hbm_bytes / 2**30:.2f} GiB; fewer rows or shorter texts take less"
            )
        return results

    def _made(self, jitted: Any, *arguments: Any, **static: Any) -> tuple[Compiled, Any]:
        """Returns a program and the shapes of its results, with the shardings that the compiler gives them.

        The shapes are None if the program does not fit.
        """
        made = compile_for(self._chip, jitted, *arguments, **static)
        if made.output_shardings is None:
            return made, None
        return made, jax.tree.map(_struct, jitted.eval_shape(*arguments, **static), made.output_shardings)


def on_device(tree: Any, mesh: Mesh) -> Any:
    """Returns shapes and dtypes of arrays that every device of the mesh holds."""
    return jax.tree.map(lambda leaf: _struct(leaf, sharding.replicated(mesh)), tree)


def _struct(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
