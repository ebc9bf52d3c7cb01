"""Compaction of a bank: adapters stay, whoever reads, writes or compacts meanwhile; the rest is freed."""

from pathlib import Path

import pytest
from banks import check_equal, refusal, value_of

from aligner_jax.peft import bank as bank_module
from aligner_jax.peft import bank_index, init_adapter
from aligner_jax.peft.bank import Bank, Entry


def test_compaction_leaves_what_is_there(bank: Bank, filled, tmp_path: Path):
    bank.register_many(Entry(f"n{i}", filled(i)) for i in range(300))
    other = Bank.open(bank.path)
    gone, kept = other.get("n7"), bank.get("n8")
    for i in range(100):
        bank.delete(f"n{i}")
    bank.register("n200", filled(-1), metadata={"x": "y"})
    before = {name: bank.get(name).key for name in bank.names()}
    (bank.path / "numbers.txt").touch()
    bank.compact()
    assert sorted(path.name for path in bank.path.glob("numbers*")) == ["numbers.2", "numbers.txt"]
    assert (bank.path / "numbers.2").stat().st_size == 200 * 4 * (16 + 2 * 4)
    for opened in (bank, other):
        assert {name: opened.get(name).key for name in opened.names()} == before
        assert [value_of(opened.get(f"n{i}")) for i in (100, 200, 299)] == [100, -1, 299]
    assert (value_of(gone), value_of(kept), bank.metadata("n200")) == (7, 8, {"x": "y"})
    bank.register("new", filled(5))
    assert value_of(other.get("new")) == 5
    other.close()


def test_a_compaction_leaves_the_files_of_one_that_overtook_it(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    bank.register_many(Entry(f"n{i}", filled(i)) for i in range(3))
    with Bank.open(bank.path) as other, monkeypatch.context() as patch:
        listed = Path.glob

        def overtake(path: Path, pattern: str):
            patch.setattr(Path, "glob", listed)
            other.compact()
            other.register("new", filled(7))
            return listed(path, pattern)

        patch.setattr(Path, "glob", overtake)
        bank.compact()
    with Bank.open(bank.path) as opened:
        assert [value_of(opened.get(name)) for name in ("n0", "n1", "n2", "new")] == [0, 1, 2, 7]
    assert [path.name for path in bank.path.glob("numbers*")] == ["numbers.3"]


def test_kinds_without_adapters_are_freed(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bank_index, "MOST_KINDS", 3)
    ranks = [init_adapter("lora", bank.config, rank=rank) for rank in (1, 2, 3)]
    for name, adapter in zip("abc", ranks, strict=True):
        bank.register(name, adapter)
    assert "compacting the bank frees those without adapters" in refusal(bank.register, "d", filled(1))
    with Bank.open(bank.path) as other:
        check_equal(other.get("c"), ranks[2])
        bank.delete("a")
        bank.register("c", ranks[1])
        assert other.kinds() == bank.kinds() == [("lora", ranks[1].options)]
        bank.compact()
        # A number that was used again would be a LoRA of rank 3 here.
        bank.register("d", filled(1))
        check_equal(other.get("d"), filled(1))
        assert other.kinds() == [("lora", ranks[1].options), ("aligner", filled(1).options)]


def test_a_lookup_of_an_adapter_whose_kind_a_compaction_removes_says_so(bank: Bank, filled, monkeypatch):
    bank.register("a", filled(1))
    bank.register("b", init_adapter("lora", bank.config))
    with Bank.open(bank.path) as other:
        rows, found = [other._index.row("a")], other._index.row
        other.get("b")
        bank.delete("a")
        bank.compact()
        monkeypatch.setattr(other, "_opened", lambda file: None)
        monkeypatch.setattr(other._index, "row", lambda name: rows.pop() if rows else found(name))
        assert refusal(other.get, "a") == f"{bank.path} has no adapter 'a'"


def test_a_compaction_that_is_killed_leaves_the_bank_as_it_was(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    bank.register_many(Entry(f"n{i}", filled(i)) for i in range(10))
    bank.delete("n0")

    def crash(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "sync", crash)
        with pytest.raises(KeyboardInterrupt):
            bank.compact()
    assert sorted(path.name for path in bank.path.glob("numbers*")) == ["numbers.1", "numbers.2"]
    assert [value_of(bank.get(f"n{i}")) for i in range(1, 10)] == [*range(1, 10)]
    bank.register("x", filled(20))
    bank.compact()
    assert [path.name for path in bank.path.glob("numbers*")] == ["numbers.2"]
    assert [value_of(bank.get(name)) for name in ("n9", "x")] == [9, 20]


def test_a_lookup_that_a_compaction_overtakes_is_repeated(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    bank.register_many(Entry(f"n{i}", filled(i)) for i in range(3))
    with Bank.open(bank.path) as other:
        rows = [other._index.row("n1")]
        bank.compact()
        found = other._index.row
        monkeypatch.setattr(other._index, "row", lambda name: rows.pop() if rows else found(name))
        assert value_of(other.get("n1")) == 1
