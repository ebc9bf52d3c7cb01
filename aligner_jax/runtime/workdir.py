"""The folder of a run: of one run at a time, the same for all its processes, and the same until the run ends."""

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

# Files that `write_atomically` had not renamed when its process was killed.
_UNFINISHED = re.compile(
    r"\.(config\.json|inputs\.json|metrics\.jsonl|report\.json|adapter(_\d+)?\.safetensors|reference_\w+\.npz)\.\w{8}"
)
# Seconds that a network disk may take until the other processes see a new file.
_SHOWN_SECONDS = 10


class Workdir:
    """A run's folder, which is made. A context manager; meanwhile no other run enters one for the same folder.

    It is the first process that holds the folder, and a killed one holds nothing. File systems without locks are let
    pass. A run that ends before it has written anything leaves no folder behind that it made.
    """

    def __init__(self, path: str | Path) -> None:
        """Takes the folder at `path`. Raises InputError where that is a name that checkpoints cannot have."""
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
        """Does nothing while the folder is the one that the run began in; called before anything is written there.

        Raises:
          InputError: it was removed, moved or emptied.
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
        # Where one has gone, threads of a save may have made an empty shell again.
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
        """Returns what has gone: the folder, or its config.json from the moment that there was one."""
        try:
            there = os.stat(self.path)
        except OSError as error:
            return self.path if isinstance(error, FileNotFoundError | NotADirectoryError) else None
        config = self.path / "config.json"
        is_same = (there.st_dev, there.st_ino) == self._identity
        content = read_bytes(config) if exists(config) else None
        if content is None:
            # A removal that a save interrupts leaves a folder without it.
            return config if self._config is not None else None
        if is_same:
            self._config = content
        # Mounted buckets may give a folder another number, but the config in it stays.
        return self.path if self._config is not None and content != self._config else None
