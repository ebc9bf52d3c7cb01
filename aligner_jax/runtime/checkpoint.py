"""Checkpoints of a run: atomic, checksummed, and written while the next step runs."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from aligner_jax.errors import InputError, one_line
from aligner_jax.files.content import is_file, open_file
from aligner_jax.files.fields import read_fields
from aligner_jax.files.json_text import read_object
from aligner_jax.model.remat import AUTO, check_name
from aligner_jax.runtime import distributed
from aligner_jax.runtime.files import reason, system_reason, write_atomically
from aligner_jax.runtime.same_run import Origin

_log = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"
_RUN = "run/metadata"
_UNFINISHED = ".orbax-checkpoint-tmp*"

_NO_STEP, _FAILED = -1, -2

State = TypeVar("State")
"""A pytree of arrays. The restored state has the structure of the template."""


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # JAX reports a preemption once, to one call of all processes. Only `StopRequests` may make that call.
        return False


class Checkpoints:
    """The newest checkpoints of one run in one folder. A context manager: leaving it waits for the last save.

    Orbax writes a checkpoint into a temporary folder and renames the folder when it is complete. So a killed process
    leaves only complete checkpoints, and a temporary folder that is removed when the checkpoints are next opened. A
    checkpoint also holds checksums, since Orbax detects only some kinds of damage, and the origin of its run.

    All processes of a run share the folder and make the same calls. Process 0 writes checksums, removes folders, and
    decides which checkpoint is restored.

    Attributes:
      remat: rematerialization of the run's steps, saved in every checkpoint: its "name", and for remat "auto" all else
        of the record (`tasks.chosen_remat`). `restore` sets it to that of the restored steps; empty if unknown.

    `save` and `wait` may be called under a transfer guard. They allow implicit transfers for Orbax's copies to the host
    and for the collectives that synchronize its processes.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        origin: Origin | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the folder, which is made if it does not exist.

        Args:
          directory: folder that holds one folder per saved step.
          keep: number of newest checkpoints to keep.
          origin: origin of the run; saved in every checkpoint, and compared when one is restored.
          check: called before anything is written; raises InputError if the folder may no longer be written to.

        Raises:
          InputError: the folder cannot be made.
        """
        self.directory = Path(directory).absolute()
        self._origin, self._check_place = origin, check
        self.remat: dict[str, Any] = {}
        check()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.directory} cannot be made: {reason(error)}") from error
        self._remove_unfinished()
        self._writing: int | None = None
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums)
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: PyTree[Array], data_state: dict[str, Any]) -> None:
        """Starts to write a checkpoint, and returns as soon as `state` may be donated.

        Args:
          step: step of the checkpoint; larger than those in the folder.
          state: a pytree of arrays.
          data_state: position in the data, as JSON values.

        Raises:
          InputError: this checkpoint or the previous one cannot be written. Older ones are intact.
        """
        run = {"step": step, "leaves": _describe(state), "data_state": data_state}
        if self._origin is not None:
            run["origin"] = self._origin.as_dict()
        if self.remat:
            run["remat"] = self.remat
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        with self._failure_is_one_sentence(), jax.transfer_guard("allow"):
            self._manager.wait_until_finished()
            self._check_place()
            self._writing = step
            self._manager.save(step, args=items, force=True)

    def restore(self, template: State) -> tuple[int, State, dict[str, Any]] | None:
        """Returns the newest intact checkpoint as (step, state, data_state), or None if there is none.

        A damaged checkpoint is renamed to `damaged_<step>` with a warning, and the previous one is tried.

        Args:
          template: a pytree with the structure, shapes, dtypes and shardings of the saved state.

        Raises:
          InputError: the checkpoint is of another run, or its state does not match the template.
        """
        step = self._newest_intact()
        if step is None:
            return None
        folder = self.directory / str(step)
        run = _read_run(folder)
        self.remat = run.remat
        if self._origin is not None:
            began = self._origin.check(run.origin, folder)
            if not self.remat and began.remat != AUTO:
                self.remat = {"name": began.remat}
        if run.leaves != _describe(template):
            raise InputError(f"{folder} is of another run: {_difference(run.leaves, template)}")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        return step, self._manager.restore(step, args=items)["state"], run.data_state

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          InputError: the checkpoint cannot be written. Older ones are intact.
        """
        with self._failure_is_one_sentence(), jax.transfer_guard("allow"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until the last checkpoint is written, and closes Orbax's manager.

        Raises:
          InputError: the checkpoint cannot be written. Older ones are intact.
        """
        try:
            with self._failure_is_one_sentence(), contextlib.closing(self._manager):
                self._manager.wait_until_finished()
        finally:
            self._remove_unfinished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An error that ends the run matters more than a failure of the last checkpoint.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

    def _newest_intact(self) -> int | None:
        """Returns the step of the newest intact checkpoint; process 0 sets damaged newer ones aside and decides."""
        found, failure = _NO_STEP, None
        if jax.process_index() == 0:
            try:
                for step in sorted(self._manager.all_steps(), reverse=True):
                    try:
                        _check(self.directory / str(step), step)
                    except (OSError, ValueError) as error:
                        self._set_aside(step, error)
                    else:
                        found = step
                        break
            except InputError as error:
                found, failure = _FAILED, error
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == _FAILED:
            raise failure or InputError(f"a damaged checkpoint in {self.directory} cannot be set aside")
        self._manager.reload()
        return None if found == _NO_STEP else found

    def _write_checksums(self) -> None:
        """Writes the checksums. Runs in Orbax's thread, after all files are written and before the rename."""
        if jax.process_index() == 0:
            self._check_place()
            folder = next(self.directory.glob(f"{self._writing}{_UNFINISHED}"), None)
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, "its folder has gone")
            # Files at the top level are excluded: they are Orbax's metadata, to which it adds the time of the rename.
            files = [file for file in sorted(folder.glob("*/**/*")) if file.is_file()]
            checksums = {str(file.relative_to(folder)): _checksum(file) for file in files}
            write_atomically(folder / _CHECKSUMS, json.dumps(checksums, indent=1))

    def _set_aside(self, step: int, error: Exception) -> None:
        old, new = self.directory / str(step), self.directory / f"damaged_{step}"
        try:
            if new.exists():
                shutil.rmtree(new)
            old.rename(new)
        except OSError as failure:
            raise InputError(f"{old} is damaged and cannot be set aside: {reason(failure)}") from error
        _log.warning("checkpoint %s is damaged (%s); it is now %s, and the one before is used", old, error, new.name)

    @contextlib.contextmanager
    def _failure_is_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if distributed.is_peer_gone(error):
                raise
            # If the whole folder is gone, that is the reason for any error of Orbax.
            self._check_place()
            # TensorStore and Orbax raise ValueError for files that they cannot write or do not find. Errors of JAX are
            # no disk failures.
            if not isinstance(error, OSError | ValueError) and not _is_too_late(error):
                raise
            raise InputError(f"a checkpoint in {self.directory} cannot be written: {_why(error)}") from error

    def _remove_unfinished(self) -> None:
        if jax.process_index() != 0:
            return
        # After a failed save, Orbax's other writer threads may run on for a moment.
        for _ in range(40):
            unfinished = list(self.directory.glob(f"*{_UNFINISHED}"))
            if not unfinished:
                return
            for folder in unfinished:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)


