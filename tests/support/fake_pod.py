"""A pod for scripts/run_tpu_pod.sh: a gcloud that records its calls, and workers that run their commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import places
import pytest

REPO = places.ROOT
TOOLS = (
    "bash", "cat", "chmod", "date", "dirname", "flock", "git", "grep", "mkdir", "mktemp", "nohup", "rm", "sed",
    "setsid", "sleep", "sort", "tail", "true",
)  # fmt: skip
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"the workers' tools are not all here: {', '.join(MISSING)}")

# Flags of an existing slice and of one to be made, and a command to run.
SLICE = ("--name=pod", "--zone=us-west4-a")
NEW = (*SLICE, "--type=v5litepod-16", "--poll=0")
LINE = ("--", "python", "-m", "train")

# The environment that a repository's scripts/lib/environment.sh makes. Its python records its arguments, then evaluates
# the variable ACT.
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
    """A clone of a repository whose origin the workers can reach, and a PATH with added programs only."""

    def __init__(self, tmp_path: Path):
        self.root, self.bin, self.fake = tmp_path / "a clone", tmp_path / "bin", tmp_path / "fake"
        self.origin = tmp_path / "origin"
        self.environment = {
            "PATH": str(self.bin), "HOME": str(tmp_path), "FAKE": str(self.fake), "ACT": "true",
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        for folder in (self.root / "scripts" / "lib", self.bin, self.fake / "states"):
            folder.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.program("gcloud", f'exec {sys.executable} -S -E "{places.SUPPORT}/fake_gcloud.py" "$@"')
        self.program("hostname", 'echo "w-$WORKER"')
        self.program("python3.12", "exit 0")
        for script in ("run_tpu_pod.sh", "lib/tpu_slice.sh", "lib/tpu_worker.sh"):
            shutil.copy(REPO / "scripts" / script, self.root / "scripts" / script)
        (self.root / "scripts" / "lib" / "environment.sh").write_text(ENVIRONMENT.format(real=sys.executable))
        (self.root / ".gitignore").write_text(".venv\n")
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(self.origin)], check=True)
        self.git("init", "--quiet", "-b", "main")
        self.git("remote", "add", "origin", str(self.origin))
        self.commit("first")
        self.git("push", "--quiet", "--set-upstream", "origin", "main")

    def program(self, name: str, text: str) -> None:
        # The file may be a link to the machine's own program.
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
        """Returns gcloud's calls, all or only those of these verbs, without the constant arguments."""
        path = self.fake / "calls.jsonl"
        calls = [json.loads(line)[2:] for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if not verbs or call[1] in verbs]

    def verbs(self) -> list[str]:
        return [" ".join(call[:2]) for call in self.calls() if call[1] not in ("describe", "ssh")]

    def ran(self, worker: int) -> list[list[str]]:
        """Returns a list for each call of python on a worker: the folder, and then the arguments."""
        path = self.fake / f"worker-{worker}" / "argv.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the last line, not counting the note that a slice is left."""
    return [line for line in result.stderr.splitlines() if not line.startswith("pod is still there")][-1]
