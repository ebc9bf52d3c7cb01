"""Compares the training step between processes, and its attention kernels with those of the run's earlier steps."""

import contextlib
import hashlib
import json
import re
from typing import Any

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import read_object
from aligner_jax.model.kernels import trusted
from aligner_jax.runtime import agreement, distributed
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.tasks.program import Program

RECORD = "kernels.json"
"""File of a workdir with the results of `trusted.verdicts`; only runs on NVIDIA cards have it."""
_PAYLOAD = re.compile(r'"(?:[^"\\]|\\.){200,}"')
"""A kernel's own program in a lowered text. It holds paths of source files, in which machines may differ."""


def check_same_step(program: Program, arguments: tuple[Any, ...]) -> None:
    """Refuses processes that would take different steps. A collective: all processes must call it before the first.

    Processes with different programs would wait for each other for ever.

    Args:
      program: the program. If its step is compiled already, only the comparisons of kernels are exchanged.
      arguments: arguments of the step.

    Raises:
      InputError: steps differ; raised in all processes, with the process and, if known, the kernels.
    """
    if distributed.is_alone():
        return
    digest, lower = None, getattr(program.step, "lower", None)
    if lower is not None:
        digest = hashlib.sha256(_PAYLOAD.sub('""', lower(*arguments).as_text()).encode()).hexdigest()
    with jax.transfer_guard("allow"):
        told = agreement.exchange(json.dumps([digest, trusted.verdicts()]))
    (first_digest, first_verdicts), *others = map(json.loads, told)
    for process, (digest, verdicts) in enumerate(others, 1):
        kernels = _changed(first_verdicts, verdicts)
        if kernels or (None not in (first_digest, digest) and first_digest != digest):
            reason = f"attention by {' and '.join(kernels)} fails on one of them" if kernels else "its program differs"
            raise InputError(
                f"process {process} of {len(told)} would take another training step than process 0 ({reason}): "
                "all processes need the same kind of device with as much free memory; start them again"
            )


def record_kernels(workdir: Workdir, console: Console) -> None:
    """Records which attention kernels the step uses; prints those that the run's earlier steps did not use alike."""
    verdicts = trusted.verdicts()
    if not verdicts or not distributed.is_first():
        return
    path, recorded = workdir.path / RECORD, {}
    with contextlib.suppress(OSError, InputError):
        recorded = read_object(path)
    for name in _changed(recorded, verdicts):
        now, before = ("is used", "failed") if verdicts[name] else ("fails", "was used")
        console.out(f"attention by {name} {now}, but {before} in this run's earlier steps: they round differently")
    workdir.check()
    write_atomically(path, json.dumps({**recorded, **verdicts}, indent=2) + "\n")


def _changed(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Returns the kernels of both whose comparisons differ."""
    return sorted(name for name in some.keys() & others.keys() if some[name] != others[name])