def _checksum(file: Path) -> str:
    with open_file(file) as content:
        return hashlib.file_digest(cast(BufferedReader, content), "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class _Run:
    """Metadata of a checkpoint; `origin` is None in checkpoints of older versions."""

    step: int
    leaves: dict[str, Any]
    data_state: dict[str, Any]
    origin: object
    remat: dict[str, Any]


def _read_run(folder: Path) -> _Run:
    """Reads a checkpoint's metadata. Raises InputError if a field is missing or has the wrong type."""
    fields = read_fields(folder / _RUN)
    leaves, data_state = fields.section("leaves"), fields.section("data_state")
    if leaves is None or data_state is None:
        raise fields.error("leaves" if leaves is None else "data_state", "is missing")
    # The oldest versions did not write the step.
    step = fields.integer("step", int(folder.name), least=0)
    remat = fields.section("remat")
    if remat is not None:
        check_name(remat.text("name"))
    return _Run(
        step, dict(leaves.values), dict(data_state.values), fields.get("origin"), dict(remat.values) if remat else {}
    )


def _check(folder: Path, step: int) -> None:
    """Raises OSError or ValueError if a file has changed or is missing, or the folder is that of another step."""
    if not is_file(folder / _CHECKSUMS):
        raise ValueError(f"{_CHECKSUMS} is missing")
    for name, checksum in read_object(folder / _CHECKSUMS).items():
        if not is_file(folder / name):
            raise ValueError(f"{name} is missing")
        if _checksum(folder / name) != checksum:
            raise ValueError(f"{name} has changed")
    written = _read_run(folder).step
    if written != step:
        raise ValueError(f"it is the one of step {written}")


def _describe(state: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _difference(leaves: dict[str, str], template: Any) -> str:
    wanted = _describe(template)
    name = next(name for name in [*wanted, *leaves] if leaves.get(name) != wanted.get(name))
    return f"its {name} is {leaves.get(name, 'missing')}, and this run's is {wanted.get(name, 'missing')}"


def _why(error: BaseException) -> str:
    known = system_reason(error)
    # Without a system error, a written file has disappeared, or a thread of a failed save came too late.
    return known or f"files of it may have gone while it was written ({one_line(str(error))})"


def _is_too_late(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


class _NotOrbax(logging.Filter):
    """Drops Orbax's own log: the errors that its threads print as tracebacks are raised, and reported in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts


class _NotWhatIsRaised(logging.Filter):
    """Drops tracebacks of a failed save's other parts: only the first failure is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        too_late = record.exc_info and _is_too_late(record.exc_info[1])
        return not too_late and "exception was never retrieved" not in record.getMessage()


logging.getLogger("absl").addFilter(_NotOrbax())
for _name in ("asyncio", "concurrent.futures"):
    logging.getLogger(_name).addFilter(_NotWhatIsRaised())
