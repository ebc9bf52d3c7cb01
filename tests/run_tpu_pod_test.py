"""scripts/run_tpu_pod.sh beside a gcloud that notes what it is asked; its workers run what they are told for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
TOOLS = (
    "bash", "cat", "chmod", "date", "dirname", "flock", "git", "grep", "mkdir", "mktemp", "nohup", "rm", "sed",
    "setsid", "sleep", "sort", "tail", "true",
)  # fmt: skip
SLICE = ("--name=pod", "--zone=us-west4-a")
NEW = (*SLICE, "--type=v5litepod-16", "--poll=0")
LINE = ("--", "python", "-m", "train")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="the workers' tools (util-linux, GNU tail) are not all here"
)

# What a repository's scripts/environment.sh leaves behind: here, a python that notes its arguments, and then does what
# the variable ACT says.
ENVIRONMENT = """\
mkdir -p .venv/bin
echo "PATH=$PWD/.venv/bin:\\$PATH" >.venv/bin/activate
cat >.venv/bin/python <<'END'
#!/usr/bin/env bash
{real} -S -E -c 'import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))' "$@" >>~/argv.jsonl
echo "output of worker $WORKER"
eval "$ACT"
END
chmod +x .venv/bin/python
"""


class Pod:
    """A clone of a repository whose origin the workers can reach, and a PATH with nothing but what is put there."""

    def __init__(self, tmp_path: Path):
        self.root, self.bin, self.fake = tmp_path / "a clone", tmp_path / "bin", tmp_path / "fake"
        self.origin = tmp_path / "origin"
        self.environment = {
            "PATH": str(self.bin), "HOME": str(tmp_path), "FAKE": str(self.fake), "ACT": "true",
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        for folder in (self.root / "scripts", self.bin, self.fake / "states"):
            folder.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.program("gcloud", f'exec {sys.executable} -S -E "{REPO}/tests/fake_gcloud.py" "$@"')
        self.program("hostname", 'echo "w-$WORKER"')
        self.program("python3.12", "exit 0")
        for script in ("run_tpu_pod.sh", "tpu_slice.sh", "tpu_worker.sh"):
            shutil.copy(REPO / "scripts" / script, self.root / "scripts")
        (self.root / "scripts" / "environment.sh").write_text(ENVIRONMENT.format(real=sys.executable))
        (self.root / ".gitignore").write_text(".venv\n")
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(self.origin)], check=True)
        self.git("init", "--quiet", "-b", "main")
        self.git("remote", "add", "origin", str(self.origin))
        self.commit("first")
        self.git("push", "--quiet", "--set-upstream", "origin", "main")

    def program(self, name: str, text: str) -> None:
        # It may be a link to the machine's own.
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!{self.bin / 'bash'}\n{text}\n")
        (self.bin / name).chmod(0o755)

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def states(self, kind: str, *states: str) -> None:
        (self.fake / "states" / kind).write_text("\n".join(states))

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [str(self.bin / "bash"), str(self.root / "scripts" / "run_tpu_pod.sh"), *arguments]
        environment = {**self.environment, **variables}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd="/", env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def calls(self, *verbs: str) -> list[list[str]]:
        """What gcloud was asked, all of it or of these verbs, without the words that are always the same."""
        path = self.fake / "calls.jsonl"
        calls = [json.loads(line)[2:] for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if not verbs or call[1] in verbs]

    def verbs(self) -> list[str]:
        return [" ".join(call[:2]) for call in self.calls() if call[1] not in ("describe", "ssh")]

    def ran(self, worker: int) -> list[list[str]]:
        """The arguments that python was called with on a worker, after the folder it was called in."""
        path = self.fake / f"worker-{worker}" / "argv.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.fixture
def ready(pod: Pod) -> Pod:
    """A slice that is there."""
    pod.states("tpu-vm", "READY")
    return pod


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The last line but what is told when there is a slice left."""
    return [line for line in result.stderr.splitlines() if not line.startswith("pod is still there")][-1]


