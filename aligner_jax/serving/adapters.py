"""Adapters of a server: a bank or a folder, of which the numbers that requests use stay in memory."""

import collections
import dataclasses
import functools
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path

import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.artifact import Artifact, RecordedBase, read_artifact
from aligner_jax.peft.bank import Bank
from aligner_jax.peft.bank_folder import SUFFIX, FolderBank
from aligner_jax.peft.stored import StoredAdapter

_MOST_IN_MEMORY = 64
_TRIES = 5


class Adapters:
    """Adapters by name. All methods may be called from any thread."""

    def __init__(self, bank: Bank | FolderBank) -> None:
        self._bank = bank
        self._read: collections.OrderedDict[Hashable, Mapping[str, np.ndarray]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def names(self, after: str = "") -> Iterator[str]:
        """Yields the names behind `after`, in order."""
        return self._bank.names(after)

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters, each once."""
        return self._bank.kinds()

    def __contains__(self, name: str) -> bool:
        return name in self._bank

    def source(self, name: str) -> str:
        """Returns the place of an adapter, for messages."""
        if isinstance(self._bank, FolderBank):
            return f"{self._bank.path / name}{SUFFIX}"
        return f"the adapter {name!r} of {self._bank.path}"

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter whose numbers are in memory, so that neither damage nor deletion can stop the engine.

        Raises:
          KeyError: there is none of that name.
          InputError: it cannot be used.
        """
        for tries_left in reversed(range(_TRIES)):
            adapter = self._known(name, self._bank.get)
            try:
                arrays = self._arrays(adapter)
            except InputError:
                # It may have been replaced or deleted between the two.
                if not tries_left:
                    raise
            else:
                return dataclasses.replace(adapter, read=functools.partial(dict, arrays))
        raise AssertionError

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter records; errors are those of `get`."""
        return self._known(name, self._bank.prompt_format)

    def get_with_format(self, name: str) -> tuple[StoredAdapter, PromptFormat | None]:
        """Returns an adapter and the prompt format that the same version of it records; errors are those of `get`."""
        adapter = self.get(name)
        for _ in range(_TRIES):
            prompt_format = self.prompt_format(name)
            again = self.get(name)
            if again.key == adapter.key:
                return adapter, prompt_format
            # It was replaced between the two.
            adapter = again
        raise InputError(f"the adapter {name!r} is replaced again and again; ask for it later")

    def register(self, name: str, artifact: Artifact) -> None:
        """Adds an adapter or replaces it. Raises InputError if the name is wrong or it cannot be written."""
        self._bank.register(name, artifact.adapter, metadata=artifact.metadata)

    def delete(self, name: str) -> None:
        """Removes an adapter. Raises KeyError if there is none of that name, InputError if it cannot be removed."""
        self._known(name, self._bank.delete)

    def _known[T](self, name: str, action: Callable[[str], T]) -> T:
        try:
            return action(name)
        except InputError:
            if name not in self._bank:
                raise KeyError(name) from None
            raise

    def _arrays(self, adapter: StoredAdapter) -> Mapping[str, np.ndarray]:
        with self._lock:
            if adapter.key in self._read:
                self._read.move_to_end(adapter.key)
                return self._read[adapter.key]
        arrays = adapter.read()
        with self._lock:
            self._read[adapter.key] = arrays
            while len(self._read) > _MOST_IN_MEMORY:
                self._read.popitem(last=False)
        return arrays


def parse_upload(content: bytes, base: RecordedBase) -> Artifact:
    """Reads an adapter file that a client sent.

    Raises:
      InputError: it is not an adapter file, or one of another base.
    """
    with tempfile.TemporaryDirectory(prefix="aligner_upload_") as folder:
        file = Path(folder) / f"upload{SUFFIX}"
        file.write_bytes(content)
        try:
            artifact = read_artifact(file, base, on_host=True)
            # Read here, so that a wrong one is refused.
            _ = artifact.prompt_format
        except InputError as error:
            raise InputError(str(error).replace(str(file), "the upload")) from error
    return artifact
