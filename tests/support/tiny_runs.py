"""Configs and data of training runs that take a second, on the model of `scripts.lib.tiny_llama`."""

import json
from pathlib import Path


def sft_rows(count: int = 12) -> list[dict]:
    """Returns examples with answers of several lengths."""
    return [{"instruction": f"Name number {i}.", "output": _answer(i)} for i in range(count)]


def pair_rows(count: int = 12) -> list[dict]:
    """Returns preferences in the form of PKU-SafeRLHF, the better response first."""
    return [{"prompt": f"Name number {i}.", "response": [_answer(i), f"No{' never' * (i % 3)}."]} for i in range(count)]


def _answer(number: int) -> str:
    return f"It is {'very ' * (number % 4)}{number}."


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes rows as JSON lines and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(base: str | Path, data: str | Path) -> dict:
    """Returns a config, as nested dicts, of a run without an evaluation at its end."""
    return {
        "base": {"path": str(base), "dtype": "float32"},
        "adapter": {"num_tokens": 2, "start_layer": 1},
        "data": {"path": str(data), "template": "chat", "sequence_length": 128, "batch_size": 2},
        "optim": {"lr": 0.01},
        "steps": 8,
        "log_every": 1,
        "checkpoint": {"every": 3},
    }


def on_pairs(settings: dict, data: str | Path, **objective: object) -> dict:
    """Returns the config with pairs as data and a preference objective of these fields."""
    objective = {"name": "dpo", **objective}
    return {
        **settings, "data": {**settings["data"], "path": str(data), "format": "pku_saferlhf"}, "objective": objective,
    }  # fmt: skip
