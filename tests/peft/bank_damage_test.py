"""Banks that are damaged, hostile or of a newer release: one sentence names the file, and nothing wrong is read."""

import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_files import NamedBase

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import init_adapter
from aligner_jax.peft.bank import INDEX, Bank, Entry
from aligner_jax.peft.bank_index import Index, Row


@pytest.fixture
def folder(tmp_path: Path, config: LlamaConfig) -> Path:
    """A closed bank of adapters n0 to n9, whose numbers are their own."""
    fresh, path = init_adapter("aligner", config, start_layer=1), tmp_path / "bank"
    with Bank.open(path, NamedBase(config), create=True) as bank:
        for i in range(10):
            filled = {name: np.full(x.shape, i, np.float32) for name, x in fresh.trainable.items()}
            bank.register_many([Entry(f"n{i}", fresh.replace(trainable=filled), {"note": f"of {i}"})])
    return path


def read(folder: Path) -> None:
    """Reads everything, and checks that what is not refused is as it was registered."""
    with Bank.open(folder) as bank:
        for name in bank.names():
            assert bank.metadata(name) == {"note": f"of {name[1:]}"}
            for array in bank.get(name).read().values():
                assert (array == float(name[1:])).all()
        bank.kinds()


def refusal(folder: Path, function: Callable = read) -> str:
    """Returns the sentence with which a bank is refused; it names the folder."""
    with pytest.raises(InputError) as caught:
        function(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def execute(folder: Path, *statements: str) -> None:
    """Changes the index as a stranger could."""
    connection = sqlite3.connect(folder / INDEX, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_an_undamaged_bank_is_read(folder: Path):
    read(folder)


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (("PRAGMA user_version = 2",), "has format version 2, and this release reads up to 1"),
        (("PRAGMA user_version = 0",), "has format version 0"),
        (("PRAGMA application_id = 7",), "is not the index of a bank"),
        (("CREATE TABLE more (x)",), "its tables are not those of a bank"),
        (("CREATE INDEX more ON kinds (method)",), "its tables are not those of a bank"),
        (("CREATE VIEW more AS SELECT 1",), "its tables are not those of a bank"),
        (
            ("CREATE TRIGGER more AFTER DELETE ON adapters BEGIN DELETE FROM kinds; END",),
            "its tables are not those of a bank",
        ),
        (
            ("DROP TABLE adapters", "CREATE VIEW adapters AS SELECT 'n0' name"),
            "its tables are not those of a bank",
        ),
        (("ALTER TABLE adapters ADD COLUMN x GENERATED ALWAYS AS (1)",), "its tables are not those of a bank"),
        (("UPDATE meta SET value = '2' WHERE key = 'base'",), "its base is missing or changed"),
        (("UPDATE meta SET value = 2.5 WHERE key = 'base'",), "its base is missing or changed"),
        (("DELETE FROM meta",), "its base is missing or changed"),
        (("DELETE FROM kinds",), "its kind 1 is missing or changed"),
        (("UPDATE kinds SET method = x'00'",), "its kind 1 is missing or changed"),
        (("UPDATE kinds SET options = '{}'",), "its kind 1 is missing or changed"),
        (("UPDATE kinds SET options = hex(zeroblob(60000))",), "its kind 1 is missing or changed"),
        (("UPDATE adapters SET name = 'a/b' WHERE name = 'n3'",), "its names are changed"),
        (("UPDATE adapters SET name = 'x' WHERE name = 'n3'",), "the row of 'x' is changed"),
        (("UPDATE adapters SET kind = 'x'",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET place = place + 24",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET place = -1",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET file = 2",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET digest = zeroblob(32)",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET digest = 'x'",), "the row of 'n0' is changed"),
        (("UPDATE adapters SET metadata = NULL WHERE name = 'n9'",), "the row of 'n9' is changed"),
        (("UPDATE adapters SET metadata = '{\"note\": \"of 8\"}' WHERE name = 'n9'",), "the row of 'n9' is changed"),
        (("UPDATE adapters SET metadata = zeroblob(1000000)",), "cannot be read"),
    ],
)
def test_a_changed_index_is_refused(statements: tuple[str, ...], sentence: str, folder: Path):
    execute(folder, *statements)
    assert sentence in refusal(folder)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"file": 2}, "there is no file"), ({"place": 2**61}, "is changed"), ({"place": 2**40}, "is truncated")],
)
def test_a_row_with_a_right_checksum_is_checked_too(values: dict, sentence: str, folder: Path):
    index = Index(folder / INDEX)
    row = index.row("n3")
    assert row is not None
    with index.transaction() as transaction:
        transaction.put([Row(*row)._replace(**values)])
    index.close()
    assert sentence in refusal(folder)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("newer", "{}", "kind 1 cannot be used: adapter method 'newer' is not one of"),
        ("aligner", "{", "kind 1 cannot be used: options is not JSON"),
        ("aligner", '{"num_tokens": 1e99}', "kind 1 cannot be used"),
        ("aligner", '{"newer": 1}', "kind 1 cannot be used: adapter method 'aligner' has no option 'newer'"),
        ("aligner", '{"num_tokens": 2000000000}', "is truncated"),
        ("aligner", '{"num_tokens": 1, "start_layer": 1}', "not those that were registered"),
    ],
)
def test_a_kind_with_a_right_checksum_is_checked_too(method: str, options: str, sentence: str, folder: Path):
    index = Index(folder / INDEX)
    with index.transaction() as transaction:
        number = transaction.kind(method, options)
    index.close()
    execute(folder, "DELETE FROM kinds WHERE id = 1", f"UPDATE kinds SET id = 1 WHERE id = {number}")
    assert sentence in refusal(folder)


