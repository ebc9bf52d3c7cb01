"""Commands and their flags as the source tells them, against those that the commands define when they run."""

import os
import subprocess
import sys
from pathlib import Path

import places
import pytest
from command_runs import run_command

from aligner_jax.usage.commands import command_names, read_command, sentence_of, takes_flags
from aligner_jax.usage.config_fields import config_paragraphs
from aligner_jax.usage.page import page

WITH_FLAGS = [name for name in command_names() if takes_flags(name)]
NO_JAX = "raise SystemExit('JAX was imported')"
ANSWERS = """
import sys
from aligner_jax.usage import early
from aligner_jax.usage.commands import command_names, takes_flags
for name in filter(takes_flags, command_names()):
    try:
        early.answer(name, ["--help"])
    except SystemExit as end:
        assert end.code == 0, name
    else:
        raise AssertionError(name)
"""


def test_the_commands_of_the_first_hour_come_first():
    names = command_names()
    assert names[:3] == ["train", "generate", "chat"]
    assert {"evaluate", "serve", "analyze", "export", "combine", "compile", "convert", "verify"} <= set(names)
    assert all(sentence_of(name).endswith(".") for name in names)


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_the_help_that_is_read_from_the_source_is_that_of_the_command(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = read_command(name)
    read = page(command.doc, [command.flags[each] for each in command.names], more=config_paragraphs(name))
    status, out, err = run_command(name, "--help", "--config=nowhere.py")
    assert (status, err) == (0, "")
    assert out == read
    assert max(map(len, out.splitlines())) <= 120
    assert f"python -m aligner_jax.{name} " in out


@pytest.fixture
def without_jax(tmp_path: Path) -> dict[str, str]:
    """An environment in which the import of JAX ends a process."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(NO_JAX)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), places.PYTHONPATH, *sys.path])}


@pytest.mark.parametrize("words", [["aligner_jax", "train"], ["aligner_jax.train"]])
def test_training_says_once_that_it_loads_jax(without_jax: dict[str, str], words: list[str]):
    command = [sys.executable, "-m", *words, "--config=quickstart"]
    ended = subprocess.run(command, env=without_jax, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("loading JAX…\n", "JAX was imported\n")


def test_other_commands_say_on_a_terminal_that_they_load_jax(without_jax: dict[str, str]):
    master, slave = os.openpty()
    command = [sys.executable, "-m", "aligner_jax.generate", "--base=b"]
    ended = subprocess.run(command, env=without_jax, stdout=subprocess.PIPE, stderr=slave, check=False)
    os.close(slave)
    said = os.read(master, 1000).decode()
    os.close(master)
    assert (ended.stdout, said) == (b"", "loading JAX…\r\nJAX was imported\r\n")


def test_no_help_needs_jax(without_jax: dict[str, str]):
    subprocess.run([sys.executable, "-c", ANSWERS], env=without_jax, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-m", "aligner_jax"], 0, "\n  train      Trains an adapter over a frozen base.\n"),
        (["-m", "aligner_jax", "help", "convert"], 0, "\n  --to=TO "),
        (["-m", "aligner_jax", "--version"], 0, "aligner_jax 0.1.0, jax "),
        (["-m", "aligner_jax", "generte"], 1, "error: 'generte' is not a command; did you mean generate?\n"),
        (["-m", "aligner_jax", "chat", "--model=m", "-h"], 0, "\npython -m aligner_jax chat --base=PATH"),
        (["-m", "aligner_jax.generate", "--base=b", "--help"], 0, "\n  --temperature=X         0 is greedy."),
        (["-X", "utf8", "-maligner_jax.train"], 1, "error: train needs flags, such as these; --help explains all"),
        (["-m", "aligner_jax.generate", "--stop=x"], 1, "--stop is not a flag of this command; its flags are --base, "),
        (
            ["-m", "aligner_jax", "serve", "--plces=3"],
            1,
            "--plces is not a flag of this command; did you mean --places?",
        ),
        (["-m", "aligner_jax.serve", "--x=3"], 1, "--x is not a flag of this command; --help explains its flags\n"),
        (["-m", "aligner_jax.train", "--optim.lr=1"], 1, "are written --config.optim.lr=VALUE\n"),
        (["-m", "aligner_jax.generate", "--top_k=x"], 1, "flag --top_k=x: should be a whole number\n"),
        (["-m", "aligner_jax.generate", "--base=b"], 1, "JAX was imported\n"),
        (["-m", "aligner_jax.train", "--config=c", "--grain_py_debug_mode"], 1, "JAX was imported\n"),
    ],
)
def test_what_is_answered_without_jax(without_jax: dict[str, str], arguments: list[str], status: int, said: str):
    environment = {**without_jax, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert said in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr


def test_helpfull_has_the_flags_of_libraries_too():
    status, out, _ = run_command("convert", "--helpfull")
    assert status == 0
    assert "--to=TO" in out
    assert "verbosity" in out


def test_a_module_that_is_no_command_of_flags_collects_garbage():
    """Imports a command within another program, as studies do."""
    code = "import gc, aligner_jax; print(gc.isenabled())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([places.PYTHONPATH, *sys.path])}
    for words, collects in ((["aligner_jax.studies.parameters"], "True"), (["aligner_jax.chat", "--base=b"], "False")):
        started = f"import sys; sys.argv, sys.orig_argv = ['-m'], ['python', '-m', *{words}]; {code}"
        done = subprocess.run([sys.executable, "-c", started], env=environment, capture_output=True, text=True)
        assert done.stdout == f"{collects}\n", done.stderr


def test_a_command_that_parses_its_own_flags_is_run_by_its_name():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([places.PYTHONPATH, *sys.path])}
    command = [sys.executable, "-m", "aligner_jax", "data", "no-such-file"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no-such-file" in done.stderr
