"""The loss that a step minimizes, as sums over a part of a batch."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.model.params import Params
from aligner_jax.peft import Adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of an objective's options, the fields of `config.objective` besides its name."""

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the optional arrays that the objective's batches have."""
        return ()

    @property
    def reference_in_steps(self) -> bool:
        """True if every step computes with a reference adapter."""
        return False


class Totals(NamedTuple):
    """Denominator of the mean loss, and sums of the objective's metrics; one value per adapter of a stack.

    Attributes:
      number: number of target tokens or preference pairs.
      metrics: sums over these, by name.
    """

    number: Int[Array, "*a"]
    metrics: dict[str, Float[Array, "*a"]]


class Sums(Protocol):
    """Returns the sum of losses over a batch and its `Totals`; one value per adapter of a stack.

    `reference` is a frozen adapter over the same base, which some objectives need.
    """

    def __call__(
        self,
        params: Params,
        adapter: Adapter | None,
        reference: Adapter | None,
        batch: Any,
        *,
        config: LlamaConfig,
        remat: Remat,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "*a"], Totals]: ...


class Loss(NamedTuple):
    """Function of the sums, and the names of the metrics in their `Totals`."""

    sums: Sums
    metrics: tuple[str, ...] = ()
