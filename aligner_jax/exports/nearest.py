"""Approximates an adapter of several prefix tokens by the bias that is closest to it on held-out data.

A prefix of one token is a constant, and folds exactly (`peft.fold`). With more tokens the output depends on the query:
at a position it is W_O (g ⊙ Σ_p w_p V_p), with attention weights w. The constant with the least sum of squared
differences from these vectors is their mean, W_O (g ⊙ Σ_p mean(w_p) V_p), one per layer.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aligner_jax.data import pipeline
from aligner_jax.data.batch import Batch
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.sources import load_dataset, without_repeats
from aligner_jax.errors import InputError
from aligner_jax.evals.heldout import heldout_loss
from aligner_jax.model.attention import add_gated, attend
from aligner_jax.model.layers import Layer, run_layers
from aligner_jax.model.llama import LlamaConfig, Params, embed, transform
from aligner_jax.model.rope import rotation
from aligner_jax.model.updates import project
from aligner_jax.peft import Adapter, bind
from aligner_jax.peft.bias import BiasOptions
from aligner_jax.peft.gated import GatedOptions
from aligner_jax.peft.methods import check_fits
from aligner_jax.weights.base import Base

_ROWS_AT_ONCE, _MOST_TOKENS = 4, 1024


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out documents in rows.

    Attributes:
      name: name of the file, without its folder.
      summary: number of documents, tokens and targets.
      batches: rows of the documents.
    """

    name: str
    summary: pipeline.Summary
    batches: list[Batch]


def read_heldout(path: str | Path, num_examples: int, base: Base, prompt_format: PromptFormat) -> HeldOut:
    """Reads the first different examples of a file, rendered as training data are.

    Args:
      path: data in a format that `load_dataset` detects.
      num_examples: most examples that are read.
      base: the base, whose tokenizer is used.
      prompt_format: template and system prompt of the adapter's training data.

    Raises:
      InputError: the data cannot be read or rendered, no example fits a row, or the base has no tokenizer.
    """
    if base.tokenizer is None:
        raise InputError(f"the base has no tokenizer, which the text of {path} needs")
    length = min(_MOST_TOKENS, base.config.context_length)
    examples = without_repeats(load_dataset(path).examples)[:num_examples]
    documents, summary = pipeline.tokenize_examples(
        examples, base.tokenizer, prompt_format.template, system=prompt_format.system,
        sequence_length=length, context_length=length, overlong="drop",
    )  # fmt: skip
    batches = pipeline.eval_batches(documents, batch_size=_ROWS_AT_ONCE, sequence_length=length)
    return HeldOut(Path(path).name, summary, batches)


@dataclasses.dataclass(frozen=True)
class Nearest:
    """An adapter's nearest bias, and held-out losses in nats per target token.

    Attributes:
      bias: the bias, an adapter of its own.
      of_base, of_adapter, of_bias: loss of the base alone, with the adapter, and with the bias.
      heldout: the held-out documents.
    """

    bias: Adapter
    of_base: float
    of_adapter: float
    of_bias: float
    heldout: HeldOut

    def __str__(self) -> str:
        """Returns the losses in one sentence."""
        counts = self.heldout.summary
        return (
            f"the bias that is closest to the adapter, not the adapter itself: held-out loss in nats per token: base "
            f"{self.of_base:.4f}, adapter {self.of_adapter:.4f}, bias {self.of_bias:.4f} (over {counts.targets:,} "
            f"tokens of {counts.documents:,} examples of {self.heldout.name}, on which the bias was computed too)"
        )


def approximate(base: Base, adapter: Adapter, heldout: HeldOut) -> Nearest:
    """Returns the nearest bias of an adapter with the losses that it is judged by; see `nearest_bias`."""
    bias = nearest_bias(base, adapter, heldout.batches)
    of_base, of_adapter, of_bias = (
        heldout_loss(base.params, each, heldout.batches, config=base.config) for each in (None, adapter, bias)
    )
    return Nearest(bias, of_base, of_adapter, of_bias, heldout)


def nearest_bias(base: Base, adapter: Adapter, batches: Sequence[Batch]) -> Adapter:
    """Returns the bias of the output projections that is closest to an adapter's prefixes in every layer.

    The mean is over all tokens of all documents, with the adapter itself active in the layers below.

    Args:
      base: the base.
      adapter: an Aligner or LLaMA-Adapter. One of one token is met exactly, up to rounding.
      batches: rows of documents.

    Raises:
      InputError: the adapter is of another method, or does not fit the base; or there are no documents.
    """
    options = adapter.options
    if not isinstance(options, GatedOptions):
        raise InputError(
            f"an adapter of method {adapter.method!r} has no nearest bias: only prefix tokens with a softmax of their "
            "own add to the attention's output (aligner, llama_adapter)"
        )
    check_fits(adapter, base.config)
    adapted = options.adapted(base.config)
    count = sum(int(np.count_nonzero(batch.segment_ids_bt)) for batch in batches)
    if not count:
        raise InputError("there are no documents to compute the nearest bias on")
    shape = (len(adapted), base.config.num_heads, base.config.head_dim)
    sums_lnh = np.zeros(shape, np.float64)
    for batch in batches:
        rows = (jnp.asarray(x) for x in (batch.tokens_bt, batch.segment_ids_bt, batch.positions_bt))
        sums_lnh += np.asarray(_prefix_sums(base.params, adapter, *rows, config=base.config))
    means_lnh = jnp.asarray(sums_lnh / count, jnp.float32)
    o_lnhd = jax.tree.map(lambda x: x[adapted.start :], base.params.layers.o_lnhd)
    with jax.default_matmul_precision("highest"):
        o_bias_ld = jax.vmap(_put_out)(means_lnh, o_lnhd)
    return Adapter({"o_bias_ld": o_bias_ld}, method="bias", options=BiasOptions(start_layer=adapted.start))


@functools.partial(jax.jit, static_argnames="config")
def _prefix_sums(
    params: Params,
    adapter: Adapter,
    tokens_bt: Int[Array, "b t"],
    segment_ids_bt: Int[Array, "b t"],
    positions_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
) -> Float[Array, "l n h"]:
    """Returns the sum of the prefixes' outputs over all tokens, before the output projection, of adapted layers."""
    bound = bind(adapter, params, config)
    cos_sin = rotation(positions_bt, config)
    there_bt11 = (segment_ids_bt > 0)[..., None, None]

    def step(x_btd, layer: Layer):
        sums: list[Array] = []

        def attention(q_btnh, k_bskh, v_bskh):
            added_btnh = add_gated(jnp.zeros_like(q_btnh), q_btnh, layer.prefixes)
            sums.append(jnp.sum(jnp.where(there_bt11, added_btnh.astype(jnp.float32), 0), axis=(0, 1)))
            return attend(q_btnh, k_bskh, v_bskh, segment_ids_bt=segment_ids_bt) + added_btnh

        return transform(x_btd, layer.updated(), attention, cos_sin=cos_sin, config=config), sums[0]

    _, sums_lnh = run_layers(step, embed(params, tokens_bt), params.layers, range(config.num_layers), bound.adapted)
    return sums_lnh[bound.adapted[0].layers.start :]


def _put_out(o_nh: Float[Array, "n h"], weight_nhd) -> Float[Array, " d"]:
    return project("btnh,nhd->btd", o_nh[None, None], weight_nhd)[0, 0]
