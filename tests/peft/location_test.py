"""An adapter is found in its file, in a folder of a run, of PEFT or of a hub, and by its name on a hub."""

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import places
import pytest

import aligner_jax as aj
from aligner_jax.peft.artifact import read_artifact, read_shapes
from aligner_jax.peft.location import locate_adapter

PEFT = places.GOLDENS / "peft" / "lora"


@pytest.fixture
def run(tmp_path: Path, trained_adapter) -> Path:
    """A folder of a finished run."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    aj.save_adapter(trained_adapter(3), tmp_path / "run" / "adapter.safetensors")
    return tmp_path / "run"


def test_the_folder_of_a_run(run, config, trained_adapter):
    artifact = read_artifact(run)
    assert artifact.path == run / "adapter.safetensors"
    for name, array in trained_adapter(3).trainable.items():
        np.testing.assert_array_equal(artifact.adapter.trainable[name], array)
    assert read_shapes(run, config).trainable.keys() == artifact.adapter.trainable.keys()


def test_peft_folders_come_first(run):
    shutil.copytree(PEFT, run, dirs_exist_ok=True)
    assert locate_adapter(run) == run
    assert locate_adapter(PEFT) == PEFT


def test_a_run_that_has_not_ended(run):
    (run / "adapter.safetensors").unlink()
    with pytest.raises(aj.InputError, match=r"run is the folder of a run that has not ended, so it has no adapter\."):
        aj.load_adapter(run)


def test_a_sweep(run):
    for number in range(2):
        shutil.copy(run / "adapter.safetensors", run / f"adapter_{number}.safetensors")
    (run / "adapter.safetensors").unlink()
    with pytest.raises(aj.InputError, match=r"holds the 2 adapters of a sweep: .*run/adapter_0\.safetensors"):
        aj.load_adapter(run)


@pytest.mark.parametrize("form", ["ours", "peft"])
def test_a_hub_name(tmp_path, monkeypatch, run, form):
    monkeypatch.chdir(tmp_path)
    asked = []
    module = types.ModuleType("huggingface_hub")
    folder = run if form == "ours" else PEFT
    module.snapshot_download = lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert locate_adapter("org/name-1.1B").parent in (run, PEFT.parent)
    assert asked[0][0] == "org/name-1.1B"
    assert {"adapter.safetensors", "*.json", "adapter_model.*"} <= set(asked[0][1])


@pytest.mark.parametrize("path", ["missing/adapter.safetensors", "missing/old.pth", "missing", "a/b/c"])
def test_file_names_are_never_asked_of_a_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert locate_adapter(path) == Path(path)
    with pytest.raises(aj.InputError, match=f"{path} does not exist"):
        aj.load_adapter(path)


def test_no_hub_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        aj.InputError,
        match="no adapter at org/name here, and to fetch one of that name from a hub needs the package huggingface_hub",
    ):
        aj.load_adapter("org/name")
