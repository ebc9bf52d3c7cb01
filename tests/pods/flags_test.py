"""scripts/pods/flags.py: mistakes are one sentence, before any cloud is asked."""

import pytest

from scripts.pods import flags, jobset, skypilot, xpk
from scripts.pods.slices import Mistake

TRAIN = ("python", "-m", "aligner_jax.train", "--config=configs/llama7b_alpaca.py", "--workdir=/mount/run")
JOBSET = ("--name=run", "--topology=v5e:4x4", "--image=image", "--bucket=bucket:/mount")


@pytest.mark.parametrize(
    ("arguments", "command", "sentence"),
    [
        (JOBSET, (), "there is no command: it comes after --"),
        (("--name=Run", *JOBSET[1:]), TRAIN, "--name=Run should be a letter"),
        (("--name=" + "a" * 41, *JOBSET[1:]), TRAIN, "at most 39"),
        (("--name=run", "--topology=v5e:5x5", *JOBSET[2:]), TRAIN, "v5e has no slice of that shape"),
        ((*JOBSET[:3],), TRAIN, "--workdir is /mount/run, but must lie in a folder .* --bucket=NAME:/PATH"),
        (JOBSET, TRAIN[:-1], "--workdir is missing"),
        (JOBSET, ("python", "-m", "aligner_jax", "train", "--config=quickstart"), "--workdir is missing"),
        (JOBSET, ("aligner-jax", "train", "--config=quickstart"), "--workdir is missing"),
        (JOBSET, (*TRAIN, "--workdir", "/mounted/run"), "--workdir is /mounted/run"),
        ((*JOBSET[:3], "--bucket=bucket"), TRAIN, "is written --bucket=NAME:/PATH"),
        ((*JOBSET[:3], "--bucket=bucket:mount"), TRAIN, "is written --bucket=NAME:/PATH"),
        ((*JOBSET[:3], "--bucket=bucket://mount"), TRAIN, "//mount is no folder that can be mounted"),
        ((*JOBSET[:3], "--bucket=bucket:/"), TRAIN, "/ is no folder that can be mounted"),
        ((*JOBSET, "--claim=disk:/mount"), TRAIN, "two mounts have the same path"),
        ((*JOBSET, "--slices=2"), TRAIN, "the command needs --config.mesh.slices=2"),
        (JOBSET, (*TRAIN, "--config.mesh.slices=2"), "the command needs --config.mesh.slices=1"),
        (("--name=run", "--topology=v5e:2x2", *JOBSET[2:], "--slices=2"), TRAIN, "v5e:2x2 has one host"),
        ((*JOBSET, "--slices=0"), TRAIN, "--slices is at least 1"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], command: tuple[str, ...], sentence: str):
    with pytest.raises(Mistake, match=sentence):
        jobset.main([*arguments, "--", *command])


def test_what_a_recipe_cannot_do_is_said():
    bucket, name = "--bucket=bucket:/mount", "--name=run"
    with pytest.raises(Mistake, match="SkyPilot makes one slice"):
        skypilot.main([name, "--topology=v5e:4x4", "--slices=2", bucket, "--", *TRAIN, "--config.mesh.slices=2"])
    with pytest.raises(Mistake, match="SkyPilot has no such slices"):
        skypilot.main([name, "--topology=tpu7x:2x2x1", bucket, "--", *TRAIN])
    where = ("--image=image", "--cluster=c", "--zone=z", "--project=p")
    with pytest.raises(Mistake, match="XPK makes slices of hosts with 4 chips"):
        xpk.main([name, "--topology=v5e:2x4", "--chips_per_host=8", *where, bucket, "--", *TRAIN])
    with pytest.raises(Mistake, match="no command with line breaks"):
        xpk.main([name, "--topology=v5e:4x4", *where, "--", "echo", "two\nlines"])


def test_commands_other_than_training_need_no_workdir():
    assert "evaluate" in jobset.main([*JOBSET[:3], "--", "python", "-m", "aligner_jax.evaluate", "--config=FILE"])


def test_a_mistake_ends_with_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["jobset", *JOBSET])
    with pytest.raises(SystemExit) as ended:
        flags.run(jobset.main)
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert shown.err.startswith("error: there is no command")


@pytest.mark.parametrize("module", [jobset, xpk, skypilot])
def test_help_lists_the_flags(module, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--name", "--topology", "--slices", "--bucket", "--spot", "-- COMMAND"):
        assert flag in shown
