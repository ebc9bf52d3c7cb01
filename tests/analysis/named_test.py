"""Adapters that are named by the folders of their runs."""

from pathlib import Path

from aligner_jax.analysis.named import load_named
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter


def test_folders_of_runs_and_sweeps_stand_for_their_adapters(config, tmp_path: Path):
    adapter = init_adapter("aligner", config, start_layer=0)
    files = [
        tmp_path / "first" / "adapter.safetensors",
        *(tmp_path / f"sweep/adapter_{i}.safetensors" for i in (2, 10)),
    ]
    for file in files:
        save_adapter(adapter, file)
    named = load_named([str(tmp_path / "first"), str(tmp_path / "sweep")])
    assert [one.path for one in named] == files
    assert [one.name for one in named] == ["first", "adapter_2", "adapter_10"]
