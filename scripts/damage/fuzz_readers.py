"""Damages files of every kind that the project reads; each must be refused in one sentence or read correctly.

    python -m scripts.damage.fuzz_readers --kind=adapter --cases=20000 [--seed=0] [--workers=2] [--keep=DIR]
    python -m scripts.damage.fuzz_readers --kind=adapter --seed=0 --case=1234 --keep=DIR      # one case again

A case is a sample of its kind, damaged by a generator that kind, seed and case number determine. The process that reads
it has limits on seconds, address space and memory growth (twice the input's size plus 64 MB). A fault is a traceback, a
crash, a hang, memory above the limit, a message that is not one printable line of at most 400 characters, or an input
that is accepted with another result although its format could have shown the difference.

Prints a line for each fault, then the counts. Exit status 1 if there was a fault.
"""

import argparse
import collections
import importlib
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"


from aligner_jax.errors import MAX_CHARACTERS, InputError
from scripts.damage.kinds.kind import Files, Kind

KINDS = sorted(path.stem for path in (pathlib.Path(__file__).parent / "kinds").glob("[a-z]*.py"))
KINDS = [name for name in KINDS if name not in ("kind", "mutations")]
FAULTS = ("traceback", "message", "memory", "differs", "hang", "crash")
MEBIBYTE = 2**20
_BROKEN = 3


def kind_of(name: str) -> Kind:
    """Returns the kind that a module of `scripts.damage.kinds` exports."""
    return importlib.import_module(f"scripts.damage.kinds.{name}").KIND


def damaged(kind: Kind, samples: list[Files], seed: int, case: int) -> tuple[int, Files]:
    """Returns the sample's index and its damaged copy, which seed and case determine."""
    rng = random.Random(f"{kind.name} {seed} {case}")
    chosen = rng.randrange(len(samples))
    return chosen, kind.mutate(rng, samples[chosen])