def test_a_slice_is_made_set_up_and_used(pod: Pod):
    pod.states("tpu-vm", "NONE", "READY")
    result = pod.run(*NEW, "--create", "--project=mine", "--with-create=--network=a net", *LINE)
    assert result.returncode == 0, result.stderr
    place = ["--zone=us-west4-a", "--project=mine"]
    assert pod.calls("create") == [
        ["tpu-vm", "create", "pod", "--version=v2-alpha-tpuv5-lite", *place, "--accelerator-type=v5litepod-16",
         "--network=a net"]
    ]  # fmt: skip
    assert [call[:-1] for call in pod.calls("ssh")] == [
        ["tpu-vm", "ssh", "pod", *place, f"--worker={workers}"] for workers in ("all", "all", "0", "all")
    ]
    for worker in (0, 1):
        assert pod.ran(worker) == [[str(pod.fake / f"worker-{worker}" / "aligner_jax"), "-m", "train"]]
    assert result.stdout == "output of worker 0\n"
    assert "deletes it: gcloud compute tpus tpu-vm delete pod" in result.stderr.splitlines()[-1]
    assert "+ gcloud compute tpus tpu-vm create pod --version=v2-alpha-tpuv5-lite" in result.stderr


def test_a_queued_spot_slice_is_waited_for(pod: Pod):
    states = ("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "no network", "PROVISIONING", "ACTIVE")
    pod.states("queued-resources", "NONE", *states)
    pod.states("tpu-vm", "NONE", "READY")
    result = pod.run(*NEW, "--queued", "--spot", "--delete", *LINE)
    assert result.returncode == 0, result.stderr
    assert pod.calls("create", "delete") == [
        ["queued-resources", "create", "pod", "--node-id=pod", "--runtime-version=v2-alpha-tpuv5-lite",
         "--zone=us-west4-a", "--accelerator-type=v5litepod-16", "--spot"],
        ["queued-resources", "delete", "pod", "--zone=us-west4-a", "--force", "--quiet"],
    ]  # fmt: skip
    told = [line.partition(" pod is ")[2] for line in result.stderr.splitlines() if " pod is " in line]
    assert told == ["WAITING_FOR_RESOURCES", "out of sight", "PROVISIONING", "ACTIVE", "READY"]
    assert pod.calls()[-1][1] == "delete"


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (
            ("WAITING_FOR_RESOURCES", "FAILED"),
            "the request for pod failed; why: gcloud compute tpus queued-resources de",
        ),
        (("PROVISIONING", "SUSPENDING"), "pod was taken away before it was ready"),
        (("WAITING_FOR_RESOURCES",), "pod is still WAITING_FOR_RESOURCES after 0 minutes"),
    ],
)
def test_a_request_that_comes_to_nothing_is_one_sentence(pod: Pod, states, told):
    pod.states("queued-resources", "NONE", *states)
    result = pod.run(*NEW, "--queued", "--wait=0" if len(states) == 1 else "--wait=9", *LINE)
    assert (result.returncode, pod.calls("ssh")) == (1, [])
    assert sentence(result).startswith(f"error: {told}")
    assert "queued-resources delete pod" in result.stderr.splitlines()[-1]
    assert pod.verbs() == ["queued-resources create"]

    pod.states("queued-resources", "NONE", *states)
    pod.run(*NEW, "--queued", "--delete", "--wait=0", *LINE)
    assert pod.verbs()[1:] == ["queued-resources create", "queued-resources delete"]


def test_what_is_left_of_an_earlier_request_is_deleted_first(pod: Pod):
    pod.states("queued-resources", "SUSPENDING", "SUSPENDED", "ACTIVE")
    pod.states("tpu-vm", "NONE", "NONE", "READY")
    assert pod.run(*NEW, "--queued", *LINE).returncode == 0
    assert pod.verbs() == ["queued-resources delete", "queued-resources create"]


def test_a_request_that_is_there_is_waited_for(pod: Pod):
    pod.states("queued-resources", "PROVISIONING", "ACTIVE")
    pod.states("tpu-vm", "NONE", "READY")
    assert pod.run(*NEW, "--queued", *LINE).returncode == 0
    assert pod.verbs() == []


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
    # The second request holds an id of its own.
    assert [ready.calls("ssh")[i] for i in (0, 2, 3)] == [pasted[i] for i in (2, 4, 5)]


