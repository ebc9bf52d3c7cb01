import os
import subprocess
import sys
import types

import jax
import pytest

from aligner_jax.runtime import platform

AMX = frozenset({"amx_tile", "amx_bf16"})
READ_BY_JAX = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", *platform._GPU_MEMORY_OF_USER)

# Each case has a fresh process, since JAX reads its settings only when it starts.
REPORT = """
import glob, os, sys, warnings
features, accelerators = sys.argv[1:]
glob.glob = lambda pattern: [pattern] if accelerators == "gpu" and "nvidia" in pattern else []
from aligner_jax.runtime import platform
platform._cpu_features = lambda: frozenset(features.split())
platform.prepare()
import jax
print(jax.config.jax_platforms, os.environ.get("XLA_FLAGS"), jax.config.jax_compilation_cache_dir)
print(*(os.environ.get(name) for name in platform._GPU_MEMORY_OF_USER))
warnings.warn("Error writing persistent compilation cache entry for 'jit_f': No space left on device")
if accelerators == "none":
    print(platform.compute_dtype("auto"), jax.numpy.ones(3).sum(), jax.device_count())
"""


def prepared(features="", accelerators="none", **environment):
    clean = {name: value for name, value in os.environ.items() if name not in READ_BY_JAX}
    clean |= {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", REPORT, features, accelerators]
    return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_jax_is_told_what_fits_the_machine_and_never_over_the_user(tmp_path):
    """All cases are in one test, so that the processes run side by side."""
    cache, onednn = str(tmp_path), platform._AMX_FLAGS
    plain = prepared(XDG_CACHE_HOME=cache)
    amx = prepared("amx_tile amx_bf16", XDG_CACHE_HOME="/proc/nowhere")
    users = prepared(
        "amx_tile amx_bf16",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
        JAX_COMPILATION_CACHE_DIR=f"{cache}/mine",
    )
    gpu = prepared(accelerators="gpu", XDG_CACHE_HOME=cache)
    users_gpu = prepared(accelerators="gpu", XDG_CACHE_HOME=cache, XLA_PYTHON_CLIENT_MEM_FRACTION=".5")

    out, err = plain.communicate()
    platforms, xla_flags, folder = out.splitlines()[0].split()
    assert (platforms, xla_flags) == ("cpu", "None")
    assert folder.startswith(f"{cache}/aligner_jax/xla/")
    assert os.path.isdir(folder)
    none = "None None None None"
    assert (out.splitlines()[1:], err) == ([none, "float32 3.0 1"], "")
    assert amx.communicate() == (f"cpu {onednn} None\n{none}\nbfloat16 3.0 1\n", "")
    flags = f"cpu --xla_force_host_platform_device_count=3 {cache}/mine"
    assert users.communicate() == (f"{flags}\n{none}\nbfloat16 3.0 3\n", "")
    shown = gpu.communicate()[0].splitlines()
    assert shown[0].startswith("None None ")
    assert shown[1] == "false 0.95 None None"
    assert users_gpu.communicate()[0].splitlines()[1] == "None None .5 None"


@pytest.mark.parametrize(("features", "dtype"), [(AMX, "bfloat16"), (AMX - {"amx_bf16"}, "float32")])
def test_the_dtype_is_what_the_cpu_has_units_for(features, dtype, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has an accelerator")
    monkeypatch.setattr(platform, "_cpu_features", lambda: features)
    assert platform.compute_dtype("auto") == dtype
    assert [platform.compute_dtype(d) for d in platform.DTYPES[1:]] == ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ("9.0", "bfloat16"), ("8.9", "bfloat16"), ("8.0", "bfloat16"), ("12.0", "bfloat16"),  # H100, L4, A100, B-series
        ("7.5", "float16"), ("7.0", "float16"),  # T4, V100
        ("6.1", "float32"), ("gfx942", "float32"), (None, "float32"),  # P4, AMD's MI300
    ],
)  # fmt: skip
def test_the_dtype_is_what_the_gpu_has_units_for(capability: str | None, dtype: str, monkeypatch):
    device = types.SimpleNamespace() if capability is None else types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert platform.compute_dtype("auto") == dtype
    assert platform.compute_dtype("float32") == "float32"


def test_the_dtype_of_a_tpu_is_bfloat16(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert platform.compute_dtype("auto") == "bfloat16"


def test_each_kind_of_cpu_has_its_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for features in (AMX, frozenset({"avx2"})):
        monkeypatch.setattr(platform, "_cpu_features", lambda features=features: features)
        folders |= {platform._cache_folder(), platform._cache_folder()}
    assert len(folders) == 2
