"""Banks of adapters: the numbers, the bytes of the index, and its tables as a stranger could change them."""

import random
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.peft.bank import INDEX, Bank, Entry
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

_NUMBERS = "numbers.1"
_ADAPTERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("aligner", {"num_tokens": 1, "start_layer": 1}),
    ("llama_adapter", {"num_tokens": 2, "start_layer": 1}),
    ("lora", {"rank": 2, "targets": ("q", "down")}),
)
_COLUMNS = {
    "meta": ("key", "value", "checksum"),
    "kinds": ("id", "method", "options", "checksum"),
    "adapters": ("name", "kind", "file", "place", "digest", "metadata", "checksum"),
}
_STATEMENTS = (
    "CREATE VIEW more AS SELECT name FROM adapters",
    "CREATE TRIGGER more AFTER INSERT ON adapters BEGIN DELETE FROM kinds; END",
    "CREATE INDEX more ON adapters (place)",
    "CREATE TABLE more (x)",
    "CREATE VIRTUAL TABLE more USING fts5(x)",
    "ALTER TABLE adapters ADD COLUMN more",
    "DROP TABLE kinds",
    "DELETE FROM meta",
    "DELETE FROM kinds",
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 1",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA encoding = 'UTF-16'",
    "VACUUM",
)


class _Base(NamedTuple):
    config: LlamaConfig = LlamaConfig(40, 16, 24, 3, 4, 2, 4)
    fingerprint: str = "0123456789abcdef" * 4


def _entries(count: int) -> dict[str, Entry]:
    rng, base, made = np.random.default_rng(0), _Base(), {}
    for index in range(count):
        method, given = _ADAPTERS[index % len(_ADAPTERS)]
        options = METHODS[method].options(**given)
        shapes = METHODS[method].shapes(options, base.config)
        arrays: dict[str, Any] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        metadata = {"prompt_format": '{"template": "chat"}'} if index % 2 else None
        made[f"n{index}"] = Entry(f"n{index}", Adapter(arrays, method=method, options=options), metadata)
    return made


_REGISTERED = _entries(300)


def _samples() -> list[Files]:
    made = []
    for count in (1, 6, 300):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bank"
            with Bank.open(folder, _Base(), create=True) as bank:
                bank.register_many(list(_REGISTERED.values())[:count])
            made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    return made


def _mutate(rng: random.Random, files: Files) -> Files:
    change = rng.randrange(8)
    if change == 0:
        return {**files, _NUMBERS: mutations.of_bytes(rng, files[_NUMBERS])}
    if change < 4:
        return {**files, INDEX: mutations.of_bytes(rng, files[INDEX])}
    if change == 4 and rng.randrange(4) == 0:
        return {name: content for name, content in files.items() if rng.randrange(2)}
    return {**files, INDEX: _with_other_tables(rng, files[INDEX])}


def _with_other_tables(rng: random.Random, index: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / INDEX
        path.write_bytes(index)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            if rng.randrange(3) == 0:
                connection.execute(rng.choice(_STATEMENTS))
            else:
                table = rng.choice(list(_COLUMNS))
                column, key = rng.choice(_COLUMNS[table]), _COLUMNS[table][0]
                chosen = f"{key} IN (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {rng.randrange(3)})"
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {chosen}", (_value(rng),))
        except (sqlite3.Error, UnicodeError, OverflowError):
            # The change is not possible, so the bytes are damaged instead.
            return mutations.of_bytes(rng, index)
        finally:
            connection.close()
        return path.read_bytes()


def _value(rng: random.Random) -> Any:
    value = rng.choice((*mutations.VALUES, b"", b"\xff" * 32, "x" * 70_000, b"x" * 200_000))
    return value if isinstance(value, str | bytes | int | float | None) else repr(value)


def _read(folder: Path) -> str:
    with Bank.open(folder, _Base()) as bank:
        names = list(bank.names())
        for name in names:
            stored, prompt_format, registered = bank.get(name), bank.prompt_format(name), _REGISTERED[name]
            assert (stored.method, stored.options) == (registered.adapter.method, registered.adapter.options)
            assert (prompt_format is None) == (registered.metadata is None)
            arrays = stored.read()
            assert arrays.keys() == registered.adapter.trainable.keys()
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, registered.adapter.trainable[key])
        bank.kinds()
    return " ".join(names)


def _may_differ(_: Files, __: Files) -> bool:
    # A bank without an adapter is a bank too. `_read` checks all that it is given.
    return True


KIND = Kind("bank", _samples, _mutate, _read, _may_differ)
