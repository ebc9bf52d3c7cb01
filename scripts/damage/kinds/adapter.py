"""This project's own adapter files: all kinds of options, with and without a recorded base, new and old."""

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.canary import Canary, CanaryPrompt, Row
from scripts.damage.kinds import _safetensors, mutations
from scripts.damage.kinds.kind import Files, Kind, digest

_NAME = "adapter.safetensors"
# A sample with this file is read beside its base. The file is never changed.
_BESIDE = "beside_its_base"
_TEXTS = ("options", "base_config", "prompt_format", "canary")
_CANARY = Canary("float32", (CanaryPrompt(Row((1, 2), "a"), (3, 4), (" b", "c"), (-1.0, -2.5), (-3.0, -0.25)),))


class _Base(NamedTuple):
    config: LlamaConfig = LlamaConfig(40, 16, 24, 3, 4, 2, 4)
    fingerprint: str = "0123456789abcdef" * 4


_ADAPTERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("aligner", {"num_tokens": 1, "start_layer": 1}),
    ("aligner", {"num_tokens": 2, "tokens": "head", "gates": "global"}),
    ("llama_adapter", {"num_tokens": 2, "start_layer": 1, "gates": "layer", "tanh": True}),
    ("lora", {"rank": 2, "targets": ("q", "down"), "rslora": True}),
    ("bias", {"target": "v"}),
    ("prompt", {"num_tokens": 2}),
)


def _samples() -> list[Files]:
    rng, made = np.random.default_rng(0), []
    base = _Base()
    for method, given in _ADAPTERS:
        options = METHODS[method].options(**given)
        shapes = METHODS[method].shapes(options, base.config)
        arrays: dict[str, Any] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        adapter = Adapter(arrays, method=method, options=options)
        for recorded in (base, None):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / _NAME
                save_adapter(
                    adapter, path, recorded, prompt_format={"template": "chat", "system": None}, canary=_CANARY
                )
                content = path.read_bytes()
            header, data = _safetensors.split(content)
            del header["__metadata__"]["digest"]
            for file in (content, _safetensors.joined(header, data)):
                made += [{_NAME: file}, {_NAME: file, _BESIDE: b""}]
    return made


def _mutate(rng: random.Random, files: Files) -> Files:
    content = files[_NAME]
    header, data = _safetensors.split(content)
    if rng.randrange(3) == 0:
        metadata = header["__metadata__"]
        # Without its digest the file is read further.
        if rng.randrange(2):
            metadata.pop("digest", None)
        name = rng.choice([name for name in _TEXTS if name in metadata])
        metadata[name] = mutations.of_json(rng, metadata[name].encode()).decode(errors="replace")
        return {**files, _NAME: _safetensors.joined(header, data)}
    return {**files, _NAME: _safetensors.mutate(rng, content)}


def _read(folder: Path) -> str:

    path, base = folder / _NAME, _Base()
    artifact = read_artifact(path, base if (folder / _BESIDE).exists() else None)
    adapter = artifact.adapter
    arrays = {name: np.asarray(x) for name, x in adapter.trainable.items()}
    assert all(np.isfinite(x.astype(np.float32)).all() and x.dtype.kind in "fV" for x in arrays.values())
    options = adapter.options.as_dict()
    assert all(math.isfinite(x) for x in options.values() if isinstance(x, int | float))
    arranged = [(name, str(arrays[name].dtype), arrays[name].shape, arrays[name]) for name in sorted(arrays)]
    return digest(
        adapter.method, adapter.options, artifact.base, artifact.prompt_format, artifact.canary,
        *(part for one in arranged for part in one),
    )  # fmt: skip


def _may_differ(_: Files, damaged: Files) -> bool:
    # A file with its digest must read as it was saved; an old file has nothing to check.
    content = damaged[_NAME]
    if _safetensors.tensors_of(content) is None:
        return False
    try:
        metadata = _safetensors.split(content)[0]["__metadata__"]
    except (ValueError, KeyError, RecursionError):
        return False
    return not (isinstance(metadata, dict) and "digest" in json.dumps(list(metadata)))


KIND = Kind("adapter", _samples, _mutate, _read, _may_differ)
