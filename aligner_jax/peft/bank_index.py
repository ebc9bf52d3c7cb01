"""The index of a bank: a SQLite file that says where the numbers of every adapter are.

The file may come from a stranger or a bad disk. SQLite may neither play back a rollback journal beside it nor write
through a link; its schema must be this module's to the letter, so that no trigger or view runs; texts and blobs have
bounds; and every row has a checksum.
"""

import contextlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MAX_INTEGER, shown

FORMAT_VERSION = 1
MOST_KINDS = 1000
LONGEST_TEXT = 2**16
"""Length of options and of metadata at most."""
_APPLICATION = 0x616A626B
_SECONDS = 60.0
_PAGE = 256
_LONGEST_NAME = 200
_MAX_PLACE = 2**60
_ERRORS = (sqlite3.Error, UnicodeError)
"""Errors from a damaged file; SQLite's own message may hold bytes of it that are not UTF-8."""
_SCHEMA = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "kinds": (
        "CREATE TABLE kinds (id INTEGER PRIMARY KEY, method TEXT NOT NULL, options TEXT NOT NULL, "
        "checksum INTEGER NOT NULL)"
    ),
    "adapters": (
        "CREATE TABLE adapters (name TEXT PRIMARY KEY, kind INTEGER NOT NULL, file INTEGER NOT NULL, "
        "place INTEGER NOT NULL, digest BLOB NOT NULL, metadata TEXT, checksum INTEGER NOT NULL) WITHOUT ROWID"
    ),
}


class Row(NamedTuple):
    """An adapter in the index.

    Attributes:
      name: its name.
      kind: index of its method and options.
      file: number of the file that holds its numbers.
      place: index of its first number in the file.
      digest: SHA-256 of method, options and numbers.
      metadata: JSON object of texts, or None.
    """

    name: str
    kind: int
    file: int
    place: int
    digest: bytes
    metadata: str | None

    @property
    def checksum(self) -> int:
        """Checksum of all fields."""
        text = f"{self.name}\0{self.kind}\0{self.file}\0{self.place}\0{self.digest.hex()}\0{self.metadata}"
        return zlib.crc32(text.encode())


