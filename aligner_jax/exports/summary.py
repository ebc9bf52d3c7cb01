"""Describes an export in the sentences that the command prints."""

from aligner_jax.exports.job import Job
from aligner_jax.exports.rounding import NUM_TOKENS
from aligner_jax.weights.hf import FORMAT
from aligner_jax.weights.leaves import leaf_specs

_NAMES = {slot.leaf: name for name, slot in FORMAT.slots.items()}


def changes(job: Job) -> list[str]:
    """Returns a sentence about every changed leaf, by its name in Hugging Face's form, and one with their number."""
    sentences, count = [], 0
    base = leaf_specs(job.base.config)
    for leaf, layers in job.changed_layers().items():
        name = _NAMES[leaf].removeprefix("model.layers.{l}.")
        where = "" if layers is None else f" of layers {layers.start} to {layers.stop - 1}"
        count += 1 if layers is None else len(layers)
        sentences.append(f"{'changed' if leaf in base else 'added'}: {name}{where}")
    plural = "" if count == 1 else "s"
    return [*sentences, f"{count} tensor{plural} with the adapter's effect; every other weight is the base's"]


def rounding(job: Job, difference: float, model: str) -> str:
    """Returns a sentence about the largest difference of logits, see `rounding.measure`.

    Args:
      job: the export.
      difference: the difference.
      model: words for what the written weights should equal, such as "base and adapter".
    """
    return (
        f"largest difference of logits from {model}: {difference:.2g} (over {NUM_TOKENS} tokens, computed in float32; "
        f"{_types(job.dtype)})"
    )


def _types(dtype: str) -> str:
    return "weights written in their own types" if dtype == "stored" else f"weights written in {dtype}"
