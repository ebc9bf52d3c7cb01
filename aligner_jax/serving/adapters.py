"""Adapters that a server has by name, and a folder of their files."""

import collections
import itertools
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime.files import reason, write_atomically
from aligner_jax.weights.base import Base

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"
_MOST_IN_MEMORY = 256


class Adapters(Protocol):
    """Adapters by name. All methods may be called from any thread."""

    def names(self) -> Iterator[str]:
        """Yields the names, in order."""
        ...

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters, each once."""
        ...

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter. Raises KeyError if there is none of that name, InputError if it cannot be used."""
        ...

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter records; errors are those of `get`."""
        ...

    def register(self, name: str, artifact: Artifact, content: bytes) -> None:
        """Adds an adapter or replaces it. Raises InputError if it cannot be written."""
        ...

    def delete(self, name: str) -> None:
        """Removes an adapter. Raises KeyError if there is none of that name."""
        ...


class NamedBase(NamedTuple):
    """The base, with the fingerprint that was computed once."""

    config: LlamaConfig
    fingerprint: str

    @classmethod
    def of(cls, base: Base) -> "NamedBase":
        """Returns the base's config and fingerprint. Reads all weights."""
        return cls(base.config, base.fingerprint)


def is_name(name: str) -> bool:
    """Returns True if an adapter may have this name: letters, digits and `._-`, a letter or digit first."""
    return _NAME.fullmatch(name) is not None


def parse_upload(content: bytes, base: NamedBase) -> Artifact:
    """Reads an adapter file that a client sent.

    Raises:
      InputError: it is not an adapter file, or one of another base.
    """
    with tempfile.TemporaryDirectory(prefix="aligner_upload_") as folder:
        file = Path(folder) / f"upload{_SUFFIX}"
        file.write_bytes(content)
        try:
            artifact = read_artifact(file, base)
            # Read here, so that a wrong one is refused.
            _ = artifact.prompt_format
        except InputError as error:
            raise InputError(str(error).replace(str(file), "the upload")) from error
    return artifact


class _Held(NamedTuple):
    """An adapter that was read, and the identity of its file."""

    identity: tuple[int, int, int]
    adapter: StoredAdapter
    artifact: Artifact


class FolderAdapters:
    """Adapters of a folder: NAME.safetensors is the adapter NAME. The last used ones stay in memory."""

    def __init__(self, folder: Path, base: NamedBase) -> None:
        """Opens a folder.

        Args:
          folder: the folder.
          base: the base that all adapters are of.

        Raises:
          InputError: there is no such folder.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of adapters (NAME{_SUFFIX})")
        self._folder, self._base = folder, base
        self._held: collections.OrderedDict[str, _Held] = collections.OrderedDict()
        self._versions = itertools.count()
        self._lock = threading.Lock()

    def names(self) -> Iterator[str]:
        """Yields the names, in order."""
        with os.scandir(self._folder) as entries:
            names = [entry.name.removesuffix(_SUFFIX) for entry in entries if entry.name.endswith(_SUFFIX)]
        yield from sorted(filter(is_name, names))

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters, each once. Reads all files."""
        adapters = map(self.get, self.names())
        return list(dict.fromkeys((adapter.method, adapter.options) for adapter in adapters))

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter. Raises KeyError if there is none of that name, InputError if it cannot be used."""
        return self._read(name).adapter

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter records; errors are those of `get`."""
        return self._read(name).artifact.prompt_format

    def register(self, name: str, artifact: Artifact, content: bytes) -> None:
        """Adds an adapter or replaces it. Raises InputError if it cannot be written."""
        write_atomically(self._file(name), content)

    def delete(self, name: str) -> None:
        """Removes an adapter. Raises KeyError if there is none of that name."""
        try:
            self._file(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None
        except OSError as error:
            raise InputError(f"the adapter {name} cannot be deleted: {reason(error)}") from error

    def _file(self, name: str) -> Path:
        if not is_name(name):
            raise KeyError(name)
        return self._folder / f"{name}{_SUFFIX}"

    def _read(self, name: str) -> _Held:
        file = self._file(name)
        try:
            about = file.stat()
        except FileNotFoundError:
            raise KeyError(name) from None
        identity = (about.st_ino, about.st_mtime_ns, about.st_size)
        with self._lock:
            held = self._held.get(name)
            if held is not None and held.identity == identity:
                self._held.move_to_end(name)
                return held
        try:
            artifact = read_artifact(file, self._base)
        except InputError:
            if not file.exists():
                raise KeyError(name) from None
            raise
        arrays = {key: np.asarray(x, np.float32) for key, x in artifact.adapter.trainable.items()}
        with self._lock:
            version = name, next(self._versions)
            adapter = StoredAdapter(version, artifact.adapter.method, artifact.adapter.options, lambda: arrays)
            self._held[name] = held = _Held(identity, adapter, artifact)
            while len(self._held) > _MOST_IN_MEMORY:
                self._held.popitem(last=False)
        return held
