"""Writes adapters as a folder that PEFT applies exactly: LoRA, LoRA's bias, or AdaptionPrompt."""

import math
from pathlib import Path

import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.exports.job import Job
from aligner_jax.peft.fold import Unfoldable
from aligner_jax.peft.hf_peft import packed, peft_files, tensor_prefix
from aligner_jax.peft.hf_peft_config import lora_bias_config
from aligner_jax.weights.leaves import leaf_specs

_TARGETS = {"q_bias_lnh": "q", "k_bias_lkh": "k", "v_bias_lkh": "v", "o_bias_ld": "o"}


def export_peft(job: Job, folder: Path) -> list[str]:
    """Writes the first of these that has exactly the adapters' effect.

    - LoRA, for one `lora`.
    - LoRA whose matrices are zero and whose second one has a bias (`lora_bias`), for adapters that are biases of
      projections: prefixes of one token, `bias`, or several of these.
    - AdaptionPrompt, for one prefix of more tokens with one gate per layer.

    Args:
      job: the adapters; their base is read where a prefix is multiplied with its projections.
      folder: existing empty folder.

    Returns:
      Sentences for the user.

    Raises:
      InputError: PEFT has no equivalent.
    """
    files, sentence = _files(job)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [sentence]


def _files(job: Job) -> tuple[dict[str, bytes], str]:
    """Returns the contents of the files by name, and a sentence about them."""
    first, *more = job.adapters
    if first.method == "lora" and not more:
        return peft_files(first, config=job.base.config, base_name=_base_name(job)), "PEFT: LoRA"
    try:
        changed = job.fold.needs
    except Unfoldable:
        if more:
            raise
        return peft_files(first, config=job.base.config, base_name=_base_name(job)), "PEFT: AdaptionPrompt"
    if not changed.keys() <= _TARGETS.keys():
        methods = ", ".join(adapter.method for adapter in job.adapters)
        raise InputError(
            f"PEFT has one LoRA, or biases of projections, but no exact form of {methods}: write a folded base with "
            f"--to=hf"
        )
    modules = ", ".join(_TARGETS[leaf] for leaf in changed)
    return _biases(job), (
        f"PEFT: LoRA with lora_bias in the projections {modules}, whose matrices are zero; PEFT merges it only into "
        f"projections that have a bias"
    )


def _biases(job: Job) -> dict[str, bytes]:
    config, specs, tensors = job.base.config, leaf_specs(job.fold.folded_config), {}
    read = job.base.open_parts("float32")
    changed = job.changed_layers()
    layers = range(min(each.start for each in changed.values() if each is not None), config.num_layers)
    for leaf in changed:
        bias_size = math.prod(specs[leaf].shape[1:])
        input_size = config.num_heads * config.head_dim if leaf == "o_bias_ld" else config.d_model
        for layer in layers:
            inputs = {
                needed: read(needed, [[slice(layer, layer + 1), *[slice(None)] * (len(specs[needed].shape) - 1)]])[0][0]
                for needed in job.fold.needs[leaf]
            }
            # PEFT adds to a bias that the base has.
            added = job.fold.leaf(leaf, layer, inputs) - inputs.get(leaf, np.float32(0))
            name = tensor_prefix(layer, _TARGETS[leaf])
            tensors[f"{name}.lora_A.weight"] = np.zeros((1, input_size), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.zeros((bias_size, 1), np.float32)
            tensors[f"{name}.lora_B.bias"] = np.ascontiguousarray(added.reshape(bias_size))
    return packed(tensors, lora_bias_config([_TARGETS[leaf] for leaf in changed], layers, _base_name(job)))


def _base_name(job: Job) -> str:
    """Returns the name from which PEFT's `AutoPeftModel` loads the base."""
    return job.base_model or job.base.name