def write(files: Files, folder: pathlib.Path) -> None:
    """Writes the files into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def outcome(kind: Kind, folder: pathlib.Path, expected: str, free: bool, most: int) -> tuple[str, str]:
    """Returns the outcome of an input, and the details of a fault.

    Args:
      expected: the result of the undamaged sample.
      free: the input may have another result.
      most: bytes by which memory may grow.
    """
    before = _resident(reset=True)
    try:
        found = kind.read(folder)
        kept = "accepted, the same result" if found == expected else "accepted, another result that the format allows"
        result = (kept, "") if found == expected or free else ("differs", f"{expected[:80]} → {found[:80]}")
    except InputError as error:
        message = str(error)
        good = message.isprintable() and 0 < len(message) <= MAX_CHARACTERS
        result = ("refused", "") if good else ("message", repr(message[:200]))
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/aligner_jax/" in f.filename]
        where = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        result = ("traceback", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:160]}")
    grown = _resident() - before
    if result[0] not in FAULTS and grown > most:
        return "memory", f"{grown / MEBIBYTE:.0f} MiB of at most {most / MEBIBYTE:.0f}; {result[0]}"
    return result


def _resident(*, reset: bool = False) -> int:
    """Returns the process's memory in bytes: the peak since the last reset, or the current size if it is reset now."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    name = "VmRSS:" if reset else "VmHWM:"
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Worker:
    """A process that reads cases one after the other and reports when it begins and ends each.

    Attributes:
      cases: all cases it has been given.
      running: the case that it has begun and not ended; None between two.
      begun: start of the running case, by `time.monotonic`.
      spent: processor time used by then, in seconds.
    """

    def __init__(self, arguments: argparse.Namespace, kind: Kind, samples: list[Files], cases: list[int]) -> None:
        self.cases, self.begun, self.spent = cases, time.monotonic(), 0.0
        self.running: int | None = None
        self._rest = b""
        self.pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            stderr = os.dup(2)
            try:
                _read_cases(arguments, kind, samples, cases, end)
                os._exit(0)
            except BaseException:
                os.write(stderr, traceback.format_exc().encode())
                os._exit(_BROKEN)
        os.close(end)

    def lines(self) -> list[dict[str, Any]]:
        """Returns the lines printed since the last call; none once the process has ended."""
        self._rest += os.read(self.pipe, 2**16)
        *whole, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in whole]

    def note(self, line: dict[str, Any]) -> None:
        """Handles a line of the process: it has begun a case, or ended one."""
        self.begun, self.spent, self.running = time.monotonic(), self._processor_seconds(), line.get("begins")

    def is_late(self, seconds: float) -> bool:
        """Returns True if a case has used more than these seconds of processor time, or ten times as many of wall time.

        On a machine with other work a case of a tenth of a second may take a minute.
        """
        waited = time.monotonic() - self.begun
        if self.running is None or waited < seconds:
            return False
        return waited > 10 * seconds or self._processor_seconds() - self.spent > seconds

    def _processor_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def end(self, *, kill: bool) -> int:
        """Waits for the process and returns its exit status, or the negated number of the signal that ended it."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status)


def _read_cases(arguments: argparse.Namespace, kind: Kind, samples: list[Files], cases: list[int], pipe: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not arguments.show:
        os.dup2(1, 2)

    def say(**what: object) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    folder = pathlib.Path(arguments.folder) / f"worker_{os.getpid()}"
    expected = []
    for sample in samples:
        write(sample, folder)
        expected.append(kind.read(folder))
    size = next(
        int(line.split()[1]) * 1024
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize:")
    )
    resource.setrlimit(resource.RLIMIT_AS, (size + arguments.address_space * MEBIBYTE,) * 2)
    for case in cases:
        chosen, files = damaged(kind, samples, arguments.seed, case)
        write(files, folder)
        say(begins=case)
        most = 2 * sum(map(len, files.values())) + 64 * MEBIBYTE
        free = kind.may_differ(samples[chosen], files)
        what, why = outcome(kind, folder, expected[chosen], free, most)
        say(ends=case, what=what, why=why)
    shutil.rmtree(folder, ignore_errors=True)


def run(arguments: argparse.Namespace, name: str) -> collections.Counter[str]:
    """Returns the count of each outcome; prints a line for each fault."""
    kind = kind_of(name)
    samples = kind.samples()
    cases = [arguments.case] if arguments.case is not None else list(range(arguments.cases))
    waiting = [cases[i :: arguments.workers] for i in range(arguments.workers)]
    workers = [Worker(arguments, kind, samples, part) for part in waiting if part]
    counts: collections.Counter[str] = collections.Counter()
    shown: collections.Counter[str] = collections.Counter()

    def note(case: int, what: str, why: str) -> None:
        counts[what] += 1
        if what not in FAULTS:
            return
        # A thousand faults of one place in the code are one fault to fix.
        shown[same := f"{what} {why[:60]}"] += 1
        if shown[same] > arguments.most_alike:
            return
        print(f"{name} {what}: case {case} of seed {arguments.seed}: {why}", flush=True)
        if arguments.keep:
            _, files = damaged(kind, samples, arguments.seed, case)
            write(files, pathlib.Path(arguments.keep) / f"{name}_{arguments.seed}_{case}")

    while workers:
        ready, _, _ = select.select([worker.pipe for worker in workers], [], [], 0.5)
        for worker in list(workers):
            if worker.pipe in ready and (said := worker.lines()):
                for line in said:
                    worker.note(line)
                    if "ends" in line:
                        note(line["ends"], line["what"], line["why"])
                continue
            late = worker.is_late(arguments.seconds)
            if worker.pipe not in ready and not late:
                continue
            status = worker.end(kill=late)
            workers.remove(worker)
            if status == _BROKEN:
                raise SystemExit(f"{name}: the kind itself fails, or the reader refuses its samples; see above")
            if worker.running is not None:
                fault = ("hang", f"over {arguments.seconds} s") if late else ("crash", f"status {status}")
                note(worker.running, *fault)
                if rest := worker.cases[worker.cases.index(worker.running) + 1 :]:
                    workers.append(Worker(arguments, kind, samples, rest))
    return counts


def main() -> int:
    """Runs the kinds that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="all", help=f"all, or some of {', '.join(KINDS)}, with commas between")
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=10, help="of a processor that one case may take")
    parser.add_argument("--address-space", type=int, default=3072, help="MiB that a process may add to its own")
    parser.add_argument("--most-alike", type=int, default=3, help="faults of one place that are printed")
    parser.add_argument("--keep", help="folder for the inputs of printed faults")
    parser.add_argument("--show", action="store_true", help="what the readers print")
    arguments = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as arguments.folder:
        for name in KINDS if arguments.kind == "all" else arguments.kind.split(","):
            begun = time.monotonic()
            counts = run(arguments, name)
            faults += sum(counts[what] for what in FAULTS)
            told = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
            print(f"{name}: {counts.total():,} cases in {time.monotonic() - begun:.0f} s: {told}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
