"""Makes the table of one GPU: training, decoding and quantized bases beside PEFT and transformers.

    python -m scripts.bench.gpu [--part=attention,training,packed,kernels,llama3,decoding,quantized] [--json=FILE]
    python -m scripts.bench.gpu --smoke          # our arms at tiny shapes on a CPU

All weights are random, in the shapes of LLaMA-2-7B and Llama-3-8B. Needs jax 0.11.2 or later with CUDA and the
package's requirements; torch, transformers and PEFT in this environment, or in that of PEER_PYTHON. Without them, or
without bitsandbytes, the rows of the peer say so.

The first row checks every implementation of attention against the plain reference on this card; those that fail are not
timed. Then our programs are compiled side by side into a cache of programs, and all arms run one after another, each in
a process of its own, so that memory is free when the next one starts. Times are medians of turns. An arm that fails is
one line, and the others go on. The table is made for 8 minutes of an H100; --part splits it. A ratio is ours over the
peer's best arm, and stands beside its target.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner_jax.runtime import platform
from aligner_jax.studies.flag_values import names
from scripts.bench import report
from scripts.bench.gpu_arms import PARTS, TARGETS, Arm, arms
from scripts.bench.gpu_peer import run_peer
from scripts.bench.protocol import PEER_VARIABLE, Worker

NO_GPU = "error: JAX finds no GPU, so nothing is measured; --smoke runs tiny shapes on a CPU"
COMPILERS = 6
"""Programs compiled at the same time; each keeps buffers on the card while it tries its kernels."""


def main() -> None:
    args = arguments()
    if not args.smoke and not platform.has_gpu():
        sys.exit(NO_GPU)
    with tempfile.TemporaryDirectory(prefix="bench_gpu_") as cache:
        found = about(cache, args.smoke)
        if not args.smoke and found["platform"] != "gpu":
            sys.exit(NO_GPU)
        print(f"{found['device']}, jax {found['jax']}" + ("; a smoke test, not a measurement" if args.smoke else ""))
        results = run(args, cache)
    report.write_json(args.json, {"about": found, "smoke": args.smoke, "results": results})
    if not args.smoke:
        print(ratios(results), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=names(PARTS), default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU, without the peer")
    return parser.parse_args()


@contextlib.contextmanager
def worker(cache: str, smoke: bool) -> Iterator[Worker]:
    """Starts a worker of this package with a shared cache of programs."""
    variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Memory is allocated when it is needed: programs are compiled beside each other.
    variables |= {"JAX_PLATFORMS": "cpu"} if smoke else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    started = Worker(sys.executable, "-m", "scripts.bench.gpu_worker", **variables)
    try:
        yield started
    finally:
        started.close()


def about(cache: str, smoke: bool) -> dict[str, Any]:
    """Returns the device's name and platform, asked in a process of its own."""
    with worker(cache, smoke) as started:
        return started.ask("about")


def run(args: argparse.Namespace, cache: str) -> dict[str, dict[str, Any]]:
    """Runs all arms of the chosen parts; prints each as it ends."""
    results: dict[str, dict[str, Any]] = {}
    first, *_ = arms((), smoke=args.smoke)
    working: tuple[str, ...] = ()
    # Only correct implementations are timed.
    if {first.part, "kernels"} & set(args.part):
        results[first.name] = measured = measure(first, cache, args)
        for name, error in measured.get("errors", {}).items():
            reason = measured["failed"].get(name)
            print(f"attention {name}: {reason or f'correct, largest relative error {error:.1e}'}", flush=True)
        correct = [name for name in measured.get("errors", {}) if name not in measured["failed"]]
        working = () if args.smoke else tuple(name for name in correct if name != "auto")
    chosen = [arm for arm in arms(working, smoke=args.smoke)[1:] if arm.part in args.part]
    if not args.smoke:
        compile_all([arm for arm in chosen if arm.side == "ours"], cache)
    for arm in chosen:
        if args.smoke and arm.side == "peer":
            continue
        results[arm.name] = found = measure(arm, cache, args)
        print(line(arm, found), flush=True)
        report.write_json(args.json, {"smoke": args.smoke, "results": results})
    return results


def compile_all(chosen: list[Arm], cache: str) -> None:
    """Compiles our programs side by side. An error shows again when the arm runs."""

    def compile_one(arm: Arm) -> None:
        with contextlib.suppress(SystemExit), worker(cache, smoke=False) as started:
            started.ask(arm.command, **arm.arguments, only_compile=True)

    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as threads:
        list(threads.map(compile_one, chosen))


def measure(arm: Arm, cache: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of an arm, or {"error": a line}."""
    try:
        if arm.side == "peer":
            if os.environ.get(PEER_VARIABLE) is None and importlib.util.find_spec("torch") is None:
                return {"error": "not at hand: torch is not installed"}
            return run_peer(arm.command, **arm.arguments)
        with worker(cache, args.smoke) as started:
            return started.ask(arm.command, **arm.arguments)
    except SystemExit as error:
        # The last line of a traceback says what went wrong.
        last = str(error).strip().splitlines()[-1][:200]
        return {"error": f"not at hand: {last}" if "ModuleNotFoundError" in last else last}


def line(arm: Arm, found: dict[str, Any]) -> str:
    """Formats the figures of an arm."""
    if "error" in found:
        return f"{arm.name:40} {found['error']}"
    parts = [f"{found['tokens_per_second']:>10,.0f} tokens/s", f"{found['peak_bytes'] / 2**30:7.1f} GiB"]
    if "fill" in found and found["fill"] < 1:
        parts.append(f"rows filled {found['fill']:.1%}")
    if "bandwidth_share" in found:
        parts.append(f"{found['bandwidth_share']:.0%} of the memory's bandwidth")
    if "compile_seconds" in found:
        parts.append(f"compiled or read in {found['compile_seconds']:.0f} s")
    return f"{arm.name:40} " + ", ".join(parts)


def ratios(results: dict[str, dict[str, Any]]) -> str:
    """Formats the ratios beside their targets."""
    rows = []
    for target in TARGETS:
        ratio = target.ratio(results)
        text = "not measured" if ratio is None else f"{ratio:,.2f}"
        sign = "at most" if target.lower else "at least"
        verdict = "" if ratio is None else "met" if target.met(ratio) else "missed"
        over = f" over {target.peers[0].split(',')[0]}" if target.peers else ""
        rows.append([f"{target.ours}{over}: {target.figure}", text, f"{sign} {target.wanted:,}", verdict])
    return report.table(["ratio", "measured", "target", ""], rows)


if __name__ == "__main__":
    main()
