"""scripts/damage/torture_resume.py: a few cases, and a check that it detects faults."""

import random
import shutil
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime import checkpoint
from scripts.damage import torture_damage
from scripts.damage.torture_damage import DAMAGES, STEPS, damage_restores, damaged_case, save_all


def test_damaged_checkpoints_are_never_taken_for_whole_ones(tmp_path: Path):
    results = damage_restores(tmp_path, 20, 0, tmp_path / "record.jsonl")
    outcomes = {result["outcome"] for result in results}
    assert outcomes <= {"the newest", "an earlier one", "nothing whole is left", "one sentence"}
    assert {"the newest", "an earlier one"} <= outcomes
    # Recorded cases do not run again.
    shutil.rmtree(tmp_path / "good_0")
    assert damage_restores(tmp_path, 20, 0, tmp_path / "record.jsonl") == results


@pytest.mark.parametrize("name", DAMAGES)
def test_every_kind_of_damage_changes_what_it_says(tmp_path: Path, name: str):
    save_all(tmp_path / "checkpoints")

    def content() -> dict[str, bytes]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else b"folder"
            for path in tmp_path.rglob("*")
        }

    before, touched = content(), set()
    # A case may hit an empty file, or swap two equal ones.
    for seed in range(20):
        touched |= set(DAMAGES[name](tmp_path / "checkpoints", random.Random(seed)))
        if content() != before:
            break
    after = content()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed
    if touched:
        steps = {path.relative_to(tmp_path / "checkpoints").parts[0] for path in touched}
        assert {Path(path).parts[1] for path in changed} & {str(step) for step in STEPS} <= steps


def test_a_wrong_resume_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_all(tmp_path / "good")
    monkeypatch.setitem(torture_damage.DAMAGES, "flip a bit", torture_damage._swap_steps)
    for name in set(DAMAGES) - {"flip a bit"}:
        monkeypatch.delitem(torture_damage.DAMAGES, name)
    monkeypatch.setattr(checkpoint, "_check", lambda *_: None)

    def cases():
        for case in range(20):
            damaged_case(tmp_path / "good", tmp_path / f"case_{case}", random.Random(case))

    with pytest.raises(AssertionError, match="the state is not that of step"):
        cases()


def test_a_checkpoint_under_another_number_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_all(tmp_path / "run")
    (tmp_path / "run" / "9").rename(tmp_path / "run" / "12")
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        step, _, _ = checkpoints.restore(torture_damage.state_of(0))
    assert step == 6
    assert "12 is damaged (it is the one of step 9); it is now damaged_12" in caplog.text


def test_what_cannot_be_set_aside_is_one_sentence(tmp_path: Path):
    save_all(tmp_path / "run")
    (tmp_path / "run" / "9" / "checksums.json").unlink()
    (tmp_path / "run" / "damaged_9").write_text("a file, where the folder would go")
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    with checkpoints, pytest.raises(InputError, match=r"run/9 is damaged and cannot be set aside: Not a directory$"):
        checkpoints.restore(torture_damage.state_of(0))
