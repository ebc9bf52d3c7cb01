"""Folders of adapters for a hub: the adapter, its description, and the run whose results the model card shows."""

import json
import random
from pathlib import Path

import yaml

from aligner_jax.exports.adapter_card import adapter_card
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.run_folder import read_run_folder
from aligner_jax.peft.artifact import read_artifact
from scripts.damage.kinds import _safetensors, adapter, mutations
from scripts.damage.kinds.kind import Files, Kind, digest

_ADAPTER, _CONFIG, _METRICS = "adapter.safetensors", "config.json", "metrics.jsonl"
_HOSTILE = (
    "a\n---\nlicense: mit", "`code` | cell", "](http://x)", "<script>", '"', "'", "\\", "${x}", "{{ x }}", "- a: b",
    "# x", "\u2028", "\u202e", "\ud800", "\0", "``````", "x" * 5000,
)  # fmt: skip
_KEYS = {"library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "model-index"}


def _samples() -> list[Files]:
    config = {
        "base": {"path": "base"}, "steps": 7, "objective": {"name": "sft"},
        "data": {"path": "/data/mine.jsonl", "format": "auto", "sequence_length": 64, "batch_size": 4},
        "optim": {"lr": 1e-3, "schedule": "cosine"},
    }  # fmt: skip
    metrics = [{"step": 1, "loss": 2.5}, {"step": 5, "heldout_loss": 1.25}, {"step": 7, "heldout_loss": 1.125}]
    others = {
        "aligner_config.json": b'{"library_name": "aligner_jax"}',
        "README.md": b"---\ntags: []\n---\n",
        _CONFIG: json.dumps(config).encode(),
        _METRICS: b"".join(json.dumps(line).encode() + b"\n" for line in metrics),
    }
    return [{**files, **others} for files in adapter.KIND.samples()]


def _mutate(rng: random.Random, files: Files) -> Files:
    change = rng.randrange(8)
    if change == 0:
        return {**files, **adapter.KIND.mutate(rng, {_ADAPTER: files[_ADAPTER]})}
    if change == 1:
        header, data = _safetensors.split(files[_ADAPTER])
        header["__metadata__"].pop("digest", None)
        text = rng.choice(_HOSTILE)
        header["__metadata__"]["prompt_format"] = json.dumps({"template": "chat", "system": text})
        return {**files, _ADAPTER: _safetensors.joined(header, data)}
    if change < 4:
        return {**files, _CONFIG: mutations.of_json(rng, files[_CONFIG])}
    if change == 4:
        config = json.loads(files[_CONFIG])
        section, name = rng.choice((("data", "path"), ("data", "format"), ("objective", "name"), ("optim", "schedule")))
        config[section][name] = rng.choice(_HOSTILE)
        return {**files, _CONFIG: json.dumps(config).encode()}
    if change == 5:
        name = rng.choice(("aligner_config.json", "README.md", _METRICS))
        return {**files, name: mutations.of_bytes(rng, files[name])}
    lines = files[_METRICS].splitlines()
    at = rng.randrange(len(lines))
    lines[at] = mutations.of_json(rng, lines[at])
    return {**files, _METRICS: b"\n".join(lines) + b"\n"}


def _read(folder: Path) -> str:
    artifact = read_artifact(folder, None)
    base = CardBase("org/base", artifact.base and artifact.base.config, artifact.base and artifact.base.fingerprint)
    run = read_run_folder(folder)
    card = adapter_card(artifact, "org/name", base, run)
    matter = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert set(matter) <= _KEYS, "a text of the folder became a field of the card"
    assert matter["base_model"] == "org/base"
    return digest(card, *sorted(artifact.adapter.trainable))


def _may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True unless only the adapter changed, which has a digest: the other files have nothing to check."""
    changed = {name for name in sample if sample[name] != damaged[name]}
    return changed != {_ADAPTER} or adapter.KIND.may_differ(sample, damaged)


KIND = Kind("published", _samples, _mutate, _read, _may_differ)
