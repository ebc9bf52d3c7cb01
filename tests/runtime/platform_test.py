import os
import subprocess
import sys

import jax
import pytest

from aligner_jax.runtime import platform

AMX = frozenset({"amx_tile", "amx_bf16"})
READ_BY_JAX = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")

# Each case has a fresh process, since JAX reads its settings only when it starts.
REPORT = """
import os, sys, warnings
from aligner_jax.runtime import platform
features, accelerators = sys.argv[1:]
platform._cpu_features = lambda: frozenset(features.split())
platform.has_gpu = lambda: accelerators == "gpu"
platform.has_tpu = lambda: False
platform.prepare()
import jax
print(jax.config.jax_platforms, os.environ.get("XLA_FLAGS"), jax.config.jax_compilation_cache_dir)
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

    out, err = plain.communicate()
    platforms, xla_flags, folder = out.splitlines()[0].split()
    assert (platforms, xla_flags) == ("cpu", "None")
    assert folder.startswith(f"{cache}/aligner_jax/xla/")
    assert os.path.isdir(folder)
    assert (out.splitlines()[1], err) == ("float32 3.0 1", "")
    assert amx.communicate() == (f"cpu {onednn} None\nbfloat16 3.0 1\n", "")
    assert users.communicate() == (f"cpu --xla_force_host_platform_device_count=3 {cache}/mine\nbfloat16 3.0 3\n", "")
    assert gpu.communicate()[0].startswith("None None ")


def test_device_files_and_variables_show_an_accelerator(tmp_path, monkeypatch):
    for name in platform._TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for kind, has in (("_TPU_DEVICES", platform.has_tpu), ("_GPU_DEVICES", platform.has_gpu)):
        monkeypatch.setattr(platform, kind, (str(tmp_path / f"{kind}[0-9]*"),))
        assert not has()
        (tmp_path / f"{kind}0").touch()
        assert has()
    monkeypatch.setattr(platform, "_TPU_DEVICES", ())
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert platform.has_tpu()


@pytest.mark.parametrize(("features", "dtype"), [(AMX, "bfloat16"), (AMX - {"amx_bf16"}, "float32")])
def test_the_dtype_is_what_the_cpu_has_units_for(features, dtype, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has an accelerator")
    monkeypatch.setattr(platform, "_cpu_features", lambda: features)
    assert platform.compute_dtype("auto") == dtype
    assert [platform.compute_dtype(d) for d in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_each_kind_of_cpu_has_its_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for features in (AMX, frozenset({"avx2"})):
        monkeypatch.setattr(platform, "_cpu_features", lambda features=features: features)
        folders |= {platform._cache_folder(), platform._cache_folder()}
    assert len(folders) == 2
