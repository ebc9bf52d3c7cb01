"""Commands that are interrupted, or whose output is closed, before their libraries are imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import places
import pytest
from command_runs import run_command
from whole_runs import config_file

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([places.PYTHONPATH, *sys.path])}
COMMANDS = ("train", "evaluate", "generate", "chat", "convert", "compile", "analyze")
# Stops the slowest import, so that the moment is the same on every machine.
SLOW_JAX = """
import gc, time
print("collecting" if gc.isenabled() else "importing", flush=True)
time.sleep(60)
"""


@pytest.fixture
def importing(tmp_path: Path):
    """Starts a command and returns it in the middle of its imports."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(SLOW_JAX)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])}

    def start(name: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", f"aligner_jax.{name}", "--logtostderr"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = ["loading JAX…\n"] if name == "train" else []
        assert [process.stdout.readline() for _ in [*said, "importing"]] == [*said, "importing\n"]
        return process

    return start


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_during_the_imports_is_one_line(importing, name: str):
    ends = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        process = importing(name)
        process.send_signal(number)
        ends[number] = (*process.communicate(timeout=30), process.returncode)
    assert ends[signal.SIGINT] == ("", "\ninterrupted\n", 130)
    sentence = "stopped by SIGTERM; the same command begins again, or goes on from what is on disk\n"
    assert ends[signal.SIGTERM] == ("", sentence, 143)


def test_what_the_parent_ignores_stays_ignored(importing):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = importing("train")
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()


AS_A_LIBRARY = """
import gc, signal
def state(): return [signal.getsignal(n) for n in (2, 15)], gc.isenabled(), gc.get_freeze_count()
before = state()
import aligner_jax
assert before == state()
"""


def test_a_library_leaves_signals_and_garbage_collection_alone():
    subprocess.run([sys.executable, "-c", AS_A_LIBRARY], env=ENVIRONMENT, check=True)


@pytest.fixture
def train(tiny_run: dict, tmp_path: Path):
    """Starts a run of seconds in a shell that redirects its output."""
    config = config_file(tiny_run, tmp_path)

    def start(redirection: str, workdir: str = "run") -> subprocess.CompletedProcess:
        command = f'exec "$0" -m aligner_jax.train --config={config} "--workdir=$1" {redirection}'
        return subprocess.run(
            ["bash", "-c", command, sys.executable, os.fsencode(tmp_path / workdir)],
            env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.mark.parametrize(
    ("redirection", "status", "sentence"),
    [
        (">&-", 0, ""),
        (">&- <&-", 0, ""),
        (">/dev/full", 1, "error: what this command prints cannot be written: No space left on device\n"),
        ("> >(exec head -c1 >/dev/null)", 141, ""),
        (">/dev/null 2>&-", 0, ""),
    ],
)
def test_a_run_is_not_lost_because_nobody_reads_what_it_prints(
    train, tmp_path: Path, redirection: str, status: int, sentence: str
):
    done = train(redirection)
    assert (done.returncode, done.stderr) == (status, sentence)
    assert (tmp_path / "run" / "adapter.safetensors").exists()
    assert (tmp_path / "run" / "checkpoints" / "8").is_dir()


def test_a_mistake_is_told_by_its_status_alone_where_stderr_is_closed(train, tmp_path: Path):
    (tmp_path / "run").write_text("in the way")
    for redirection in ("2>&-", ">&- 2>&-", "2>/dev/full"):
        assert train(redirection).returncode == 1


def test_names_that_are_not_utf_8(tiny_run: dict, train, tmp_path: Path):
    done = train("", "w\udcff")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert r"w\xff: a name on the way to it is not UTF-8" in done.stderr
    assert not list(tmp_path.glob("w*"))


def test_data_and_config_may_have_names_that_are_not_utf_8(tiny_run: dict, train, tmp_path: Path):
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data\xff.jsonl"))
    Path(tiny_run["data"]["path"]).rename(data)
    tiny_run["data"]["path"] = str(data)
    config = config_file(tiny_run, tmp_path).rename(tmp_path / "c\udcff.py")
    with config.open("a") as file:
        # A command's own objects are collected, those of its libraries are not.
        file.write("import gc\nassert gc.isenabled() and gc.get_freeze_count() > 100_000\n")
    command = [sys.executable, "-m", "aligner_jax.train", b"--config=" + os.fsencode(config), "--workdir=run"]
    for _ in range(2):
        done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert r"data\udcff.jsonl, 12 examples" in done.stdout
    assert "resuming after step 8 of 8" in done.stdout


@pytest.mark.parametrize(
    "flag", ["workdir", "config", "config.data.path", "config.base.path", "config.adapter.init_from"]
)
def test_a_path_of_5000_characters_is_one_sentence(tiny_run: dict, tmp_path: Path, flag: str):
    config = config_file(tiny_run, tmp_path)
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--{flag}=" + "x" * 5000]
    done = run_command("train", *arguments)
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert len(done.err) < 420
    assert "File name too long" in done.err


COLLECTED = """
import gc, os, signal, time
from aligner_jax.runtime import starting
starting._is_command = True
starting.may_raise(lasting=False)
gc.callbacks.append(lambda phase, info: os.kill(os.getpid(), signal.SIGINT))
gc.collect()
time.sleep(10)
print("went on")
"""


def test_an_interruption_that_python_would_drop_ends_the_command():
    ended = subprocess.run([sys.executable, "-c", COLLECTED], env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\ninterrupted\n")


def test_a_users_own_module_keeps_its_signals(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import aligner_jax\n")
    (tmp_path / "mine" / "run.py").write_text(
        "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    ended = subprocess.run(
        [sys.executable, "-m", "mine.run"], env={**ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("True\n", "")


TOO_LATE = """
import sys
from aligner_jax.runtime import starting
starting.may_raise(lasting=True)
class Late:
    def __init__(self, why): self.why = why
    def __del__(self): raise RuntimeError(self.why)
for why in ("Event loop is closed", "another"): Late(why)
"""


def test_what_comes_too_late_in_a_failed_save_is_not_printed_and_other_failures_are():
    ended = subprocess.run([sys.executable, "-c", TOO_LATE], env=ENVIRONMENT, capture_output=True, text=True)
    assert "RuntimeError: another" in ended.stderr
    assert "Event loop is closed" not in ended.stderr


FAILS = """
import gc, sys
sys.modules["jaxtyping"] = None
import aligner_jax
try:
    aligner_jax.load_base
except ImportError:
    print(gc.isenabled())
"""


def test_garbage_is_collected_again_after_an_import_that_fails():
    ended = subprocess.run([sys.executable, "-c", FAILS], env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")
