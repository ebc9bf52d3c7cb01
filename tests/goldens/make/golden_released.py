"""Writes small files like the authors' released Aligners and lit-llama's LLaMA-Adapters; part of make_goldens.py."""

from pathlib import Path

import numpy as np
import torch

TOKENS, D, HEADS, LAYERS = 2, 8, 4, (2, 3, 4)


def write_released(path: Path) -> None:
    """Writes bfloat16 tokens, shared and per layer, gates [1, 1, heads, 1], and the same as float32 in an .npz."""
    rng = np.random.default_rng(9)
    tokens = torch.tensor(rng.standard_normal((TOKENS, D))).to(torch.bfloat16)
    gates = {layer: torch.tensor(rng.standard_normal((1, 1, HEADS, 1)) / 20).to(torch.bfloat16) for layer in LAYERS}
    state = {"global_value_embedding.weight": tokens}
    for layer, gate in gates.items():
        state[f"transformer.h.{layer}.attn.gating_factor"] = gate
        state[f"transformer.h.{layer}.attn.adapter_wte.weight"] = tokens.clone()
    torch.save(state, path)
    stacked = np.stack([gate.float().numpy().reshape(-1) for gate in gates.values()])
    np.savez(path.with_suffix(".npz"), tokens=tokens.float().numpy(), gates=stacked)


def write_lit_llama(path: Path, leaves: dict[str, np.ndarray], start_layer: int) -> None:
    """Writes adapted layers' float32 tokens and gates [1, heads, 1, 1], from `tokens` [l, p, d], `gates` [l, n]."""
    state = {}
    for index, (tokens, gates) in enumerate(zip(leaves["tokens"], leaves["gates"], strict=True)):
        attention = f"transformer.h.{start_layer + index}.attn."
        state[attention + "gating_factor"] = torch.tensor(gates, dtype=torch.float32).reshape(1, -1, 1, 1)
        state[attention + "adapter_wte.weight"] = torch.tensor(tokens, dtype=torch.float32)
    torch.save(state, path)
