"""Adapters in .pth files of lit-llama and its forks, read as adapters of this project.

The paper's authors released their Aligners as such files, and lit-llama saves its LLaMA-Adapters in the same form,
without the shared tokens. Both compute what this project's methods do: gates without a tanh, tokens without a norm or a
rotation. (That lit-llama has rotary pairs side by side, and not half a head apart, concerns the base alone.)
"""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.peft import METHODS, Adapter, Options
from aligner_jax.weights.torch_file import read_torch_tensors

_TOKENS = "global_value_embedding.weight"
_GATE = re.compile(r"transformer\.h\.(\d+)\.attn\.gating_factor")
_OWN = "transformer.h.{}.attn.adapter_wte.weight"
_OWN_PATTERN = re.compile(re.escape(_OWN).replace(r"\{\}", r"(\d+)"))


def load_released(path: str | Path) -> Adapter:
    """An Aligner or a LLaMA-Adapter from a .pth file; bfloat16 numbers become float32 unchanged.

    An Aligner's file holds the tokens once as `global_value_embedding.weight` [p, d], a copy of them in every adapted
    layer (checked to be equal, and dropped), and a gate vector per adapted layer, shaped [1, 1, n, 1] or alike. Without
    those shared tokens the layers' are their own, and it is a `llama_adapter`; its gates may be one a layer, as in
    lit-llama's first versions. Source: github.com/Lightning-AI/lit-llama, lit_llama/adapter.py.

    Raises:
      InputError: not such a file; unknown, missing or unequal tensors are named.
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
            gates[int(match[1])] = value.reshape(-1)
        elif match := _OWN_PATTERN.fullmatch(name):
            tokens[int(match[1])] = value
        else:
            raise InputError(f"{path} holds an unknown tensor {name!r}")
    layers = sorted(gates)
    if not layers or layers != list(range(layers[0], layers[-1] + 1)):
        raise InputError(f"{path} has gates for layers {layers}, which are not consecutive")
    if len({gate.shape for gate in gates.values()}) > 1:
        raise InputError(f"{path}: its layers' gates have different numbers of heads")
    gates_ln = np.stack([gates[layer] for layer in layers])
    options = {"start_layer": layers[0], "gates": "layer" if gates_ln.shape[1] == 1 else "head"}
    if shared_pd is not None:
        _check_copies(path, shared_pd, tokens)
        return _adapter("aligner", options, num_tokens=shared_pd.shape[0], tokens_pd=shared_pd, gates_ln=gates_ln)
    tokens_lpd = _stacked(path, tokens, layers)
    return _adapter("llama_adapter", options, num_tokens=tokens_lpd.shape[1], tokens_lpd=tokens_lpd, gates_ln=gates_ln)


def _check_copies(path: Path, shared_pd: np.ndarray, tokens: dict[int, np.ndarray]) -> None:
    if shared_pd.ndim != 2:
        raise InputError(f"{path}: tensor {_TOKENS!r} has shape {shared_pd.shape}, but tokens are [p, d]")
    for layer, copy in tokens.items():
        if copy.shape != shared_pd.shape or copy.tobytes() != shared_pd.tobytes():
            raise InputError(f"{path}: tensor {_OWN.format(layer)!r} is not the copy of {_TOKENS!r} that it should be")


def _stacked(path: Path, tokens: dict[int, np.ndarray], layers: list[int]) -> np.ndarray:
    for layer in sorted(tokens.keys() ^ set(layers)):
        kind, other = ("tokens", "a gate") if layer in tokens else ("a gate", "tokens")
        raise InputError(f"{path} has {kind} for layer {layer}, but not {other}")
    for layer, tokens_pd in tokens.items():
        if tokens_pd.ndim != 2 or tokens_pd.shape != tokens[layers[0]].shape:
            raise InputError(f"{path}: tensor {_OWN.format(layer)!r} has shape {tokens_pd.shape}, unlike other layers'")
    return np.stack([tokens[layer] for layer in layers])


def _adapter(method: str, options: dict[str, Any], num_tokens: int, **arrays: np.ndarray) -> Adapter:
    return Adapter(
        trainable={name: jnp.asarray(value.astype(np.float32)) for name, value in arrays.items()},
        method=method,
        options=Options.of(**{**METHODS[method].DEFAULTS, **options, "num_tokens": num_tokens}),
    )
