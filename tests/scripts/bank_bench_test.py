"""The benchmark of banks at a small size: its bank holds what it says, and targets that are missed are named."""

from pathlib import Path

import pytest

from aligner_jax.model.config import llama_config
from aligner_jax.peft.bank import Bank
from scripts.bench import bank
from scripts.bench.bank_touch import NUMBERS, name_of


def test_the_bank_is_made_and_read_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base, folder = bank.NamedBase(llama_config("smollm2_135m")), tmp_path / "bank"
    made = bank.registered(folder, base, 60, singly=5)
    assert made["bytes"]["numbers.1"] == 60 * 4 * NUMBERS
    with Bank.open(folder, base) as opened:
        assert list(opened.names()) == [name_of(index) for index in range(60)]
        assert len({opened.get(name).key for name in opened.names()}) == 60
    touched = [bank.touched(folder, 60, 60, way) for way in ("cold", "read", "map")]
    for each in touched:
        assert each["numbers"] == 60 * 4 * NUMBERS
        assert 0 < each["get"]["least"] <= each["get"]["p50"] <= each["get"]["p99"]
    bank.show({"adapters": 60, "register": made, "open": bank.opened(folder, base), "touch": touched})
    assert "60 adapters registered in" in capsys.readouterr().out


def test_targets_that_are_missed_are_named(capsys: pytest.CaptureFixture[str]):
    good = {
        "touch": [{"way": "read", "memory": 110, "numbers": 100}, {"way": "map", "memory": 900, "numbers": 100}],
        "admission": {"alone": {"a new adapter": {"p50": 0.9e-3}}, "compilations": 0},
    }
    assert bank.misses(good) == []
    bad = {
        "touch": [{"way": "read", "memory": 111, "numbers": 100}],
        "admission": {"alone": {"a new adapter": {"p50": 1.1e-3}}, "compilations": 1},
    }
    assert bank.misses(bad) == ["memory", "admission of 1 ms", "no compilation"]
    assert capsys.readouterr().out.count("missed") == 3


def test_a_disk_that_is_too_full_is_noticed_before(tmp_path: Path):
    with pytest.raises(SystemExit, match="are needed: use --scratch"):
        bank.check_room(tmp_path, 10**18)