class Index:
    """An open index. Threads may share it; they read while one of them, or another process, writes."""

    def __init__(self, path: Path, *, can_write: bool = True) -> None:
        """Opens an index, and checks its version and its schema.

        Args:
          path: path of the file.
          can_write: False if the folder cannot be written.

        Raises:
          InputError: the file is damaged, no index of a bank, or of a newer format; or there is a file beside it that
            no bank has.
        """
        self.path = path
        _check_files(path)
        self._reading, self._writing = threading.Lock(), threading.Lock()
        wal = path.with_name(f"{path.name}-wal")
        # Without a folder to write to, SQLite can read this format only if it need not look for other writers.
        options = "mode=rw" if can_write else "mode=ro" if wal.exists() else "mode=ro&immutable=1"
        self._reader = self._connected(options)
        self._writer = self._connected(options) if can_write else None

    @classmethod
    def create(cls, path: Path, meta: dict[str, str]) -> None:
        """Writes a new index without adapters. Raises sqlite3.Error."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for statement in _SCHEMA.values():
                connection.execute(statement)
            for key, value in meta.items():
                connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (key, value, _checksum(key, value)))

    def close(self) -> None:
        """Closes the file."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()

    def meta(self, key: str) -> str:
        """Returns a text of the table `meta`. Raises InputError if it is missing or damaged."""
        found = self._rows("SELECT value, checksum FROM meta WHERE key = ?", (key,))
        if not found or not isinstance(found[0][0], str) or found[0][1] != _checksum(key, found[0][0]):
            raise self._damaged(f"its {key} is missing or changed")
        return found[0][0]

    def row(self, name: str) -> Row | None:
        """Returns the adapter of a name, None if there is none. Raises InputError if the index is damaged."""
        # SQLite cannot be asked for names with lone surrogates, or for very long ones.
        found = [] if name_problem(name) else self._rows(f"{_SELECT} WHERE name = ?", (name,))
        return self._checked(found[0]) if found else None

    def rows(self) -> Iterator[Row]:
        """Yields all adapters, sorted by name; reads some at a time, so that others can write meanwhile."""
        name = ""
        while page := self._rows(f"{_SELECT} WHERE name > ? ORDER BY name LIMIT {_PAGE}", (name,)):
            for values in page:
                row = self._checked(values)
                name = self._next(name, row.name)
                yield row

    def names(self, after: str = "") -> Iterator[str]:
        """Yields the names behind `after` in order, like `rows`."""
        # No longer than what a name can be compared with, since SQLite refuses very long texts.
        name = after[: _LONGEST_NAME + 1]
        while page := self._rows(f"SELECT name FROM adapters WHERE name > ? ORDER BY name LIMIT {_PAGE}", (name,)):
            for (following,) in page:
                name = self._next(name, following)
                yield name

    def count(self) -> int:
        """Returns the number of adapters, which takes time in proportion to it."""
        return self._rows("SELECT count(*) FROM adapters", ())[0][0]

    def kind(self, number: int) -> tuple[str, str]:
        """Returns method and options (JSON) of a kind. Raises InputError if it is missing or damaged."""
        found = self._rows("SELECT method, options, checksum FROM kinds WHERE id = ?", (number,))
        return self._checked_kind(number, found[0] if found else ())

    def kinds(self) -> dict[int, tuple[str, str]]:
        """Returns method and options (JSON) of all kinds that adapters have, by number; see `kind`.

        Takes time in proportion to the number of adapters.
        """
        # One statement, since a compaction may remove kinds after it.
        found = self._rows(
            "SELECT id, method, options, checksum FROM kinds WHERE id IN (SELECT kind FROM adapters) "
            f"ORDER BY id LIMIT {MOST_KINDS}",
            (),
        )
        return {number: self._checked_kind(number, values) for number, *values in found}

    @contextlib.contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Yields a transaction, which is committed and on disk when the block ends, or rolled back if it fails.

        There is one at a time, of all threads and processes.

        Raises:
          InputError: the index cannot be written, or another process writes for more than a minute.
        """
        writer = self._writer
        if writer is None:
            raise InputError(f"{self.path} cannot be written: its folder is read-only")
        with self._writing:
            try:
                writer.execute("BEGIN IMMEDIATE")
                try:
                    yield Transaction(self.path, writer)
                    writer.execute("COMMIT")
                finally:
                    if writer.in_transaction:
                        writer.execute("ROLLBACK")
            except _ERRORS as error:
                raise self._failed(error, "written") from None

    def _connected(self, options: str) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?{options}", uri=True, timeout=_SECONDS, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
        except _ERRORS as error:
            raise self._failed(error, "opened") from None
        try:
            self._prepare(connection)
        except _ERRORS as error:
            connection.close()
            raise self._failed(error, "opened") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_TRUSTED_SCHEMA, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * LONGEST_TEXT)
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "synchronous = FULL"):
            connection.execute(f"PRAGMA {setting}")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise InputError(f"{self.path} is not the index of a bank of adapters")
        if not 1 <= version <= FORMAT_VERSION:
            raise InputError(f"{self.path} has format version {version}, and this release reads up to {FORMAT_VERSION}")
        found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 8").fetchall()
        if sorted(found, key=str) != sorted((("table", name, name, sql) for name, sql in _SCHEMA.items()), key=str):
            raise self._damaged("its tables are not those of a bank")

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[tuple]:
        try:
            with self._reading:
                return self._reader.execute(statement, values).fetchall()
        except _ERRORS as error:
            raise self._failed(error, "read") from None

    def _checked(self, values: tuple) -> Row:
        row, checksum = Row(*values[:-1]), values[-1]
        typed = (
            isinstance(row.name, str)
            and all(isinstance(x, int) and x >= 0 for x in (row.kind, row.file, row.place))
            and isinstance(row.digest, bytes)
            and isinstance(row.metadata, str | None)
        )
        if not typed or row.checksum != checksum or row.place > _MAX_PLACE or row.file > MAX_INTEGER:
            raise self._damaged(f"the row of {shown(row.name)} is changed")
        return row

    def _checked_kind(self, number: int, values: Sequence[object]) -> tuple[str, str]:
        match values:
            case (str(method), str(options), int(checksum)) if checksum == _checksum(method, options):
                return method, options
        raise self._damaged(f"its kind {number} is missing or changed")

    def _next(self, name: str, following: object) -> str:
        # A damaged tree can be unsorted, and reading on from a name would then never end.
        if not isinstance(following, str) or following <= name or name_problem(following):
            raise self._damaged("its names are changed")
        return following

    def _damaged(self, problem: str) -> InputError:
        return InputError(f"{self.path} is damaged: {problem}; take another copy of it")

    def _failed(self, error: Exception, done: str) -> InputError:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return InputError(f"{self.path} cannot be {done}: another process has been writing it for a minute")
        why = "it is damaged" if isinstance(error, UnicodeError) else error
        return InputError(f"{self.path} cannot be {done}: {why}")


class Transaction:
    """Changes of an index that are made together."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._connection = path, connection

    def kind(self, method: str, options: str) -> int:
        """Returns the number of a kind, which is added if it is new. Raises InputError if there are too many."""
        execute = self._connection.execute
        found = execute("SELECT id FROM kinds WHERE method = ? AND options = ?", (method, options)).fetchone()
        if found is not None:
            return found[0]
        if execute("SELECT count(*) FROM kinds").fetchone()[0] >= MOST_KINDS:
            raise InputError(
                f"{self._path} has had adapters of {MOST_KINDS} methods and options, and takes no more; compacting the "
                "bank frees those without adapters"
            )
        values = method, options, _checksum(method, options)
        number = execute("INSERT INTO kinds (method, options, checksum) VALUES (?, ?, ?)", values).lastrowid
        assert number is not None
        return number

    def remove_unused_kinds(self) -> None:
        """Removes kinds that no adapter has, except the last one.

        SQLite gives the next kind the number after the last, so a number is never used again, and other processes can
        keep the kinds they have read.
        """
        self._connection.execute(
            "DELETE FROM kinds WHERE id NOT IN (SELECT kind FROM adapters) AND id < (SELECT max(id) FROM kinds)"
        )

    def put(self, rows: Iterable[Row]) -> None:
        """Adds adapters, or replaces those of the same names."""
        values = ((*row, row.checksum) for row in rows)
        self._connection.executemany("INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def delete(self, name: str) -> bool:
        """Removes an adapter. Returns False if there was none."""
        if name_problem(name):
            return False
        return self._connection.execute("DELETE FROM adapters WHERE name = ?", (name,)).rowcount > 0

    def set_meta(self, key: str, value: str) -> None:
        """Changes a text of the table `meta`."""
        values = (value, _checksum(key, value), key)
        self._connection.execute("UPDATE meta SET value = ?, checksum = ? WHERE key = ?", values)


def name_problem(name: str) -> str | None:
    """Returns why an adapter cannot have this name; None if it can.

    A server joins names with "+" and "@", and a folder of files has names with neither "/" nor a dot in front.
    """
    if not 1 <= len(name) <= _LONGEST_NAME:
        return f"it has {len(name)} characters, but should have 1 to {_LONGEST_NAME}"
    if not name.isprintable() or name.strip() != name:
        return "it has characters that cannot be printed, or white space at an end"
    if name[0] == "." or any(letter in name for letter in "/\\@+"):
        return "it begins with a dot, or has one of / \\ @ +"
    return None


def check_name(name: str) -> None:
    """Refuses names that an adapter cannot have. Raises InputError."""
    if problem := name_problem(name):
        raise InputError(f"{shown(name)} cannot be the name of an adapter: {problem}")


def _check_files(path: Path) -> None:
    # SQLite plays a journal back before the first statement, and removes the file that is named at its end.
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):
        raise InputError(f"{journal} is a file that no bank has, and could harm other files; take another copy")
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        # SQLite would write to the target of a link, and wait for a pipe.
        if os.path.islink(file) or (os.path.lexists(file) and not os.path.isfile(file)):
            raise InputError(f"{file} is a link, a folder, a device or a pipe, not a file; take another copy")


_SELECT = "SELECT name, kind, file, place, digest, metadata, checksum FROM adapters"


def _checksum(*texts: str) -> int:
    return zlib.crc32(json.dumps(texts).encode())
