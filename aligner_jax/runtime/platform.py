"""Detects the machine's hardware, and configures JAX for it before JAX starts."""

import glob
import hashlib
import importlib.metadata
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Literal

import jax

_TPU_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_GPU_DEVICES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

# An unknown flag aborts the process, so these are set only for the jaxlib versions that were tested with them.
_AMX_FLAGS = "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
_AMX_JAXLIB = "0.12."


def prepare() -> None:
    """Configures JAX for this machine. Must be called before the first array is made. Keeps the user's settings.

    - Without a TPU or GPU device, sets the platform to "cpu", so that JAX does not try libtpu, whose warnings would
      fill the screen. Child processes inherit the setting.
    - On CPUs with AMX, enables oneDNN for bfloat16 products, which is 1.5 to 2 times as fast.
    - Caches compiled programs in JAX_COMPILATION_CACHE_DIR, or else under ~/.cache/aligner_jax (XDG_CACHE_HOME is
      honoured), so that a second run starts at once. Without write access, nothing is cached.
    """
    if not has_tpu() and not has_gpu() and not jax.config.jax_platforms:
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    if is_cpu_only() and has_amx() and importlib.metadata.version("jaxlib").startswith(_AMX_JAXLIB):
        os.environ.setdefault("XLA_FLAGS", _AMX_FLAGS)
    if jax.config.jax_compilation_cache_dir is None and (folder := _cache_folder()):
        jax.config.update("jax_compilation_cache_dir", folder)
    # A full disk, a truncated entry, or a program that cannot be stored (oneDNN's) only costs a compilation.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def has_tpu() -> bool:
    """Returns True if a TPU is attached, judged by device files and by environment variables that TPU hosts set."""
    return any(map(glob.glob, _TPU_DEVICES)) or any(map(os.environ.get, _TPU_VARIABLES))


def has_gpu() -> bool:
    """Returns True if a GPU with a JAX backend is attached, judged by the device files of its driver."""
    return any(map(glob.glob, _GPU_DEVICES))


def has_amx() -> bool:
    """Returns True if the CPU multiplies bfloat16 matrices in hardware (AMX tiles)."""
    return {"amx_tile", "amx_bf16"} <= _cpu_features()


def is_cpu_only() -> bool:
    """Returns True if JAX is configured to use only the CPU."""
    return jax.config.jax_platforms == "cpu"


def compute_dtype(dtype: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """Returns the dtype of the model's weights and computation. "auto" starts JAX's backend.

    "auto" is bfloat16 on devices with hardware for it (TPUs, GPUs and CPUs with AMX), else float32.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if jax.default_backend() != "cpu" or has_amx() else "float32"


def _cpu_features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split()[2:]) for line in lines if line.startswith(("flags", "Features"))), frozenset())


def _cache_folder() -> str | None:
    """Returns the cache folder for this kind of CPU, since programs compiled for one kind can fail on another.

    None if it cannot be written to.
    """
    kind = hashlib.sha256(" ".join([platform.machine(), *sorted(_cpu_features())]).encode()).hexdigest()[:8]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "aligner_jax" / "xla" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return str(folder)
