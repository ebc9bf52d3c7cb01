"""Accelerators that are attached to this machine, told without importing JAX."""

import glob
import importlib.util
import os
import sys

_TPU_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_GPU_DEVICES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def has_tpu() -> bool:
    """Returns True if a TPU is attached, judged by device files and by environment variables that TPU hosts set."""
    return any(map(glob.glob, _TPU_DEVICES)) or any(map(os.environ.get, _TPU_VARIABLES))


def has_gpu() -> bool:
    """Returns True if a GPU with a JAX backend is attached, judged by the device files of its driver.

    AMD's GPUs (/dev/kfd) count too, so that an installed ROCm plugin of JAX is used. Nothing here was tried with one.
    """
    return any(map(glob.glob, _GPU_DEVICES))


def avoid_libtpu() -> None:
    """Chooses JAX's CPU backend where no accelerator is attached but libtpu is installed, unless the user chose one.

    Otherwise JAX would try libtpu at its first array, which prints warnings about a TPU that nobody has. Child
    processes inherit the choice.
    """
    if os.environ.get("JAX_PLATFORMS") or has_tpu() or has_gpu() or importlib.util.find_spec("libtpu") is None:
        return
    if (jax := sys.modules.get("jax")) is None:
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
