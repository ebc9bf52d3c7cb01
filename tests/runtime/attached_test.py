"""Accelerators that are attached, and the backend that JAX is told to take without one."""

import os
import subprocess
import sys
from pathlib import Path

import places
import pytest

from aligner_jax.runtime import attached


def test_device_files_and_variables_show_an_accelerator(tmp_path, monkeypatch):
    for name in attached._TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for kind, has in (("_TPU_DEVICES", attached.has_tpu), ("_GPU_DEVICES", attached.has_gpu)):
        monkeypatch.setattr(attached, kind, (str(tmp_path / f"{kind}[0-9]*"),))
        assert not has()
        (tmp_path / f"{kind}0").touch()
        assert has()
    monkeypatch.setattr(attached, "_TPU_DEVICES", ())
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert attached.has_tpu()


JAX = """
import os


class Config:
    jax_platforms = os.environ.get("JAX_PLATFORMS")

    def update(self, name, value):
        setattr(self, name, value)


config = Config()
"""
DEVICES = """
import glob, sys
glob.glob = lambda pattern: [pattern] if sys.argv[2] in pattern else []
for name in sys.argv[1].split():
    __import__(name)
import jax
print(jax.config.jax_platforms)
"""


@pytest.mark.parametrize(
    ("imports", "device", "environment", "platforms"),
    [
        ("aligner_jax", "none", {}, "cpu"),
        ("jax aligner_jax", "none", {}, "cpu"),
        ("aligner_jax", "nvidiactl", {}, "None"),
        ("aligner_jax", "accel", {}, "None"),
        ("aligner_jax", "none", {"TPU_NAME": "mine"}, "None"),
        ("aligner_jax", "none", {"JAX_PLATFORMS": "cuda"}, "cuda"),
    ],
)
def test_the_package_keeps_jax_from_libtpu_where_no_accelerator_is(
    imports: str, device: str, environment: dict[str, str], platforms: str, tmp_path: Path
):
    # The import of JAX itself takes 1.5 s. One row has it.
    if not imports.startswith("jax"):
        (tmp_path / "jax.py").write_text(JAX)
    clean = {
        name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", *attached._TPU_VARIABLES)
    }
    clean |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), places.PYTHONPATH, *sys.path]), **environment}
    command = [sys.executable, "-c", DEVICES, imports, device]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{platforms}\n", "")
