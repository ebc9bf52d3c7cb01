"""TPU topologies by name, as libtpu's compiler describes them. No TPU is needed."""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from aligner_jax.errors import InputError
from aligner_jax.files.extras import pip_line
from aligner_jax.planning.topology_names import EXAMPLES, accelerator_types, topology_name
from aligner_jax.runtime import chips


def topology_devices(name: str, count: int | None = None) -> list[Any]:
    """Returns the compile-only devices of a topology, or the first `count` of them.

    Args:
      name: a name that `topology_name` takes, such as "v5e:2x4" or "v5litepod-8".
      count: number of devices; None takes all.

    Raises:
      InputError: there is no such topology, it has fewer devices, or libtpu is not installed.
    """
    if _names_a_gpu(name):
        raise InputError(
            f"{name!r} is a GPU, and plans are made with the TPU compiler alone, for topologies such as {EXAMPLES}; on "
            "the GPU itself, the first lines that aligner_jax.train logs have tokens_per_second and mfu"
        )
    known = topology_name(name)
    if known is None:
        raise InputError(f"{name!r} is not a TPU topology; they are called {accelerator_types(name) or EXAMPLES}")
    _check_libtpu()
    # The two cores of a chip are one device, as they are where the chip itself is attached.
    options = {"chip_config_name": "megacore"} if known.startswith("v4:") else {}
    from jax.experimental import topologies

    try:
        with _quietly():
            devices = list(topologies.get_topology_desc(platform="tpu", topology_name=known, **options).devices)
    except Exception as error:  # The plugin documents no error type.
        reason = str(error).strip().splitlines()
        raise InputError(
            f"the TPU compiler knows no topology {name!r} ({reason[0] if reason else type(error).__name__}); "
            f"they are called {EXAMPLES}"
        ) from None
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"{name} has {len(devices)} devices, of which {count} cannot be taken")
    return devices[:count]


def _names_a_gpu(name: str) -> bool:
    words = {"GPU", "CUDA", "NVIDIA", *(chip.name.split()[0] for chip in chips.GPUS.values())}
    return not words.isdisjoint(re.split(r"[^A-Z0-9]+", name.upper()))


@contextlib.contextmanager
def without_a_cache_of_programs() -> Iterator[None]:
    """Disables JAX's compilation cache: it cannot read back a program for devices that are not attached."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Loads libtpu as on a single host; otherwise it queries a metadata server and prints that there is none."""
    alone = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        # Other compilers may run beside this one.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    missing = {name: value for name, value in alone.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        # libtpu installs a handler that prints a stack trace if there is none.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for name in missing:
            del os.environ[name]


def _check_libtpu() -> None:
    try:
        import libtpu  # noqa: F401  (the plugin finds it by itself)
    except ImportError:
        raise InputError(
            "the TPU compiler is in the package libtpu, which exists for Linux on x86-64 and is not installed: "
            f"{pip_line('tpu')}"
        ) from None
