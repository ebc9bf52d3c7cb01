"""Reads adapters of a bank in random order and prints times and memory as JSON; part of scripts.bench.bank.

python -m scripts.bench.bank_touch BANK ADAPTERS COUNT cold|read|map
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aligner_jax.peft.bank import Bank

NUMBERS = 828


def main() -> None:
    folder, adapters, count, way = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    order = np.random.default_rng(0).permutation(adapters)[:count].astype(np.int32)
    # Written, so that their pages are there before memory is measured.
    seconds = np.ones((2, count), np.float32)
    with Bank.open(folder) as bank:
        numbers = folder / "numbers.1"
        if way == "cold":
            with numbers.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        read = _map(numbers) if way == "map" else lambda index, stored: stored.read()
        _touch(bank, read, order[:1], seconds)
        gc.collect()
        before = memory()
        _touch(bank, read, order, seconds)
        gc.collect()
        after = memory()
    found = {"get": percentiles(seconds[0]), "read": percentiles(seconds[1]), "memory": after - before}
    print(json.dumps({"count": count, "way": way, "numbers": 4 * NUMBERS * count, **found}))


def _touch(bank: Bank, read: Callable, order: np.ndarray, seconds: np.ndarray) -> None:
    for position, index in enumerate(order.tolist()):
        name = name_of(index)
        start = time.perf_counter()
        stored = bank.get(name)
        looked_up = time.perf_counter()
        read(index, stored)
        seconds[:, position] = looked_up - start, time.perf_counter() - looked_up


def _map(path: Path) -> Callable:
    """Returns a reader of the memory-mapped file, which looks at every number as `read` does."""
    mapped = np.memmap(path, "<f4", "r")
    return lambda index, stored: {"all": mapped[index * NUMBERS : (index + 1) * NUMBERS]}["all"].sum()


def name_of(index: int) -> str:
    """Returns the name of an adapter."""
    return f"user-{index:07d}"


def memory() -> int:
    """Returns the resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Returns the least value, the median and the 99th percentile."""
    least, p50, p99 = np.percentile(np.asarray(seconds), [0, 50, 99]).tolist()
    return {"least": least, "p50": p50, "p99": p99}


if __name__ == "__main__":
    main()
