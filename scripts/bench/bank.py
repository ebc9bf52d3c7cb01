"""Measures a bank of very many adapters: registering, opening, lookups, reads, memory and admission.

    python -m scripts.bench.bank [--adapters=1000000] [--scratch=DIR] [--json=FILE]

The adapters are random one-token Aligners of SmolLM2-135M, 828 numbers each: a million takes 3.5 GB of disk, which is
freed at the end. Lookups and reads are in random order, in processes of their own, whose memory is that beyond an open
bank from which one adapter was read. Reads come from the page cache but for those called cold. "map" reads the same
adapters through a memory map, for comparison. Admission is measured with random weights of SmolLM2-135M in float32.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.peft import Adapter, complete_options
from aligner_jax.peft.bank import INDEX, Bank, Entry
from aligner_jax.peft.methods import METHODS
from scripts.bench import bank_admission, report
from scripts.bench.bank_touch import name_of, percentiles
from scripts.bench.protocol import ROOT

MOST_MEMORY = 1.1
"""Host memory over the numbers that were read, at most."""
MOST_ADMISSION = 1e-3
"""Seconds that an admission may take beside a prefill, whose own time varies by more."""


class NamedBase(NamedTuple):
    """A base without weights."""

    config: LlamaConfig
    fingerprint: str = "0" * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1_000_000, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=40, help="prefills of each sort (default %(default)s)")
    parser.add_argument("--scratch", help="folder for the bank (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    args = parser.parse_args()
    base = NamedBase(llama_config("smollm2_135m"))
    result: dict[str, Any] = {"adapters": args.adapters, "load": os.getloadavg()}
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="bench_bank_") as scratch:
        check_room(Path(scratch), 4 * 828 * args.adapters)
        folder = Path(scratch) / "bank"
        result["register"] = registered(folder, base, args.adapters)
        result["open"] = opened(folder, base)
        result["touch"] = [touched(folder, args.adapters, *each) for each in arms(args.adapters)]
        show(result)
        result["admission"] = bank_admission.measure(folder, base.config, args.rounds)
    print(bank_admission.as_table(result["admission"]))
    print(f"load: {result['load'][0]:.1f} at the start, {os.getloadavg()[0]:.1f} now, on {os.cpu_count()} cores")
    report.write_json(args.json, result)
    sys.exit(1 if misses(result) else 0)


def check_room(folder: Path, numbers: int) -> None:
    """Ends the program if the disk is too full."""
    needed, free = 1.3 * numbers + 2**30, shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"error: {folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: use --scratch")


def aligners(config: LlamaConfig, count: int, first: int = 0) -> Iterator[Entry]:
    """Yields random Aligners, all of them different."""
    options = complete_options("aligner", config, {"num_tokens": 1, "start_layer": 2})
    shapes, random = METHODS["aligner"].shapes(options, config), np.random.default_rng(first)
    for index in range(first, first + count):
        arrays: dict[str, Any] = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        yield Entry(name_of(index), Adapter(arrays, method="aligner", options=options))


def registered(folder: Path, base: NamedBase, count: int, singly: int = 200) -> dict[str, Any]:
    """Makes the bank; the last `singly` adapters are registered one at a time."""
    with Bank.open(folder, base, create=True) as bank:
        began = time.perf_counter()
        bank.register_many(aligners(base.config, count - singly))
        seconds = time.perf_counter() - began
        each = []
        for name, adapter, _ in aligners(base.config, singly, count - singly):
            start = time.perf_counter()
            bank.register(name, adapter)
            each.append(time.perf_counter() - start)
        assert len(bank) == count
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return {"seconds": seconds, "a_second": (count - singly) / seconds, "singly": percentiles(each), "bytes": sizes}


def opened(folder: Path, base: NamedBase) -> dict[str, float]:
    """Returns the seconds of opening the bank and getting one adapter."""
    seconds = []
    for index in range(50):
        start = time.perf_counter()
        with Bank.open(folder, base) as bank:
            bank.get(name_of(index))
            seconds.append(time.perf_counter() - start)
    return percentiles(seconds)


def arms(adapters: int) -> list[tuple[int, str]]:
    """Returns how many adapters to read and in which way."""
    counts = sorted({min(count, adapters) for count in (1000, 100_000, adapters)})
    return [(counts[0], "cold"), *((count, way) for count in counts for way in ("read", "map"))]


def touched(folder: Path, adapters: int, count: int, way: str) -> dict[str, Any]:
    """Reads adapters in a process of its own; see `bank_touch`."""
    command = [sys.executable, "-m", "scripts.bench.bank_touch", str(folder), str(adapters), str(count), way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {done.stderr}")
    return json.loads(done.stdout)


def show(result: dict[str, Any]) -> None:
    """Prints all but the admission."""
    made = result["register"]
    print(f"{result['adapters']:,} adapters registered in {made['seconds']:.1f} s: {made['a_second']:,.0f} a second")
    print(f"one at a time, each on disk: {milliseconds(made['singly'])} ms")
    print(f"opening and the first lookup: {milliseconds(result['open'])} ms")
    index = made["bytes"][INDEX]
    print(f"numbers {made['bytes']['numbers.1'] / 1e6:,.1f} MB, index {index / 1e6:,.1f} MB", end="\n\n")
    header = ["adapters read", "by", "lookup p50 µs", "p99", "read p50 µs", "p99", "numbers MB", "memory MB", "ratio"]
    rows = []
    for each in result["touch"]:
        times = [each[what][share] * 1e6 for what in ("get", "read") for share in ("p50", "p99")]
        sizes = [f"{each['numbers'] / 1e6:,.1f}", f"{each['memory'] / 1e6:,.1f}", f"{ratio(each):.2f}×"]
        rows.append([f"{each['count']:,}", each["way"], *(f"{x:,.1f}" for x in times), *sizes])
    print(report.table(header, rows), end="\n\n", flush=True)


def milliseconds(found: dict[str, float]) -> str:
    """Formats percentiles."""
    return f"p50 {found['p50'] * 1e3:.2f}, p99 {found['p99'] * 1e3:.2f}"


def ratio(touched: dict[str, Any]) -> float:
    """Returns the memory over the numbers that were read."""
    return touched["memory"] / touched["numbers"]


def misses(result: dict[str, Any]) -> list[str]:
    """Returns the targets that are missed, and prints them."""
    admission = result["admission"]
    checks = {
        "memory": all(ratio(each) <= MOST_MEMORY for each in result["touch"] if each["way"] == "read"),
        "admission of 1 ms": admission["alone"]["a new adapter"]["p50"] <= MOST_ADMISSION,
        "no compilation": admission["compilations"] == 0,
    }
    for what, is_met in checks.items():
        print(f"target {what}: {'met' if is_met else 'missed'}")
    return [what for what, is_met in checks.items() if not is_met]


if __name__ == "__main__":
    main()