@pytest.mark.parametrize(
    ("type", "version"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("tpu7x-8", "v2-alpha-tpu7-ubuntu2404"),
    ],
)
def test_each_type_has_its_runtime(pod: Pod, type, version):
    result = pod.run(*SLICE, f"--type={type}", "--create", "--dry-run", *LINE)
    made = f"--version={version} --zone=us-west4-a --accelerator-type={type}\n"
    assert result.stdout.startswith(f"gcloud compute tpus tpu-vm create pod {made}")
    named = pod.run(*SLICE, f"--type={type}", "--create", "--version=my own", "--dry-run", *LINE)
    assert "'--version=my own'" in named.stdout


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
    # Waiting for the others is cut short.
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
    # As on a terminal, where it reaches gcloud too.
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


# In order: the slice is there; worker 0 is lost; the slice is gone; gone; the new one is ready.
TAKEN = ("READY", "PREEMPTED", "PREEMPTED", "PREEMPTED", "READY")


def test_a_slice_that_is_taken_away_is_one_sentence(pod: Pod):
    pod.states("tpu-vm", *TAKEN)
    (pod.fake / "failures").write_text("-\n-\n255")
    result = pod.run(*NEW, *LINE)
    assert result.returncode == 1
    assert sentence(result) == "error: pod is PREEMPTED; --resume-on-preemption makes it again and goes on"
    assert pod.verbs() == []


@pytest.mark.parametrize("queued", [False, True])
def test_a_slice_that_is_taken_away_is_made_again_and_the_command_runs_again(pod: Pod, queued: bool):
    pod.states("tpu-vm", *TAKEN)
    pod.states("queued-resources", "ACTIVE", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE")
    (pod.fake / "failures").write_text("-\n-\n255")
    flags = ["--spot", "--resume-on-preemption", "--workdir=/shared/run", *["--queued"] * queued]
    result = pod.run(*NEW, *flags, *LINE)
    assert result.returncode == 0, result.stderr
    assert "pod is PREEMPTED; it is made again" in result.stderr
    kind = "queued-resources" if queued else "tpu-vm"
    assert pod.verbs() == [f"{kind} delete", f"{kind} create"]
    assert "--spot" in pod.calls("create")[0]
    for worker in (0, 1):
        assert [call[1:] for call in pod.ran(worker)] == [["-m", "train", "--workdir=/shared/run"]] * 2


def test_a_command_that_fails_because_its_slice_is_taken_away_runs_again(pod: Pod, tmp_path: Path):
    pod.states("tpu-vm", "READY")
    # Only after a while is the slice said to be gone.
    later = f"[ -e '{tmp_path}/later' ] || printf 'PREEMPTED\\nPREEMPTED\\nREADY' >'{pod.fake}/states/tpu-vm'"
    pod.program("sleep", f"{later}; : >'{tmp_path}/later'")
    fails_once = f"[ -e '{tmp_path}/once'$WORKER ] || {{ : >'{tmp_path}/once'$WORKER; exit 134; }}"
    result = pod.run(*NEW, "--resume-on-preemption", "--workdir=/shared/run", *LINE, ACT=fails_once)
    assert result.returncode == 0, result.stderr
    assert pod.verbs() == ["tpu-vm delete", "tpu-vm create"]


def test_a_command_that_fails_by_itself_is_not_run_again(ready: Pod):
    result = ready.run(*NEW, "--resume-on-preemption", "--workdir=/shared/run", *LINE, ACT="exit 2")
    assert (result.returncode, len(ready.ran(0)), ready.verbs()) == (2, 1, [])


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


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("NONE", "there is no slice pod that is ready (NONE): --create makes one"),
        ("PREEMPTED", "there is no slice pod that is ready (PREEMPTED): --create makes one"),
        ("you are not logged in", "the state of pod cannot be read (gcloud's reason is above)"),
    ],
)
def test_a_slice_that_cannot_be_used_is_one_sentence(pod: Pod, state, told):
    pod.states("tpu-vm", state)
    result = pod.run(*SLICE, *LINE)
    assert (result.returncode, sentence(result), pod.verbs()) == (1, f"error: {told}", [])
    assert ("ERROR: you are not logged in" in result.stderr) == (" " in state)


