"""Device memory: sizes of sharded arrays, what the compiler says a program needs, and what a device has for a step."""

import math
import re
from pathlib import Path
from typing import Any

import jax

from aligner_jax.runtime.chips import CHIPS

_GPU_SHARE, _CPU_SHARE = 0.95, 0.75
"""Share of the memory that a step may take. On GPUs the rest is for fragmentation and for the workspaces of libraries,
which the compiler does not count; on CPUs it is for other processes."""

_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm|\(([\d.]+)([KMGT])\) exceeds available HBM")
"""Memory that a program needs, in the TPU compiler's messages: in total, or for temporaries alone (the second form)."""


def bits(dtype: Any) -> int:
    """Returns the bits per element of a dtype, which may be that of keys; int4 has 4."""
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return 8 * dtype.itemsize
    return 4 if "int4" in str(dtype) else 8 * jax.numpy.dtype(dtype).itemsize


def is_exhausted(error: Exception) -> bool:
    """Returns True if the error says that a device has not enough memory, for a program or for an array."""
    return "RESOURCE_EXHAUSTED" in str(error)


def nbytes(tree: Any) -> int:
    """Returns the bytes of a tree's shards on one device."""
    return sum(
        bits(leaf.dtype) * math.prod(leaf.sharding.shard_shape(leaf.shape)) // 8 for leaf in jax.tree.leaves(tree)
    )


def needed_bytes(message: str) -> int | None:
    """Returns the memory that a program needs, from a message of the TPU compiler that there is not enough.

    None for another message.
    """
    used = _USED.search(message)
    return used and _bytes(*((used[1], used[2]) if used[1] else (used[5], used[6])))


def available_bytes(message: str) -> int | None:
    """Returns the memory that a program may take, from the same message; None if it does not say."""
    used = _USED.search(message)
    return _bytes(used[3], used[4]) if used and used[3] else None


def limit_bytes(argument_bytes: int) -> int | None:
    """Returns the memory that a training step may take on one of this process's devices, arguments included.

    Memory that this process holds for anything but the step's arguments is left out. Memory that other processes hold
    on a GPU is not known.

    Args:
      argument_bytes: size of the step's arguments on the device, where they already are.

    Returns:
      The memory in bytes; None if neither the device, the chip's table nor the system says how much there is.
    """
    device = jax.local_devices()[0]
    stats: dict[str, int] = device.memory_stats() or {}
    share = _GPU_SHARE if device.platform == "gpu" else 1
    if "bytes_limit" in stats:
        return int(share * stats["bytes_limit"]) - max(stats.get("bytes_in_use", 0) - argument_bytes, 0)
    if device.platform != "cpu":
        chip = CHIPS.get(device.device_kind)
        return None if chip is None else int(share * chip.hbm_bytes)
    host_bytes = _host_bytes()
    return None if host_bytes is None else argument_bytes + int(_CPU_SHARE * host_bytes) // jax.local_device_count()


def _host_bytes() -> int | None:
    """Returns the host's memory that is available without swapping; None if the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))
