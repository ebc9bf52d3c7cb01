"""Indexes of Hugging Face folders of several files: model.safetensors.index.json alone is damaged."""

import json
import random

from scripts.damage.kinds import hf, mutations
from scripts.damage.kinds.kind import Files, Kind

_INDEX = "model.safetensors.index.json"
_FILES = (
    "../model.safetensors",
    "/etc/hostname",
    ".",
    "",
    "config.json",
    _INDEX,
    "a\0b",
    "model.safetensors",
    "x" * 300,
)


def _samples() -> list[Files]:
    return [files for files in hf.KIND.samples() if _INDEX in files]


def _mutate(rng: random.Random, files: Files) -> Files:
    index = json.loads(files[_INDEX])
    weight_map = index["weight_map"]
    tensor = rng.choice(list(weight_map))
    change = rng.randrange(6)
    if change < 3:
        return {**files, _INDEX: (mutations.of_bytes if change == 0 else mutations.of_json)(rng, files[_INDEX])}
    if change == 3:
        weight_map[tensor] = rng.choice((*_FILES, *files))
    elif change == 4:
        name = rng.choice(
            (f"{tensor}x", tensor.replace("layers.0", "layers.10000000000"), "lm_head.weight", "", "x" * 3000)
        )
        weight_map[name] = weight_map.pop(tensor)
    else:
        weight_map.update({f"x{i}": weight_map[tensor] for i in range(rng.choice((1, 1000, 50_000)))})
    return {**files, _INDEX: json.dumps(index).encode()}


def _may_differ(sample: Files, damaged: Files) -> bool:
    # The files hold every weight once, so no index gives another model.
    return False


KIND = Kind("hf_index", _samples, _mutate, hf.KIND.read, _may_differ)
