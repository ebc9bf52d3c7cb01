"""Folders in Meta's format, of one or two files: damaged settings, damaged files, and swapped files."""

import json
import math
import random
from pathlib import Path

import ml_dtypes
import numpy as np

from scripts.damage.kinds.kind import Files, Kind, digest
from scripts.damage.kinds.mutations import of_json
from scripts.damage.kinds.pth import archived, may_differ, members_of, mutated, whole

PARAMS = "params.json"
_NUMBERS = {
    "dim": int, "n_layers": int, "n_heads": int, "n_kv_heads": int, "head_dim": int, "hidden_dim": int,
    "vocab_size": int, "max_seq_len": int, "multiple_of": int, "max_batch_size": int, "sliding_window": int,
    "norm_eps": float, "rope_theta": float, "rope_scaling_factor": float, "rope_high_freq_factor": float,
    "ffn_dim_multiplier": float,
}  # fmt: skip
_LLAMA2 = {
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 8,
    "norm_eps": 1e-5,
    "vocab_size": -1,
}
_LLAMA3 = {
    **_LLAMA2, "vocab_size": 12, "rope_theta": 500000.0, "use_scaled_rope": True, "ffn_dim_multiplier": 1.3,
    "rope_scaling_factor": 16.0,
}  # fmt: skip


def _tensors(files: int, seed: int, dtype: np.dtype) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    d, k, f, v = 16, 8, 24, 12
    shapes = {"tok_embeddings.weight": (v, d), "norm.weight": (d,), "output.weight": (v, d)}
    for layer in range(2):
        matrices = {"attention.wq": (d, d), "attention.wk": (k, d), "attention.wv": (k, d), "attention.wo": (d, d)}
        matrices |= {"feed_forward.w1": (f, d), "feed_forward.w2": (d, f), "feed_forward.w3": (f, d)}
        matrices |= {"attention_norm": (d,), "ffn_norm": (d,)}
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(files)]
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape).astype(dtype)
        axis = int(name.endswith(("wo.weight", "w2.weight")) or name.startswith("tok"))
        split = np.split(drawn, files, axis) if len(shape) == 2 else [drawn] * files
        for part, held in zip(parts, split, strict=True):
            part[name] = np.ascontiguousarray(held)
    return parts


def _folder(params: dict[str, object], parts: list[dict[str, np.ndarray]]) -> Files:
    names = [f"consolidated.{number:02}" for number in range(len(parts))]
    files = {f"{name}.pth": archived(members_of(part, name)) for name, part in zip(names, parts, strict=True)}
    return {PARAMS: json.dumps(params).encode(), **files}


def _samples() -> list[Files]:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return [
        _folder(_LLAMA2, _tensors(1, 0, np.dtype(np.float32))),
        _folder(_LLAMA2, _tensors(2, 1, bfloat16)),
        _folder(_LLAMA3, _tensors(2, 2, np.dtype(np.float16))),
    ]


def _mutate(rng: random.Random, files: Files) -> Files:
    damaged = dict(files)
    names = [name for name in files if name != PARAMS]
    name = rng.choice(names)
    change = rng.randrange(12)
    if change < 5:
        damaged[PARAMS] = of_json(rng, files[PARAMS])
    elif change < 10:
        damaged[name] = mutated(rng, files[name])
    elif change == 10:
        other = rng.choice(
            (*names, "consolidated.01.pth", "consolidated.02.pth", "consolidated.0.pth", "x.pth", PARAMS)
        )
        damaged[name], damaged[other] = files.get(other, b""), files[name]
    else:
        other = rng.choice((*names, "consolidated.01.pth", "consolidated.02.pth", "consolidated.١.pth"))
        damaged[other] = rng.choice((files[name], b"", b"PK\5\6" + bytes(18)))
        if rng.random() < 0.5:
            del damaged[name]
    return damaged


def _read(folder: Path) -> str:
    import jax

    import aligner_jax as aj

    base = aj.load_base(folder)
    return digest(base.config, *(np.asarray(leaf) for leaf in jax.tree.leaves(base.params)))


def _may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True for settings of the right types and files that torch might have saved under these names."""
    for name in damaged.keys() - {PARAMS}:
        if damaged[name] == sample.get(name):
            continue
        members = whole(damaged[name])
        if members is None or name not in sample or not may_differ(sample[name], damaged[name]):
            return False
        if any(member.partition("/")[0] != name.removesuffix(".pth") for member, _ in members):
            return False
    return _plausible(damaged.get(PARAMS, b""))


def _plausible(params: bytes) -> bool:
    try:
        values = json.loads(params)
        for name, value in values.items():
            if value is None or value is False or (name, value) in (("use_scaled_rope", True), ("vocab_size", -1)):
                continue
            kind = _NUMBERS[name]
            if type(value) not in (int, kind) or not math.isfinite(value) or value <= 0:
                return False
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError):
        return False
    return True


KIND = Kind(name="meta", samples=_samples, mutate=_mutate, read=_read, may_differ=_may_differ)