def test_truncated_and_changed_numbers_are_refused(folder: Path):
    path = folder / "numbers.1"
    content = path.read_bytes()
    for at in range(0, len(content), 37):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        assert refusal(folder) == (
            f"{path} is damaged: the numbers of 'n{at // 96}' are not those that were registered"
        )
    path.write_bytes(content[:-1])
    assert refusal(folder) == f"{path} is truncated: it has 959 bytes, and its index names 960"
    path.unlink()
    assert refusal(folder) == f"there is no file {path}"
    os.mkfifo(path)
    assert refusal(folder) == f"{path} is a device or a pipe, not a file"


def test_numbers_that_are_truncated_under_an_open_bank_are_refused(folder: Path):
    with Bank.open(folder) as bank:
        stored = bank.get("n9")
        stored.read()
        os.truncate(folder / "numbers.1", 100)
        assert "is truncated" in refusal(folder, lambda _: stored.read())


def test_numbers_are_never_written_through_a_link(folder: Path, tmp_path: Path, config: LlamaConfig):
    content, kept = (folder / "numbers.1").read_bytes(), tmp_path / "kept"
    kept.write_bytes(content)
    (folder / "numbers.2").symlink_to(kept)
    with Bank.open(folder) as bank:
        bank.delete("n9")
        bank.compact()
        assert kept.read_bytes() == content
        assert (folder / "numbers.2").stat(follow_symlinks=False).st_size == len(content) * 9 // 10
        (folder / "numbers.2").unlink()
        (folder / "numbers.2").symlink_to(kept)
        adapter = init_adapter("aligner", config)
        assert "numbers.2 cannot be written" in refusal(folder, lambda _: bank.register("new", adapter))
    assert kept.read_bytes() == content


def test_other_files_are_no_index(folder: Path, tmp_path: Path):
    for content in (b"", b"x" * 5000, b"SQLite format 3\0" + bytes(500)):
        (folder / INDEX).write_bytes(content)
        assert refusal(folder).startswith(str(folder))
    (folder / INDEX).unlink()
    (folder / INDEX).mkdir()
    assert "it has no index.sqlite" in refusal(folder)


def hot_journal(index: Path, named: Path) -> bytes:
    """Returns a rollback journal without pages, of a transaction whose super-journal is the file `named`.

    The layout is that of "The Rollback Journal" of SQLite's file format, and of `writeSuperJournal` of its source.
    """
    page_size, pages = struct.unpack_from(">H10xI", index.read_bytes(), 16)
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(named).encode()
    head = (magic + struct.pack(">5I", 0, 0, pages, 512, page_size)).ljust(512, b"\0")
    return head + struct.pack(">I", 2**30 // page_size + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic


def test_a_journal_beside_the_index_is_refused_before_it_is_played_back(folder: Path, tmp_path: Path):
    kept, journal = tmp_path / "kept", folder / f"{INDEX}-journal"
    kept.write_text("a file of the user")
    journal.write_bytes(hot_journal(folder / INDEX, kept))
    assert f"{journal} is a file that no bank has" in refusal(folder)
    assert kept.read_text() == "a file of the user"
    # SQLite itself removes the file, so this journal is one that it believes.
    execute(folder, "SELECT * FROM meta")
    assert not kept.exists()
    journal.unlink(missing_ok=True)
    journal.symlink_to(tmp_path / "nothing")
    assert f"{journal} is a file that no bank has" in refusal(folder)


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_links_and_pipes_in_place_of_the_files_of_the_index_are_refused(ending: str, folder: Path, tmp_path: Path):
    path, kept = folder / f"{INDEX}{ending}", tmp_path / "kept"
    kept.write_bytes((folder / INDEX).read_bytes())
    path.unlink(missing_ok=True)
    for target, sentence in ((kept, "is a link"), (tmp_path / "nothing", "is a link" if ending else "it has no index")):
        path.symlink_to(target)
        assert sentence in refusal(folder)
        path.unlink()
    assert kept.read_bytes()[:6] == b"SQLite"
    if ending:
        os.mkfifo(path)
        assert f"{path} is a link, a folder, a device or a pipe" in refusal(folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bank", "kept"]


def test_no_turned_bit_of_the_index_gives_an_adapter_another_content(folder: Path):
    content = bytearray((folder / INDEX).read_bytes())
    places = [at for at, byte in enumerate(content) if byte]
    sentences = []
    for at in places[::3]:
        content[at] ^= 1 << at % 8
        (folder / INDEX).write_bytes(content)
        try:
            read(folder)
        except InputError as error:
            sentences.append(str(error))
        content[at] ^= 1 << at % 8
        for beside in folder.glob(f"{INDEX}-*"):
            beside.unlink()
    assert all(str(folder) in sentence for sentence in sentences)
    assert len(sentences) > len(places) // 3 // 2
