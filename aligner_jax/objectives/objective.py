"""What an objective is to the training step: sums over a part of a batch, which add up over the parts."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives import preference, sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter
from aligner_jax.runtime.config import ObjectiveConfig


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
        batch: Batch,
        *,
        config: LlamaConfig,
        remat: Remat,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "*a"], Totals]: ...


class Objective(NamedTuple):
    """The sums, and the names of the metrics among them."""

    sums: Sums
    metrics: tuple[str, ...] = ()


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a config names: cross-entropy a target token, or a preference loss a pair (`PairBatch`)."""
    if config.name == "sft":
        return SFT

    def sums(params, adapter, reference, batch, **model):
        loss, count, metrics = preference.loss_sum(params, adapter, reference, batch, objective=config, **model)
        return loss, Totals(count, metrics)

    return Objective(sums, preference.METRICS)


def _sft_sums(params, adapter, reference, batch, **model):
    loss, count = sft.loss_sum(params, adapter, batch, **model)
    return loss, Totals(count, {})


SFT = Objective(_sft_sums)
