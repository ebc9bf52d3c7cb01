"""A bank: any number of adapters over one base, in a folder on disk.

The folder holds `index.sqlite` (`bank_index`) and `numbers.N`, the arrays of all adapters one after the other
(`bank_numbers`). Numbers are only appended, and they are on disk before the transaction that names them, so a process
that is killed loses at most what it was registering. Processes and threads may read while one of them writes.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_file
from aligner_jax.files.fields import Fields, shown
from aligner_jax.files.identity import identity
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.adapter import Adapter, Options
from aligner_jax.peft.adapter_file import FORM_FIELDS
from aligner_jax.peft.artifact import FingerprintedBase, recorded_prompt_format
from aligner_jax.peft.bank_index import LONGEST_TEXT, Index, Row, Transaction, check_name
from aligner_jax.peft.bank_kinds import Kind
from aligner_jax.peft.bank_numbers import Numbers, append
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime.files import new_folder, reason, sync

INDEX = "index.sqlite"
_AT_ONCE = 4096
"""Adapters of a transaction at most."""
_BYTES_AT_ONCE = 2**26
_OF_THE_BANK = (
    "format", "format_version", "method", "options", "base_config", "base_fingerprint", "digest", *FORM_FIELDS,
)  # fmt: skip
"""Metadata of adapter files that the bank records in its own way."""


class Entry(NamedTuple):
    """An adapter to register; see `Bank.register`."""

    name: str
    adapter: Adapter
    metadata: Mapping[str, str] | None = None


class _New(NamedTuple):
    name: str
    kind: Kind
    numbers: bytes
    digest: bytes
    metadata: str | None


class Bank:
    """An open bank. Threads may share it.

    Attributes:
      path: path of the folder.
      config: configuration of the base.
      fingerprint: fingerprint of the base.
    """

    def __init__(self, path: Path, index: Index, config: LlamaConfig, fingerprint: str) -> None:
        """Takes an open index; `Bank.open` opens one."""
        self.path, self.config, self.fingerprint = path, config, fingerprint
        self._index = index
        self._kinds: dict[int, Kind] = {}
        self._numbers: Numbers | None = None
        # An instance's own, so that the cache does not outlive it.
        self._new_kind = functools.cache(functools.partial(Kind.of, config=config))

    @classmethod
    def open(cls, path: str | Path, base: FingerprintedBase | None = None, *, create: bool = False) -> "Bank":
        """Opens a bank.

        Args:
          path: path of the folder.
          base: the base of the adapters; None checks nothing.
          create: True to make the bank if there is no such folder, or an empty one. Needs a base.

        Raises:
          InputError: there is no bank, it is damaged or of a newer format, or it is of another base.
        """
        path = Path(path)
        if create and base is not None and not exists(path / INDEX):
            _create(path, base)
        if not is_file(path / INDEX):
            raise InputError(f"{path} is not a bank of adapters: it has no {INDEX}")
        index = Index(path / INDEX, can_write=os.access(path, os.W_OK) and os.access(path / INDEX, os.W_OK))
        try:
            recorded = Fields(parse_object(index.meta("base"), index.path), index.path, prefix="base.")
            fields = recorded.section("config")
            if fields is None:
                raise recorded.error("config", "is missing")
            config, fingerprint = LlamaConfig.from_fields(fields), recorded.text("fingerprint")
            if base is not None:
                _check_base(path, config, fingerprint, base)
        except InputError:
            index.close()
            raise
        return cls(path, index, config, fingerprint)

    def close(self) -> None:
        """Closes the index. Stored adapters can still be read."""
        self._index.close()
        self._numbers = None

    def __enter__(self) -> "Bank":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Returns the number of adapters, which takes time in proportion to it."""
        return self._index.count()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.row(name) is not None

    def names(self, after: str = "") -> Iterator[str]:
        """Yields the names of all adapters in order. Reads some at a time, so others may write meanwhile.

        Args:
          after: skips this name and those before it, without reading them.
        """
        return self._index.names(after)

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters, which takes time in proportion to their number."""
        kinds = [self._parsed_kind(number, texts) for number, texts in self._index.kinds().items()]
        return [(kind.method, kind.options) for kind in kinds]

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter. This takes one lookup in the index, and `read` takes one read of the numbers.

        Args:
          name: its name.

        Returns:
          The adapter; its key is a digest of method, options and numbers. It can be read after it was replaced or
          deleted, also after the bank was compacted.

        Raises:
          InputError: there is no adapter of that name, or the bank is damaged.
        """
        row = self._row(name)
        try:
            numbers, kind = self._opened(row.file), self._known_kind(row.kind)
        except InputError:
            # The bank may have been compacted after the lookup.
            row = self._row(name)
            numbers, kind = self._opened(row.file), self._known_kind(row.kind)
        return StoredAdapter(row.digest, kind.method, kind.options, lambda: _read(row, kind, numbers))

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter was registered with, None if there is none.

        Raises:
          InputError: there is no adapter of that name, or its metadata hold no prompt format.
        """
        metadata = self.metadata(name)
        return recorded_prompt_format(f"adapter {name!r} of {self.path}", metadata)

    def metadata(self, name: str) -> dict[str, str]:
        """Returns the metadata that an adapter was registered with. Raises InputError if there is none of the name."""
        row = self._row(name)
        if row.metadata is None:
            return {}
        found = Fields(parse_object(row.metadata, self._index.path), self._index.path, prefix=f"{name!r}: ")
        return {key: found.text(key) for key in found.values}

    def register(self, name: str, adapter: Adapter, *, metadata: Mapping[str, str] | None = None) -> None:
        """Adds an adapter, or replaces the one of that name. It is on disk when this returns.

        Args:
          name: its name, of 1 to 200 printable characters without / \\ @ +.
          adapter: an adapter of a method whose adapters can be different in the rows of a batch, with finite arrays
            that fit the base. They are stored in float32.
          metadata: texts to keep with it, as in an adapter's file (`Artifact.metadata`); a prompt format, for one.

        Raises:
          InputError: the name, adapter or metadata are none that the bank takes, or it cannot be written.
        """
        self.register_many([Entry(name, adapter, metadata)])

    def register_many(self, entries: Iterable[Entry]) -> int:
        """Adds or replaces many adapters, thousands in a transaction.

        Args:
          entries: names, adapters and metadata; see `register`.

        Returns:
          Number of entries.

        Raises:
          InputError: see `register`. Earlier transactions stay; nothing of the current one is kept.
        """
        batch, size, count = [], 0, 0
        for entry in entries:
            batch.append(new := self._new(*entry))
            size += len(new.numbers)
            if len(batch) == _AT_ONCE or size >= _BYTES_AT_ONCE:
                self._write(batch)
                batch, size, count = [], 0, count + len(batch)
        if batch:
            self._write(batch)
        return count + len(batch)

    def delete(self, name: str) -> None:
        """Removes an adapter. Its numbers stay in the file until `compact`.

        Raises:
          InputError: there is none of that name, or the bank cannot be written.
        """
        with self._index.transaction() as transaction:
            if not transaction.delete(name):
                raise self._unknown(name)

    def compact(self) -> None:
        """Copies the numbers of all adapters to a new file, and removes kinds that no adapter has.

        Others can read meanwhile, but not write. A process that is killed leaves the bank as it was, or compacted.

        Raises:
          InputError: the bank cannot be written, there is no room on the disk, or an adapter cannot be read.
        """
        with self._index.transaction() as transaction:
            last = self._last_file()
            self._copy(last + 1, transaction)
            transaction.set_meta("file", str(last + 1))
            transaction.remove_unused_kinds()
        for path in self.path.glob("numbers.*"):
            # A later file may be that of another compaction, which has committed since.
            if path.suffix[1:].isdecimal() and int(path.suffix[1:]) <= last:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _copy(self, number: int, transaction: Transaction) -> None:
        path, place = self._file(number), 0
        try:
            # A new file, since one of that name may be a link to any file of the user.
            path.unlink(missing_ok=True)
            with path.open("xb") as file:
                rows = self._index.rows()
                while page := list(itertools.islice(rows, _AT_ONCE)):
                    moved = []
                    for row in page:
                        count = self._known_kind(row.kind).size
                        file.write(self._opened(row.file).read(row.place, count))
                        moved.append(row._replace(file=number, place=place))
                        place += count
                    transaction.put(moved)
                file.flush()
                os.fsync(file.fileno())
            sync(self.path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {reason(error)}") from None

    def _row(self, name: str) -> Row:
        row = self._index.row(name)
        if row is None:
            raise self._unknown(name)
        return row

    def _unknown(self, name: str) -> InputError:
        return InputError(f"{self.path} has no adapter {shown(name)}")

    def _file(self, number: int) -> Path:
        return self.path / f"numbers.{number}"

    def _last_file(self) -> int:
        text = self._index.meta("file")
        if not text.isdecimal() or len(text) > 9:
            raise InputError(f"{self._index.path} is damaged: its number of a file is {shown(text)}")
        return int(text)

    def _opened(self, file: int) -> Numbers:
        numbers = self._numbers
        if numbers is None or numbers.path != self._file(file):
            self._numbers = numbers = Numbers(self._file(file))
        return numbers

    def _known_kind(self, number: int) -> Kind:
        return self._kinds[number] if number in self._kinds else self._parsed_kind(number, self._index.kind(number))

    def _parsed_kind(self, number: int, texts: tuple[str, str]) -> Kind:
        if number not in self._kinds:
            self._kinds[number] = Kind.parse(*texts, self.config, f"{self._index.path}: kind {number}")
        return self._kinds[number]

    def _new(self, name: str, adapter: Adapter, metadata: Mapping[str, str] | None) -> _New:
        check_name(name)
        try:
            kind = self._new_kind(adapter.method, adapter.options)
            text = self._metadata_text(metadata)
        except InputError as error:
            raise InputError(f"{name} cannot be registered: {error}") from None
        data = kind.flat(name, adapter, self.config)
        return _New(name, kind, data, kind.digest(data), text)

    def _metadata_text(self, metadata: Mapping[str, str] | None) -> str | None:
        if not metadata:
            return None
        if metadata.get("base_fingerprint", self.fingerprint) != self.fingerprint:
            raise InputError(f"it was trained on another base than the bank's ({self.fingerprint[:12]})")
        kept = {key: value for key, value in metadata.items() if key not in _OF_THE_BANK}
        for key, value in kept.items():
            if not isinstance(value, str):
                raise InputError(f"its metadata {shown(key)} are {shown(value)}, not text")
        text = json.dumps(kept, sort_keys=True)
        if len(text) > LONGEST_TEXT:
            raise InputError(f"its metadata have {len(text):,} characters, and a bank takes up to {LONGEST_TEXT:,}")
        return text if kept else None

    def _write(self, batch: list[_New]) -> None:
        with self._index.transaction() as transaction:
            file = self._last_file()
            place = append(self._file(file), (new.numbers for new in batch))
            kinds, rows = {}, []
            for new in batch:
                if id(new.kind) not in kinds:
                    kinds[id(new.kind)] = transaction.kind(new.kind.method, new.kind.text)
                rows.append(Row(new.name, kinds[id(new.kind)], file, place, new.digest, new.metadata))
                place += new.kind.size
            transaction.put(rows)


def _read(row: Row, kind: Kind, numbers: Numbers) -> dict[str, np.ndarray]:
    """Returns the arrays of an adapter by name, as views of one array."""
    flat = numbers.read(row.place, kind.size)
    if kind.digest(flat) != row.digest:
        raise InputError(f"{numbers.path} is damaged: the numbers of {row.name!r} are not those that were registered")
    return kind.arrays(flat)


def _create(path: Path, base: FingerprintedBase) -> None:
    text = json.dumps({"config": identity(base.config), "fingerprint": base.fingerprint}, sort_keys=True)
    with new_folder(path) as folder:
        (folder / "numbers.1").touch()
        try:
            Index.create(folder / INDEX, {"base": text, "file": "1"})
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be written: {error}") from None


def _check_base(path: Path, config: LlamaConfig, fingerprint: str, base: FingerprintedBase) -> None:
    theirs, ours = dataclasses.asdict(config), dataclasses.asdict(base.config)
    if differences := [f"{name} {theirs[name]} against {ours[name]}" for name in ours if theirs[name] != ours[name]]:
        raise InputError(f"{path} holds adapters of another model than this base: {', '.join(differences)}")
    if fingerprint != base.fingerprint:
        raise InputError(
            f"{path} holds adapters of a base of the same shape with other weights "
            f"(fingerprint {fingerprint[:12]} against {base.fingerprint[:12]})"
        )
