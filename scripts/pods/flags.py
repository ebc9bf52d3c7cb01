"""Flags that the recipes share, and the checks that need no cloud."""

import argparse
import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from scripts.pods.slices import Mistake, Slice, parse_slice

RESTART_ON = (75, 124, 130, 134, 143)
"""Exit statuses after which the same command goes on: see the table in docs/tpu.md, and `worker.sh` for 75."""
GIVE_UP_ON = (1, 2)
"""Exit statuses of a mistake or a failure that comes again, for which no slice should be kept."""


@dataclasses.dataclass(frozen=True)
class Mount:
    """A folder that all hosts see.

    Attributes:
      kind: "bucket" or "claim".
      name: name of the bucket, or of the PersistentVolumeClaim.
      path: absolute path on every host.
    """

    kind: str
    name: str
    path: str


@dataclasses.dataclass(frozen=True)
class Job:
    """A command for all hosts of one or more equal slices.

    Attributes:
      name: name of the job.
      slice: one of the slices.
      num_slices: number of slices.
      command: words of the command.
      mounts: folders that all hosts see.
      spot: True for capacity that can be taken away at any time.
      flags: all flags, for those that only one recipe has.
    """

    name: str
    slice: Slice
    num_slices: int
    command: tuple[str, ...]
    mounts: tuple[Mount, ...]
    spot: bool
    flags: argparse.Namespace


def run(main: Callable[[Sequence[str]], str]) -> None:
    """Prints the text of a recipe for the process's arguments, or one sentence and status 2 for a mistake."""
    try:
        text = main(sys.argv[1:])
    except Mistake as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.write(text)


def first_hosts(job: Job, replicated_job: str) -> str:
    """Returns the names of the first host of every slice, for `worker.sh`; JobSet gives pods these names."""
    return ",".join(f"{job.name}-{replicated_job}-{number}-0.{job.name}" for number in range(job.num_slices))


def parser(module: str, what: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags of all recipes."""
    result = argparse.ArgumentParser(
        prog=f"python -m scripts.pods.{module}",
        usage=f"python -m scripts.pods.{module} --name=NAME --topology=v5e:4x4 [flags] -- COMMAND…",
        description=what,
        epilog="The command comes after --, as it would be typed in the repository. See docs/pods.md.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--name", required=True, help="name of the job: lower-case letters, digits and -")
    add("--topology", required=True, help="one slice, as the planner calls it: v5e:4x4, v5p:2x2x2, v6e:8x8, …")
    add("--slices", type=int, default=1, help="number of equal slices; the command needs --config.mesh.slices too")
    add("--chips_per_host", type=int, help="8 takes v5e:2x4 or v6e:2x4 on one host (default: hosts of 4 chips)")
    add("--bucket", action="append", default=[], metavar="NAME:/PATH", help="mounts a bucket; may be repeated")
    add("--spot", action="store_true", help="capacity that is cheaper and can be taken away at any time")
    return result


def add_image_flags(made: argparse.ArgumentParser) -> None:
    """Adds the flags of recipes that run containers."""
    add = made.add_argument
    add("--image", required=True, help="container image, made by scripts/pods/Dockerfile")
    add("--restarts", type=int, default=100, help="how often the job is begun again (default: 100)")
    add("--grace", type=int, default=300, help="seconds to save in when a pod is evicted (default: 300)")


def parse(made: argparse.ArgumentParser, arguments: Sequence[str]) -> Job:
    """Returns the job that the arguments describe.

    Raises:
      Mistake: a value cannot be used, or the command does not fit the other flags.
    """
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    flags, command = made.parse_args(arguments[:cut]), tuple(arguments[cut + 1 :])
    if not command:
        raise Mistake("there is no command: it comes after --, for example -- python -m aligner_jax.train --config=…")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", flags.name):
        raise Mistake(f"--name={flags.name} should be a letter, then at most 39 lower-case letters, digits and -")
    if flags.slices < 1 or getattr(flags, "restarts", 0) < 0 or getattr(flags, "grace", 0) < 0:
        raise Mistake("--slices is at least 1, --restarts and --grace are at least 0")
    job = Job(
        name=flags.name,
        slice=parse_slice(flags.topology, flags.chips_per_host),
        num_slices=flags.slices,
        command=command,
        mounts=_mounts("bucket", flags.bucket) + _mounts("claim", getattr(flags, "claim", [])),
        spot=flags.spot,
        flags=flags,
    )
    _check(job)
    return job


def _mounts(kind: str, values: list[str]) -> tuple[Mount, ...]:
    mounts = []
    for value in values:
        name, colon, path = value.removeprefix("gs://").partition(":")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or not colon or not path.startswith("/"):
            raise Mistake(f"--{kind}={value} is written --{kind}=NAME:/PATH")
        if ".." in path.split("/") or "" in path.rstrip("/").split("/")[1:] or path.strip("/") == "":
            raise Mistake(f"--{kind}={value}: {path} is no folder that can be mounted")
        mounts.append(Mount(kind, name, path.rstrip("/")))
    return tuple(mounts)


def _check(job: Job) -> None:
    paths = [mount.path for mount in job.mounts]
    if len(set(paths)) < len(paths):
        raise Mistake("two mounts have the same path")
    if job.num_slices > 1 and job.slice.hosts == 1:
        raise Mistake(f"--slices={job.num_slices}: {job.slice.topology} has one host; only larger slices can be joined")
    if not _trains(job.command):
        return
    workdir = _value(job.command, "workdir")
    if workdir is None or not any(PurePosixPath(workdir).is_relative_to(path) for path in paths):
        raise Mistake(
            f"the command's --workdir is {workdir or 'missing'}, but must lie in a folder that all hosts see and that "
            f"outlives them: one of {', '.join(paths) or '--bucket=NAME:/PATH'}"
        )
    slices = _value(job.command, "config.mesh.slices") or "1"
    if slices != str(job.num_slices):
        raise Mistake(f"--slices={job.num_slices}, so the command needs --config.mesh.slices={job.num_slices}")


def _trains(command: Sequence[str]) -> bool:
    """Returns True for a command of training, in each of the three ways to write it."""
    named = any(pair in (("aligner_jax", "train"), ("aligner-jax", "train")) for pair in itertools.pairwise(command))
    return named or "aligner_jax.train" in command


def _value(command: Sequence[str], flag: str) -> str | None:
    """Returns the last value of a flag, written --FLAG=VALUE or --FLAG VALUE; None without it."""
    found = None
    for word, following in zip(command, (*command[1:], None), strict=True):
        if word.startswith(f"--{flag}="):
            found = word.partition("=")[2]
        elif word == f"--{flag}":
            found = following
    return found