def test_a_slice_that_cannot_be_made_is_one_sentence_and_nothing_is_deleted(pod: Pod):
    result = pod.run(*NEW, "--create", "--delete", *LINE, REFUSES="create")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: the slice could not be made (gcloud's reason is above); if"
    )
    assert pod.verbs() == ["tpu-vm create"]

    pod.states("tpu-vm", "PREEMPTED")
    again = pod.run(*NEW, "--create", "--delete", *LINE, REFUSES="create")
    assert again.stderr.splitlines()[-1].startswith("error: the slice could not be made")
    assert pod.verbs()[1:] == ["tpu-vm delete", "tpu-vm create"]


def test_work_that_the_workers_would_not_get_is_refused(ready: Pod):
    first = ready.git("rev-parse", "HEAD")
    (ready.root / "new.py").touch()
    dirty = ready.run(*SLICE, *LINE)
    assert (dirty.returncode, len(dirty.stderr.splitlines())) == (1, 1)
    assert "has uncommitted changes, which the workers would not get" in dirty.stderr

    ready.commit("second")
    ahead = ready.run(*SLICE, *LINE)
    assert (ahead.returncode, len(ahead.stderr.splitlines())) == (1, 1)
    assert "is at a commit that is not pushed" in ahead.stderr
    assert ready.calls() == []

    (ready.root / "newer.py").touch()
    for rev in (first[:8], "main"):
        assert ready.run(*SLICE, f"--rev={rev}", *LINE).returncode == 0
        worker = ["git", "-C", str(ready.fake / "worker-1" / "aligner_jax"), "rev-parse", "HEAD"]
        assert subprocess.run(worker, capture_output=True, text=True, check=True).stdout.strip() == first

    unknown = ready.run(*SLICE, "--rev=my branch", *LINE)
    assert unknown.returncode == 1
    assert f"error: w-1 finds no revision my branch in {ready.origin}\n" in unknown.stderr
    assert sentence(unknown) == "error: the command could not be started on all workers (their reasons are above)"


def test_workers_follow_what_was_pushed(ready: Pod):
    assert ready.run(*SLICE, *LINE).returncode == 0
    (ready.root / "new.py").touch()
    ready.commit("second")
    ready.git("push", "--quiet")
    assert ready.run(*SLICE, *LINE).returncode == 0
    assert (ready.fake / "worker-0" / "aligner_jax" / "new.py").exists()


@pytest.mark.parametrize(
    ("url", "cloned"),
    [
        ("git@host.org:me/repo.git", "https://host.org/me/repo.git"),
        ("ssh://git@host.org/me/repo.git", "https://host.org/me/repo.git"),
        ("https://host.org/me/repo.git", "https://host.org/me/repo.git"),
    ],
)
def test_workers_clone_without_keys(pod: Pod, url, cloned):
    pod.git("remote", "set-url", "origin", url)
    assert f"git clone --quiet --no-checkout {cloned} ~/aligner_jax\n" in pod.run(*SLICE, "--dry-run", *LINE).stdout


def test_an_origin_that_workers_cannot_use_is_one_sentence(pod: Pod):
    pod.git("remote", "set-url", "origin", "https://me:secret@host.org/repo.git")
    password = pod.run(*SLICE, "--dry-run", *LINE)
    pod.git("remote", "remove", "origin")
    missing = pod.run(*SLICE, "--dry-run", *LINE)
    assert [result.returncode for result in (password, missing)] == [1, 1]
    assert "holds a name or a password" in password.stderr
    assert "secret" not in password.stdout + password.stderr
    assert missing.stderr.endswith("has no git remote named origin that the workers could clone: give --repo=URL\n")


def test_a_worker_with_an_old_python_gets_a_new_one(ready: Pod):
    (ready.bin / "python3.12").unlink()
    ready.program("python3", 'echo "$*" >>~/asked; [ "$4" != find ] || echo /new/python')
    with (ready.root / "scripts" / "environment.sh").open("a") as file:
        file.write('echo "$PYTHON" >~/made-with\n')
    ready.commit("second")
    ready.git("push", "--quiet")
    result = ready.run(*SLICE, *LINE)
    assert result.returncode == 0, result.stderr
    for worker in (0, 1):
        home = ready.fake / f"worker-{worker}"
        asked = (home / "asked").read_text().splitlines()
        assert [line.split()[1] for line in asked] == ["pip", "uv", "uv"]
        assert (home / "made-with").read_text() == "/new/python\n"
