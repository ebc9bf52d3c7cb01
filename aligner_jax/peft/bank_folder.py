"""A folder of adapter files with the methods of a bank: `NAME.safetensors` is the adapter NAME."""

import contextlib
import json
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.files.fields import shown
from aligner_jax.peft.adapter import Adapter, Options
from aligner_jax.peft.artifact import (
    FingerprintedBase,
    RecordedBase,
    read_artifact,
    recorded_prompt_format,
    save_adapter,
)
from aligner_jax.peft.bank import INDEX, Bank
from aligner_jax.peft.bank_index import check_name, name_problem
from aligner_jax.peft.bank_kinds import Kind
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime.files import reason

SUFFIX = ".safetensors"


def open_bank(path: str | Path, base: FingerprintedBase) -> "Bank | FolderBank":
    """Opens a bank, or a folder of adapter files. Raises InputError if `path` is neither, or of another base."""
    return Bank.open(path, base) if exists(Path(path) / INDEX) else FolderBank(path, base)


class FolderBank:
    """A folder of adapter files. It is for up to thousands of adapters; `Bank` is for more.

    Attributes:
      path: path of the folder.
    """

    def __init__(self, path: str | Path, base: FingerprintedBase) -> None:
        """Takes a folder.

        Args:
          path: path of the folder.
          base: the base of the adapters.

        Raises:
          InputError: there is no such folder, or a file in it has a name that no adapter can have.
        """
        self.path = Path(path)
        # The fingerprint is computed when it is asked for, from all weights.
        self._base = RecordedBase(base.config, base.fingerprint)
        self._checked: dict[str, tuple[StoredAdapter, Mapping[str, str]]] = {}
        if not is_folder(self.path):
            hint = ": give the folder that holds it" if exists(self.path) else ""
            raise InputError(f"{self.path} is not a folder of adapters{hint}")
        for name in self._stems():
            if problem := name_problem(name):
                raise InputError(f"{self.path / name}{SUFFIX} needs another name: {problem}")

    def close(self) -> None:
        """Does nothing; a `Bank` has a file to close."""

    def __len__(self) -> int:
        return sum(1 for _ in self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) is not None

    def names(self, after: str = "") -> Iterator[str]:
        """Yields the names of all adapters in order, without `after` and those before it."""
        return (name for name in self._stems() if name > after and name_problem(name) is None)

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters; reads all files that were not read before."""
        stored = [self.get(name) for name in self.names()]
        return list(dict.fromkeys((each.method, each.options) for each in stored))

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter, whose file is checked unless it has not changed since it was.

        Args:
          name: its name.

        Raises:
          InputError: there is no such file, it is damaged, or it is an adapter of another base.
        """
        return self._known(name)[0]

    def metadata(self, name: str) -> Mapping[str, str]:
        """Returns the metadata of an adapter's file. Raises InputError as `get` does."""
        return self._known(name)[1]

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter's file records, None if there is none.

        Raises:
          InputError: as `get`; or its metadata hold no prompt format.
        """
        return recorded_prompt_format(self._file(name), self.metadata(name))

    def register(self, name: str, adapter: Adapter, *, metadata: Mapping[str, str] | None = None) -> None:
        """Writes an adapter's file, atomically.

        Args:
          name: its name, see `Bank.register`.
          adapter: an adapter of a method whose adapters can be different in the rows of a batch.
          metadata: as in an adapter's file; only its prompt format is kept.

        Raises:
          InputError: the adapter or the name is none that a bank takes, or the file cannot be written.
        """
        check_name(name)
        metadata = metadata or {}
        if metadata.get("base_fingerprint", self._base.fingerprint) != self._base.fingerprint:
            raise InputError(f"{name} cannot be registered: it was trained on another base")
        kind = Kind.of(adapter.method, adapter.options, self._base.config)
        kind.flat(name, adapter, self._base.config)
        recorded_prompt_format(name, metadata)
        prompt_format = json.loads(metadata["prompt_format"]) if "prompt_format" in metadata else None
        save_adapter(adapter, self._file(name), self._base, prompt_format=prompt_format)

    def delete(self, name: str) -> None:
        """Removes an adapter's file. Raises InputError if there is none, or it cannot be removed."""
        if name not in self:
            raise self._unknown(name)
        self._checked.pop(name, None)
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self._file(name)} cannot be removed: {reason(error)}") from None

    def _known(self, name: str) -> tuple[StoredAdapter, Mapping[str, str]]:
        key = self._key(name)
        if key is None:
            self._checked.pop(name, None)
            raise self._unknown(name)
        known = self._checked.get(name)
        if known is None or known[0].key != key:
            artifact = read_artifact(self._file(name), self._base, on_host=True)
            method, options = artifact.adapter.method, artifact.adapter.options
            stored = StoredAdapter(key, method, options, lambda: self._read(name, key))
            self._checked[name] = known = stored, artifact.metadata
        return known

    def _read(self, name: str, key: Hashable) -> dict[str, np.ndarray]:
        arrays = read_artifact(self._file(name), self._base, on_host=True).adapter.trainable
        if self._key(name) != key:
            raise InputError(f"{self._file(name)} was replaced while it was used; ask for it again")
        return {name: np.asarray(x, np.float32) for name, x in arrays.items()}

    def _key(self, name: str) -> Hashable | None:
        """Returns what changes with the file's content; None if there is no such file."""
        if name_problem(name) is None:
            with contextlib.suppress(OSError):
                found = os.stat(self._file(name))
                return str(self._file(name)), found.st_mtime_ns, found.st_size, found.st_ino
        return None

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def _stems(self) -> list[str]:
        return sorted(each.name.removesuffix(SUFFIX) for each in self.path.glob(f"[!.]*{SUFFIX}"))

    def _unknown(self, name: str) -> InputError:
        return InputError(f"{self.path} has no adapter {shown(name)}")
