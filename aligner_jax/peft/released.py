"""The paper's authors' released Aligners: .pth files of a lit-llama fork, read as adapters of this project."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.peft import aligner
from aligner_jax.peft.adapter import Adapter, Options
from aligner_jax.peft.torch_file import read_torch_tensors

_TOKENS = "global_value_embedding.weight"
_GATE = re.compile(r"transformer\.h\.(\d+)\.attn\.gating_factor")
_COPY = re.compile(r"transformer\.h\.(\d+)\.attn\.adapter_wte\.weight")


def load_released(path: str | Path) -> Adapter:
    """An Aligner from a released file; its bfloat16 numbers become float32 unchanged.

    The file holds the tokens once as `global_value_embedding.weight` [p, d], a copy of them in every adapted layer
    (checked to be equal, and dropped), and a gate vector per adapted layer, shaped [1, 1, n, 1] or alike.

    Raises:
      InputError: not such a file; unknown, missing or unequal tensors are named.
    """
    path = Path(path)
    tensors = read_torch_tensors(path)
    if _TOKENS not in tensors:
        raise InputError(f"{path} is not a released Aligner: it has no tensor {_TOKENS!r}")
    tokens_pd, gates = tensors.pop(_TOKENS), {}
    if tokens_pd.ndim != 2:
        raise InputError(f"{path}: tensor {_TOKENS!r} has shape {tokens_pd.shape}, but tokens are [p, d]")
    for name, value in tensors.items():
        if match := _GATE.fullmatch(name):
            gates[int(match[1])] = value.reshape(-1)
        elif not _COPY.fullmatch(name):
            raise InputError(f"{path} holds an unknown tensor {name!r}")
        elif value.shape != tokens_pd.shape or value.tobytes() != tokens_pd.tobytes():
            raise InputError(f"{path}: tensor {name!r} is not the copy of {_TOKENS!r} that it should be")
    layers = sorted(gates)
    if not layers or layers != list(range(layers[0], layers[-1] + 1)):
        raise InputError(f"{path} has gates for layers {layers}, which are not consecutive")
    if len({gate.shape for gate in gates.values()}) > 1:
        raise InputError(f"{path}: its layers' gates have different numbers of heads")
    trainable = {"tokens_pd": tokens_pd, "gates_ln": np.stack([gates[layer] for layer in layers])}
    return Adapter(
        trainable={name: jnp.asarray(value.astype(np.float32)) for name, value in trainable.items()},
        method="aligner",
        options=Options.of(**{**aligner.DEFAULTS, "num_tokens": tokens_pd.shape[0], "start_layer": layers[0]}),
    )
