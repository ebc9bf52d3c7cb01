"""The runs whose workdirs are samples of a version: their configs, base and data."""

from pathlib import Path

import tiny_runs

from scripts.lib.tiny_llama import write_tiny_llama


def settings_of(kind: str) -> dict:
    """Returns the config of a sample; its paths are relative to a folder that `write_inputs` filled."""
    settings = {
        **tiny_runs.settings_of("tiny", f"{kind}.jsonl"), "adapter": {"num_tokens": 1, "start_layer": 2}, "steps": 6,
        "checkpoint": {"every": 3, "keep": 9},
    }  # fmt: skip
    if kind == "dpo":
        settings = tiny_runs.on_pairs(settings, "dpo.jsonl")
        settings["data"]["heldout_rows"] = 2
    return settings


def write_inputs(folder: Path) -> None:
    """Writes the base and the data of the samples."""
    write_tiny_llama(folder / "tiny")
    tiny_runs.write_rows(folder / "sft.jsonl", tiny_runs.sft_rows())
    tiny_runs.write_rows(folder / "dpo.jsonl", tiny_runs.pair_rows())
