"""Digests of a task's inputs, by which processes with different files are told apart."""

from pathlib import Path

import pytest
from tiny_runs import on_pairs, pair_rows, write_rows
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.tasks import preference, sft


@pytest.mark.parametrize(("part", "row"), [("training data", "number 1."), ("held-out data", "number 11.")])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_changed_row_changes_the_digest_of_its_part_alone(
    tiny_run: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, part: str, row: str
):
    tiny_run["data"]["heldout_rows"] = 2
    settings, checked = tiny_run, []
    if objective == "dpo":
        settings = on_pairs(tiny_run, write_rows(tmp_path / "pairs.jsonl", pair_rows()))

    def check_same(digests: dict[str, str]) -> None:
        checked.append(digests)
        raise InputError("checked")

    for task in (sft, preference):
        monkeypatch.setattr(task, "check_same", check_same)
    data = Path(settings["data"]["path"])
    for content in (data.read_text(), data.read_text().replace(row, "number 99.")):
        data.write_text(content)
        with pytest.raises(InputError, match=r"^checked$"):
            run(settings, tmp_path / "run")
    was, now = checked
    assert [name for name in was if was[name] != now[name]] == [part]
