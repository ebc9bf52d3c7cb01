"""scripts/run_tpu_pod.sh: its flags, the command on all workers, and its messages."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fake_pod import LINE, NEW, SLICE, Pod, needs_tools, sentence

pytestmark = needs_tools

ODD = [
    "python", "-m", "train", "--config.data.system=It's \"so\" & <so>; $HOME `id` \\ 50 % * ~", "", " ", "--a=b c",
    "two\nlines\n", "'", "''\"", "tab\there", "ünïcode", "@ID@", "-n", "$(exit 3)", "!!", "\\n", "#",
]  # fmt: skip


def test_arguments_arrive_as_they_were_given(ready: Pod):
    result = ready.run(*SLICE, "--workdir=/shared/my run", "--", *ODD)
    assert result.returncode == 0, result.stderr
    for worker in (0, 1):
        assert [call[1:] for call in ready.ran(worker)] == [[*ODD[1:], "--workdir=/shared/my run"]]


def test_a_dry_run_prints_what_can_be_pasted_and_runs_nothing(ready: Pod):
    (ready.bin / "gcloud").rename(ready.bin / "elsewhere")
    result = ready.run(*NEW, "--queued", "--spot", "--delete", "--dry-run", "--", *ODD)
    assert (result.returncode, result.stderr, ready.calls()) == (0, "", [])

    (ready.bin / "elsewhere").rename(ready.bin / "gcloud")
    subprocess.run(["bash"], input=result.stdout, env=ready.environment, text=True, check=True, capture_output=True)
    pasted = ready.calls()
    assert [call[1] for call in pasted] == ["create", "describe", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert [call[1:] for call in ready.ran(1)] == [ODD[1:]]

    shutil.rmtree(ready.fake / "worker-0")
    (ready.fake / "calls.jsonl").unlink()
    ready.run(*NEW, "--", *ODD)
    # The second request has an id of its own.
    assert [ready.calls("ssh")[i] for i in (0, 2, 3)] == [pasted[i] for i in (2, 4, 5)]


@pytest.mark.parametrize(
    ("act", "status", "told"),
    [
        ("exit 3", 3, ("w-0 ended with status 3", "w-1 ended with status 3")),
        ("[ $WORKER = 0 ] || { echo the reason; exit 7; }", 7, ("w-1 ended with status 7", "w-1: the reason")),
        ("[ $WORKER = 1 ] || exit 5", 5, ("w-0 ended with status 5",)),
        ("kill -9 $PPID", 137, ("w-0 ended with status 137",)),
    ],
)
def test_the_status_is_the_commands(ready: Pod, act, status, told):
    result = ready.run(*SLICE, "--delete", *LINE, ACT=act)
    assert result.returncode == status
    assert [line for line in told if line not in result.stderr.splitlines()] == []
    assert ready.verbs() == ["tpu-vm delete"]


def test_a_command_that_is_killed_with_all_around_it_has_not_succeeded(ready: Pod):
    assert ready.run(*SLICE, *LINE).returncode == 0
    result = ready.run(*SLICE, *LINE, ACT='sleep 0.5; kill -KILL -- "-$(cat ~/aligner_jax_run/pid)"')
    assert result.returncode == 137


def test_a_worker_that_hangs_when_the_first_has_ended_is_ended_too(ready: Pod):
    flock = (ready.bin / "flock").readlink()
    # The wait for the other processes is shortened.
    ready.program("flock", f'[ "$1" != -w ] || exit "$WORKER"; exec {flock} "$@"')
    result = ready.run(*SLICE, *LINE, ACT='[ "$WORKER" = 0 ] || sleep 600')
    assert result.returncode == 137
    assert "w-1 ended with status 137" in result.stderr
    lock = ready.fake / "worker-1" / "aligner_jax_run" / "lock"
    subprocess.run([flock, "-w", "5", lock, "true"], check=True)


def test_requests_that_gcloud_repeats_start_the_command_once(ready: Pod):
    result = ready.run(*SLICE, *LINE, TWICE="yes")
    assert result.returncode == 0, result.stderr
    assert [len(ready.ran(worker)) for worker in (0, 1)] == [1, 1]


def test_a_lost_connection_is_taken_up_again(ready: Pod):
    (ready.fake / "failures").write_text("-\n-\n255\n255")
    result = ready.run(*SLICE, "--poll=0", *LINE)
    assert (result.returncode, result.stdout) == (0, "output of worker 0\n")
    assert len(ready.ran(0)) == 1
    assert result.stderr.count("Worker 0 cannot be reached; trying again") == 2


def test_an_interrupted_line_follows_the_command_again_and_another_is_refused(ready: Pod, tmp_path: Path):
    wait = f"until [ -e '{tmp_path}/go' ]; do sleep 0.1; done; echo at last"
    first = ready.start(*SLICE, "--delete", *LINE, ACT=wait)
    assert first.stdout is not None
    assert first.stdout.readline() == "output of worker 0\n"
    # On a terminal, the interrupt reaches gcloud too.
    os.killpg(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "The command goes on on the workers; the same line follows it again." in err
    assert ready.verbs() == []

    other = ready.run(*SLICE, "--delete", *LINE, "--more")
    assert (other.returncode, ready.verbs()) == (1, [])
    assert "error: w-0 is still running another command, which kill -- -" in other.stderr
    assert sentence(other) == "error: the command could not be started on all workers (their reasons are above)"

    again = ready.start(*SLICE, *LINE, ACT=wait)
    assert again.stdout is not None
    told = [again.stdout.readline() for _ in range(5)]
    assert "w-0: a command is running, so the code stays as it is\n" in told[:2]
    assert "w-1: the command is running already\n" in told[2:4]
    assert told[4] == "output of worker 0\n"
    (tmp_path / "go").touch()
    out, err = again.communicate(timeout=120)
    assert (again.returncode, out) == (0, "at last\n"), err
    assert [len(ready.ran(worker)) for worker in (0, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--zone=z", *LINE), "--name=NAME is missing"),
        (("--name=n", *LINE), "--zone=ZONE is missing"),
        ((*SLICE, "--crate", *LINE), "--crate is not a flag of this script"),
        ((*SLICE, "python", "x.py"), "'python' is not a flag; the command to run comes after --"),
        (SLICE, "there is no command: it comes after --"),
        ((*SLICE, "--"), "there is no command after --"),
        (("--name", "pod", *LINE), "--name is written --name=VALUE"),
        (("--name=", *LINE), "--name is empty"),
        ((*SLICE, "--wait=soon", *LINE), "--wait=soon is not a whole number"),
        ((*SLICE, "--create", *LINE), "--type=TYPE is missing: what is to be made, for example v5litepod-16"),
        ((*SLICE, "--queued", "--type=v9-8", *LINE), "no runtime is known for the type v9-8: give --version=VERSION"),
        ((*NEW, "--resume-on-preemption", *LINE), "--resume-on-preemption needs --workdir=DIR, a folder that outlives "
         "the slice"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(pod: Pod, arguments, told):
    result = pod.run(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {told}; --help tells more\n")
    assert pod.calls() == []


def test_help_tells_of_every_flag(pod: Pod):
    result = pod.run("--help")
    assert (result.returncode, result.stderr, pod.calls()) == (0, "", [])
    assert result.stdout.startswith("Runs a command on all workers")
    assert "set -euo" not in result.stdout
    for flag in ("--spot", "--queued", "--resume-on-preemption", "--dry-run", "--with-ssh=FLAG"):
        assert f"\n  {flag} " in result.stdout


def test_without_gcloud_nothing_begins(pod: Pod):
    (pod.bin / "gcloud").unlink()
    result = pod.run(*SLICE, *LINE)
    assert result.returncode == 1
    assert result.stderr == "error: gcloud is not installed here; it comes with the Google Cloud CLI\n"
