"""scripts/pods/xpk.py: shell lines with XPK's flags."""

import re
import shlex
import subprocess
from pathlib import Path

from scripts.pods import xpk

COMMAND = ("python", "-m", "aligner_jax.train", "--config=configs/llama7b_alpaca.py", "--workdir=/mount/run")
FLAGS = ("--name=run", "--image=image", "--cluster=cluster", "--zone=us-west4-a", "--project=project")

# Flags of xpk 1.16's parsers.
STORAGE = {
    "cluster", "zone", "project", "type", "bucket", "mount-point", "readonly", "auto-mount", "size", "mount-options",
}  # fmt: skip
WORKLOAD = {
    "workload", "cluster", "zone", "project", "tpu-type", "num-slices", "docker-image", "max-restarts",
    "restart-on-exit-codes", "termination-grace-period-seconds", "spot", "env", "command",
}  # fmt: skip


def lines(*flags: str, topology: str = "v5e:4x4", command: tuple[str, ...] = COMMAND) -> list[list[str]]:
    text = xpk.main([*FLAGS, f"--topology={topology}", "--bucket=bucket:/mount", *flags, "--", *command])
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    joined = text.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if not line.startswith("#")]


def values(words: list[str]) -> dict[str, str]:
    flags = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
    return {name: value for name, _, value in flags}


def test_every_flag_is_one_of_xpks():
    attach, create = lines("--spot")
    assert attach[:4] == ["xpk", "storage", "attach", "run"]
    assert set(values(attach)) == STORAGE
    assert create[:3] == ["xpk", "workload", "create"]
    assert set(values(create)) == WORKLOAD
    assert "spot" not in values(lines()[1])


def test_the_slices_are_those_asked_for():
    _, create = lines("--slices=2", topology="v5p:2x4x4", command=(*COMMAND, "--config.mesh.slices=2"))
    assert (values(create)["tpu-type"], values(create)["num-slices"]) == ("v5p-64", "2")
    assert "--env=FIRST_HOSTS=run-slice-job-0-0.run,run-slice-job-1-0.run" in create


def test_statuses_that_xpk_would_take_for_a_failure_are_named():
    _, create = lines()
    # XPK begins again after 127 and above by itself.
    named = {int(code) for code in values(create)["restart-on-exit-codes"].split(",")}
    page = (Path(__file__).parents[2] / "docs" / "tpu.md").read_text()
    resumed = {int(number) for number in re.findall(r"\d+", re.search(r"Restart on ([\d, and]+)\.", page)[1])}
    assert {code for code in resumed if code < 127} <= named
    assert not named & {1, 2}


def test_the_command_arrives_as_it_was_given():
    odd = ("printf", "<%s>", "a b", 'it\'s $HOME $(HOME) $$ "so"', "")
    _, create = lines(command=odd)
    # Kubernetes takes $$ for a $.
    line = values(create)["command"].replace("$$", "$")
    root = Path(__file__).parents[2]
    result = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "".join(f"<{word}>" for word in odd[2:])
