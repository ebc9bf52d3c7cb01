"""Makes the table of one GPU: training, decoding and quantized bases beside PEFT and transformers.

    python -m scripts.bench.gpu [--part=attention,training,packed,kernels,llama3,decoding,quantized] [--json=FILE]
    python -m scripts.bench.gpu --smoke          # our arms at tiny shapes on a CPU

All weights are random, in the shapes of LLaMA-2-7B and Llama-3-8B. Needs the package with JAX for CUDA (`pip install
'.[cuda12]'`); torch, transformers, PEFT and bitsandbytes in this environment, or in that of PEER_PYTHON. An arm of the
peer whose packages are missing says so in its line. With jax 0.11.2, which is older than the package requires, the
smoke test passes and programs lower for CUDA too; nothing else was tried with it.

With the part `attention` or `kernels`, every implementation of attention is first compared with the plain reference on
this card. One that fails is not timed, and neither are the arms that leave the choice to the package if its choice
fails. Then the programs of our arms are compiled side by side into a cache of programs, and all arms run one after
another, each in a process of its own, so that memory is free when the next one starts. Times are medians of turns. An
arm that fails is one line, and the others go on. The table was never timed on a card; --part splits it. A target is for
the ratio of ours to the peer's best arm, or for a figure of ours alone.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from aligner_jax.runtime import platform
from aligner_jax.studies.flag_values import names
from scripts.bench import report
from scripts.bench.gpu_arms import PARTS, TARGETS, Arm, arms
from scripts.bench.gpu_peer import run_peer
from scripts.bench.protocol import HOW_TO_MAKE_A_PEER, PEER_VARIABLE, Worker

NO_GPU = "error: JAX finds no GPU, so nothing is measured; --smoke runs tiny shapes on a CPU"
type Ask = Callable[..., dict[str, Any]]
"""Returns the answer of a worker of this package to a command and its arguments."""
COMPILERS = 6
"""Programs compiled at the same time; each keeps buffers on the card while it tries its kernels."""


def main() -> None:
    args = arguments()
    if not args.smoke and not platform.has_gpu():
        sys.exit(NO_GPU)
    with tempfile.TemporaryDirectory(prefix="bench_gpu_") as cache, workers(cache, args.smoke) as ask:
        found = ask("about")
        if not args.smoke and found["platform"] != "gpu":
            sys.exit(NO_GPU)
        print(f"{found['device']}, jax {found['jax']}" + ("; a smoke test, not a measurement" if args.smoke else ""))
        results = run(args, ask)
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
def workers(cache: str, smoke: bool) -> Iterator[Ask]:
    """Returns a function that starts a process of this package for a command, and returns its answer.

    A smoke test has one process for all commands, which is faster.

    Args:
      cache: folder of compiled programs, shared by the processes.
      smoke: True for a CPU.
    """
    variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if smoke:
        # Compiling is nearly all of the time.
        variables |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    else:
        # Memory is allocated when it is needed: programs are compiled beside each other.
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    start = functools.partial(Worker, sys.executable, "-m", "scripts.bench.gpu_worker", **variables)

    def ask(command: str, **arguments: Any) -> dict[str, Any]:
        with start() as started:
            return started.ask(command, **arguments)

    if not smoke:
        yield ask
        return
    with start() as started:
        yield started.ask


def run(args: argparse.Namespace, ask: Ask) -> dict[str, dict[str, Any]]:
    """Runs all arms of the chosen parts; prints each as it ends."""
    results: dict[str, dict[str, Any]] = {}
    first, *_ = arms((), smoke=args.smoke)
    if {first.part, "kernels"} & set(args.part):
        results[first.name] = measure(first, ask)
        print(checked(results[first.name]), flush=True)
    chosen = to_time(results.get(first.name, {}), args.part, smoke=args.smoke)
    if not args.smoke:
        compile_all([arm for arm in chosen if arm.side == "ours"], ask)
    for arm in chosen:
        results[arm.name] = found = measure(arm, ask)
        print(line(arm, found), flush=True)
        report.write_json(args.json, {"smoke": args.smoke, "results": results})
    return results


def checked(found: dict[str, Any]) -> str:
    """Formats the check of attention, a line for each implementation."""
    if "error" in found:
        return f"attention was not checked: {found['error']}"
    lines = [
        f"attention {name}: {found['failed'].get(name) or f'correct, largest relative error {error:.1e}'}"
        for name, error in found["errors"].items()
    ]
    if "auto" in found["failed"]:
        lines.append("attention auto is wrong, so the arms that leave the choice to the package are not timed")
    return "\n".join(lines)


def to_time(found: dict[str, Any], parts: Collection[str], *, smoke: bool) -> list[Arm]:
    """Returns the arms of the parts, without those whose attention is wrong.

    Args:
      found: result of the check of attention, empty without one.
      parts: some of `PARTS`.
      smoke: True for our arms alone, with the package's choice of attention.
    """
    failed = found.get("failed", {})
    correct = [name for name in found.get("errors", {}) if name not in failed and name != "auto"]

    def wanted(arm: Arm) -> bool:
        if arm.side == "peer":
            return not smoke
        return "implementation" in arm.arguments or "auto" not in failed

    every = arms(() if smoke else tuple(correct), smoke=smoke)[1:]
    return [arm for arm in every if arm.part in parts and wanted(arm)]


def compile_all(chosen: list[Arm], ask: Ask) -> None:
    """Compiles our programs side by side. An error shows again when the arm runs."""

    def compile_one(arm: Arm) -> None:
        with contextlib.suppress(SystemExit):
            ask(arm.command, **arm.arguments, only_compile=True)

    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as threads:
        list(threads.map(compile_one, chosen))


def measure(arm: Arm, ask: Ask) -> dict[str, Any]:
    """Returns the figures of an arm, or {"error": a line}."""
    try:
        if arm.side == "ours":
            return ask(arm.command, **arm.arguments)
        if os.environ.get(PEER_VARIABLE) is None and importlib.util.find_spec("torch") is None:
            return {"error": "not at hand: torch is not installed"}
        return run_peer(arm.command, **arm.arguments)
    except SystemExit as error:
        if str(error) == HOW_TO_MAKE_A_PEER:
            return {"error": f"not at hand: {PEER_VARIABLE} names no interpreter"}
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
