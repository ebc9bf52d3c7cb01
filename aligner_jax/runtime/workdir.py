"""Workdir of a run: held by one run at a time, shared by its processes, and unchanged until the run ends."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Self

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, read_bytes
from aligner_jax.runtime import agreement, distributed
from aligner_jax.runtime.files import reason

# Temporary files that `write_atomically` leaves behind in a killed process.
_UNFINISHED = re.compile(
    r"\.(config\.json|inputs\.json|wandb\.json|metrics\.jsonl|report\.json|adapter(_\d+)?\.safetensors|reference_\w+\.npz)\.\w{8}"
)
# Seconds until a network disk shows a new file to other processes.
_SHOWN_SECONDS = 10


class Workdir:
    """A run's folder, made if it does not exist. A context manager that locks the folder against other runs.

    Process 0 holds the lock, which also ends if the process is killed. File systems without locks are accepted. A run
    that ends before it has written anything removes the folders that it made.
    """

    def __init__(self, path: str | Path) -> None:
        """Takes the folder at `path`. Raises InputError if its name is not UTF-8, which checkpoints require."""
        self.path = Path(path)
        self._made: list[Path] = []
        self._handle: int | None = None
        self._identity: tuple[int, int] | None = None
        self._config: bytes | None = None
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"--workdir={self.path}: a name on the way to it is not UTF-8, as those of checkpoints must be; give "
                "another folder"
            ) from None

    def check(self) -> None:
        """Checks that the folder is still the one that the run began in. Call it before writing there.

        Raises:
          InputError: the folder was removed, moved or emptied.
        """
        if gone := self._gone():
            raise InputError(
                f"{gone} has gone while the run was on, so the run ends: if it was moved, put it back, and the same "
                "command goes on from the last checkpoint"
            )

    def __enter__(self) -> Self:
        token = f".seen_by_all_{secrets.token_hex(8)}"
        try:
            try:
                self._enter(token)
            finally:
                with contextlib.suppress(OSError, ValueError):
                    (self.path / token).unlink()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        gone = self._identity is not None and self._gone() is not None
        # If the folder has gone, threads of a save may have made it again, empty.
        shell = [self.path / "checkpoints", self.path] if gone or self._made else []
        for folder in [*shell, *self._made]:
            with contextlib.suppress(OSError, ValueError):
                folder.rmdir()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _enter(self, token: str) -> None:
        failure = None
        if distributed.is_first():
            try:
                self._hold()
                if not distributed.is_alone():
                    (self.path / token).touch()
            except InputError as error:
                failure = error
            except (OSError, ValueError) as error:
                failure = InputError(f"{self.path} cannot be made: {reason(error)}")
        told = json.dumps({"token": token, "failure": str(failure) if failure else None})
        first, *others = map(json.loads, agreement.exchange(told))
        if first["failure"] is not None:
            raise InputError(first["failure"])
        if others:
            self._check_shared(first["token"])
        there = os.stat(self.path)
        self._identity = (there.st_dev, there.st_ino)

    def _hold(self) -> None:
        self._made = [folder for folder in [self.path, *self.path.parents] if not folder.exists()]
        os.makedirs(self.path, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is in use by another run, which has not ended yet") from None
        except OSError:
            pass
        for file in self.path.iterdir():
            if _UNFINISHED.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _check_shared(self, token: str) -> None:
        end = time.monotonic() + _SHOWN_SECONDS
        while not (seen := (self.path / token).exists()) and time.monotonic() < end:
            # Some network disks show a folder's new files when it is listed.
            with contextlib.suppress(OSError):
                os.listdir(self.path)
            time.sleep(0.1)
        of_each = agreement.exchange("seen" if seen else "")
        if "" in of_each:
            raise InputError(
                f"process {of_each.index('')} of {len(of_each)} does not see in {self.path} what process 0 writes "
                "there: give a --workdir on a disk that all processes share"
            )

    def _gone(self) -> Path | None:
        """Returns the path that has gone, the folder or the config.json seen earlier; None if nothing has."""
        try:
            there = os.stat(self.path)
        except OSError as error:
            return self.path if isinstance(error, FileNotFoundError | NotADirectoryError) else None
        config = self.path / "config.json"
        is_same = (there.st_dev, there.st_ino) == self._identity
        content = read_bytes(config) if exists(config) else None
        if content is None:
            # A removal of the folder during a save can leave the folder without its config.json.
            return config if self._config is not None else None
        if is_same:
            self._config = content
        # Mounted buckets may change a folder's inode number, but not the config in it.
        return self.path if self._config is not None and content != self._config else None
