"""Loads adapters from .pth files of lit-llama and its forks.

The Aligner authors released their adapters as such files. lit-llama saves its LLaMA-Adapters in the same format, but
without shared tokens. Both compute the same as this project's methods: gates have no tanh, and tokens are neither
normed nor rotated. lit-llama's layout of rotary pairs (adjacent, not half a head apart) concerns the base alone.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.weights.torch_file import read_torch_tensors

_TOKENS = "global_value_embedding.weight"
# Leading zeros are refused, since 2 and 02 would be the same layer.
_LAYER = r"transformer\.h\.(0|[1-9][0-9]{0,3})\.attn\."
_GATE = re.compile(_LAYER + "gating_factor")
_OWN = "transformer.h.{}.attn.adapter_wte.weight"
_OWN_PATTERN = re.compile(_LAYER + r"adapter_wte\.weight")


def load_released(path: str | Path) -> Adapter:
    """Loads an Aligner or a LLaMA-Adapter from a .pth file, in float32.

    A file of an `aligner` has the shared tokens `global_value_embedding.weight` [p, d], a copy of them per adapted
    layer (checked to be equal, and dropped), and a gate vector per adapted layer, of shape [1, 1, n, 1] or similar. A
    file without shared tokens is a `llama_adapter`, whose tokens differ between layers. Its gates may be one per layer,
    as in lit-llama's first versions. Source: github.com/Lightning-AI/lit-llama, lit_llama/adapter.py.

    Raises:
      InputError: the file has another format, or tensors are unknown, missing or unequal; the message names them.
    """
    path = Path(path)
    tensors = read_torch_tensors(path)
    if _TOKENS not in tensors and not any(map(_OWN_PATTERN.fullmatch, tensors)):
        raise InputError(
            f"{path} is no Aligner and no LLaMA-Adapter: it has no tensor {_TOKENS!r}, nor tokens by layer"
        )
    shared_pd, tokens, gates = tensors.pop(_TOKENS, None), {}, {}
    for name, value in tensors.items():
        if match := _GATE.fullmatch(name):
            if max(value.shape, default=1) != value.size or not value.size:
                raise InputError(f"{path}: tensor {name!r} has shape {value.shape}, but gates are one, or one a head")
            gates[int(match[1])] = value.reshape(-1)
        elif match := _OWN_PATTERN.fullmatch(name):
            tokens[int(match[1])] = value
        else:
            raise InputError(f"{path} holds an unknown tensor {name!r}")
    layers = sorted(gates)
    if not layers or layers[-1] - layers[0] != len(layers) - 1:
        raise InputError(f"{path} has gates for layers {layers}, which are not consecutive")
    if len({gate.shape for gate in gates.values()}) > 1:
        raise InputError(f"{path}: its layers' gates have different numbers of heads")
    gates_ln = np.stack([gates[layer] for layer in layers])
    options = {"start_layer": layers[0], "gates": "layer" if gates_ln.shape[1] == 1 else "head"}
    if shared_pd is None or tokens:
        _check_layers(path, tokens, layers)
    if shared_pd is not None:
        _check_copies(path, shared_pd, tokens)
        return _adapter(path, "aligner", options, "tokens_pd", shared_pd, gates_ln)
    return _adapter(path, "llama_adapter", options, "tokens_lpd", _stacked(path, tokens, layers), gates_ln)


def _check_layers(path: Path, tokens: Collection[int], layers: Collection[int]) -> None:
    for layer in sorted({*tokens} ^ {*layers}):
        kind, other = ("tokens", "a gate") if layer in tokens else ("a gate", "tokens")
        raise InputError(f"{path} has {kind} for layer {layer}, but not {other}")


def _check_copies(path: Path, shared_pd: np.ndarray, tokens: Mapping[int, np.ndarray]) -> None:
    if shared_pd.ndim != 2:
        raise InputError(f"{path}: tensor {_TOKENS!r} has shape {shared_pd.shape}, but tokens are [p, d]")
    for layer, copy in tokens.items():
        if copy.shape != shared_pd.shape or copy.tobytes() != shared_pd.tobytes():
            raise InputError(f"{path}: tensor {_OWN.format(layer)!r} is not the copy of {_TOKENS!r} that it should be")


def _stacked(path: Path, tokens: Mapping[int, np.ndarray], layers: Sequence[int]) -> np.ndarray:
    for layer, tokens_pd in tokens.items():
        if tokens_pd.ndim != 2 or tokens_pd.shape != tokens[layers[0]].shape:
            raise InputError(f"{path}: tensor {_OWN.format(layer)!r} has shape {tokens_pd.shape}, unlike other layers'")
    return np.stack([tokens[layer] for layer in layers])


def _adapter(
    path: Path, method: str, options: Mapping[str, Any], name: str, tokens: np.ndarray, gates_ln: np.ndarray
) -> Adapter:
    *_, num_tokens, d_model = tokens.shape
    if not tokens.size:
        raise InputError(f"{path} has {num_tokens} tokens of {d_model} numbers; an adapter has one at least")
    return Adapter(
        trainable={
            key: jnp.asarray(value.astype(np.float32)) for key, value in ((name, tokens), ("gates_ln", gates_ln))
        },
        method=method,
        options=METHODS[method].options(**options, num_tokens=num_tokens),
    )
