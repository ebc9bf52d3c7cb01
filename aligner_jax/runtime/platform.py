"""Detects the machine's hardware, and configures JAX for it before JAX starts."""

import hashlib
import importlib.metadata
import os
import platform
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from aligner_jax.runtime.attached import has_gpu, has_tpu
from aligner_jax.runtime.config import Dtype

# An unknown flag aborts the process, so these are set only for the jaxlib versions that were tested with them.
_AMX_FLAGS = "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
_AMX_JAXLIB = "0.12."

# JAX's default takes three quarters of a GPU's memory at the start and never uses the rest. A second process on the
# card (a notebook's kernel beside its commands, or PyTorch) would then find no room, and a base that fills the card
# would not fit. So memory is taken as it is needed, up to nearly all. Nothing is given back before the process ends.
_GPU_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": "0.95"}
_GPU_MEMORY_OF_USER = (*_GPU_MEMORY, "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR")

DTYPES: tuple[str, ...] = get_args(Dtype)
"""Values of flags and fields for the dtype of a base."""


def prepare() -> None:
    """Configures JAX for this machine. Must be called before the first array is made. Keeps the user's settings.

    - Without a TPU or GPU device, sets the platform to "cpu", so that JAX does not try libtpu, whose warnings would
      fill the screen. Child processes inherit the setting.
    - On CPUs with AMX, enables oneDNN for bfloat16 products, which is 1.5 to 2 times as fast.
    - With a GPU device, lets JAX take the GPU's memory as it needs it, up to 95 %, unless any of JAX's variables for
      that is set (XLA_PYTHON_CLIENT_PREALLOCATE, XLA_CLIENT_MEM_FRACTION, XLA_PYTHON_CLIENT_ALLOCATOR).
    - Caches compiled programs in JAX_COMPILATION_CACHE_DIR, or else under ~/.cache/aligner_jax (XDG_CACHE_HOME is
      honoured), so that a second run starts at once. Without write access, nothing is cached.
    """
    if not has_tpu() and not has_gpu() and not jax.config.jax_platforms:
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    if is_cpu_only() and has_amx() and importlib.metadata.version("jaxlib").startswith(_AMX_JAXLIB):
        os.environ.setdefault("XLA_FLAGS", _AMX_FLAGS)
    if has_gpu() and not any(map(os.environ.get, _GPU_MEMORY_OF_USER)):
        os.environ.update(_GPU_MEMORY)
    if jax.config.jax_compilation_cache_dir is None and (folder := _cache_folder()):
        jax.config.update("jax_compilation_cache_dir", folder)
    # A full disk, a truncated entry, or a program that cannot be stored (oneDNN's) only costs a compilation.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def has_amx() -> bool:
    """Returns True if the CPU multiplies bfloat16 matrices in hardware (AMX tiles)."""
    return {"amx_tile", "amx_bf16"} <= _cpu_features()


def is_cpu_only() -> bool:
    """Returns True if JAX is configured to use only the CPU."""
    return jax.config.jax_platforms == "cpu"


def compute_dtype(dtype: Dtype) -> Literal["float32", "bfloat16", "float16"]:
    """Returns the dtype of the model's weights and computation. "auto" starts JAX's backend.

    "auto" is what the device multiplies fastest, of the dtypes that hold a model:

    - bfloat16 on TPUs, CPUs with AMX, and GPUs of compute capability 8.0 or more (A100, L4, H100),
    - float16 on GPUs of compute capability 7.0 and 7.5 (V100, T4), which have units for it and none for bfloat16,
    - float32 otherwise. AMD's GPUs state no such capability.
    """
    if dtype != "auto":
        return dtype
    backend = jax.default_backend()
    if backend in ("tpu", "cpu"):
        return "bfloat16" if backend == "tpu" or has_amx() else "float32"
    major = _compute_capability(jax.local_devices()[0])[0]
    if major >= 8:
        return "bfloat16"
    return "float16" if major == 7 else "float32"


def _compute_capability(device: Any) -> tuple[int, int]:
    """Returns the compute capability of an NVIDIA GPU, and (0, 0) of another device."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _cpu_features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split()[2:]) for line in lines if line.startswith(("flags", "Features"))), frozenset())


def _cache_folder() -> str | None:
    """Returns the cache folder for this kind of CPU, since programs compiled for one kind can fail on another.

    JAX's keys tell kinds of GPUs and TPUs apart, but not kinds of CPUs. None if it cannot be written to.
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
