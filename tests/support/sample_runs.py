"""The runs whose workdirs are samples of a version: their configs, base and data."""

import json
from pathlib import Path

from scripts.lib.tiny_llama import write_tiny_llama


def settings_of(kind: str) -> dict:
    """Returns the config of a sample; its paths are relative to a folder that `write_inputs` filled."""
    settings = {
        "base": {"path": "tiny", "dtype": "float32"},
        "adapter": {"num_tokens": 1, "start_layer": 2},
        "data": {"path": f"{kind}.jsonl", "template": "chat", "sequence_length": 128, "batch_size": 2},
        "optim": {"lr": 0.01},
        "steps": 6,
        "log_every": 1,
        "checkpoint": {"every": 3, "keep": 9},
    }
    if kind == "dpo":
        settings["data"] |= {"format": "pku_saferlhf", "heldout_rows": 2}
        settings["objective"] = {"name": "dpo"}
    return settings


def write_inputs(folder: Path) -> None:
    """Writes the base and the data of the samples."""
    write_tiny_llama(folder / "tiny")
    answers = [f"It is {'very ' * (i % 4)}{i}." for i in range(12)]
    sft = [{"instruction": f"Name number {i}.", "output": answer} for i, answer in enumerate(answers)]
    dpo = [
        {"prompt": f"Name number {i}.", "response": [answer, f"No{' never' * (i % 3)}."]}
        for i, answer in enumerate(answers)
    ]
    for name, rows in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
