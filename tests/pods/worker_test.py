"""scripts/pods/worker.sh: waits for the other hosts, then becomes the command."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "pods" / "worker.sh"

# Finds a host once the file of its name is there, and notes who was asked for. Waiting makes the file.
GETENT = """\
#!/bin/bash
echo "$2" >>"$PLACE/asked"
[ -e "$PLACE/hosts/$2" ]
"""
SLEEP = """\
#!/bin/bash
touch "$PLACE/hosts/$(tail -n 1 "$PLACE/asked")"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "hosts").mkdir()
    for name, text in (("getent", GETENT), ("sleep", SLEEP)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def environment(place: Path, **variables: str) -> dict[str, str]:
    return {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "PLACE": str(place), **variables}


def run(place: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words, known = ["bash", str(SCRIPT), *command], environment(place, **variables)
    return subprocess.run(words, env=known, capture_output=True, text=True, check=False)


def test_it_waits_for_its_slice_and_for_every_slice(place: Path):
    names = {"TPU_WORKER_HOSTNAMES": "run-0.run,run-1.run", "FIRST_HOSTS": "other.run"}
    result = run(place, "echo", "a b", **names)
    assert (result.returncode, result.stdout, result.stderr) == (0, "a b\n", "")
    asked = (place / "asked").read_text().split()
    assert asked == [host for host in ("run-0.run", "run-1.run", "other.run") for _ in range(2)]


def test_a_single_host_waits_for_nobody(place: Path):
    assert run(place, "echo", "ready").stdout == "ready\n"
    assert not (place / "asked").exists()


def test_a_host_that_does_not_come_ends_it_with_a_sentence(place: Path):
    result = run(place, "echo", "never", TPU_WORKER_HOSTNAMES="run-0.run", WAIT_FOR_HOSTS="0")
    assert (result.returncode, result.stdout) == (75, "")
    assert "cannot find run-0.run" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_commands_status_is_the_containers(place: Path):
    assert run(place, "bash", "-c", "exit 124").returncode == 124


def test_signals_reach_the_command(place: Path):
    code = "trap 'echo saved; exit 143' TERM; echo on; read -r"
    command = ["bash", str(SCRIPT), "bash", "-c", code]
    with subprocess.Popen(
        command, env=environment(place), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "on\n"
        # The process that was started, whose place the command took.
        os.kill(process.pid, signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.read() == "saved\n"
        assert process.wait(timeout=30) == 143
