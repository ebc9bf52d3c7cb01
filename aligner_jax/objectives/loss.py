"""The loss that a step minimises: sums over a part of a batch, which add up over the parts."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.model.params import Params
from aligner_jax.peft import Adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fields of `config.objective` besides its name, of an objective that has none; others have a subclass."""

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the optional arrays that batches have."""
        return ()

    @property
    def reference_in_steps(self) -> bool:
        """True where every step computes with a reference adapter."""
        return False


class Totals(NamedTuple):
    """How many the loss is a mean over, and sums of the objective's metrics over the same (of a stack, each one's)."""

    number: Int[Array, "*a"]
    metrics: dict[str, Float[Array, "*a"]]


class Sums(Protocol):
    """A sum of losses (of a stack, each adapter's), and what goes with it. The reference is another adapter."""

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
    """The sums, and the names of the metrics among them."""

    sums: Sums
    metrics: tuple[str, ...] = ()
