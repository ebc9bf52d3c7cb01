import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import places
import pytest
from absl import flags
from absl.testing import flagsaver

from aligner_jax.errors import InputError
from aligner_jax.runtime import platform
from aligner_jax.runtime.command import Choice, config_flag, load_config, run
from aligner_jax.runtime.config import parse_config

CONFIG_FLAG = config_flag()
GIVE = "give a file, or a name that the package has, such as quickstart, llama7b_alpaca or eval/quick"
flags.DEFINE_string("folder", None, "A flag beside --config.")

CONFIG = """
from ml_collections import ConfigDict

def get_config(steps=10):
    return ConfigDict({
        "base": {"path": "model"}, "data": {"path": "train.json", "system": None},
        "optim": {"lr": 1, "weight_decay": 0}, "steps": int(steps),
    })
"""

COMMAND = """
'''What this command is for.'''
import sys, time
from absl import flags
from aligner_jax.runtime import command
from aligner_jax.runtime.config import parse_config

CONFIG = command.config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.")

def main():
    config = parse_config(CONFIG.value)
    if WORKDIR.value == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if WORKDIR.value == "much":
        print("\\n".join(map(str, range(100_000))))
    import jax
    print(config.steps, config.optim.lr, config.data.packing, WORKDIR.value, jax.devices()[0].platform)

if __name__ == "__main__":
    command.run(main)
"""


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return str(tmp_path / "config.py")


@pytest.fixture
def command(tmp_path, config_file):
    (tmp_path / "verb.py").write_text(COMMAND)
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    environment |= {"PYTHONPATH": places.PYTHONPATH, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    # A shell starts background commands with SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as processes:

        def start(*arguments):
            line = [sys.executable, str(tmp_path / "verb.py"), *arguments]
            process = processes.enter_context(
                subprocess.Popen(
                    line, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
            processes.callback(process.kill)
            return process

        yield start
    signal.signal(signal.SIGINT, before)


def run_here(arguments, monkeypatch):
    """Returns the exit of a command in this process, and the config that it got."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["verb", *arguments])
    monkeypatch.setattr(platform, "prepare", lambda: None)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        run(lambda: seen.extend([parse_config(CONFIG_FLAG.value), CONFIG_FLAG.name]))
    assert seen[1:] in ([], ["config"], ["config_3"])
    return end.value.code, seen[0] if seen else None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/a.b.py", "a.b"), ("a.py:lora", "a_lora"), ("a.py:lora,metamath", "a_lora_metamath"),
        ("a.py:300", "a_300"), ("a.py:../x y", "a_.._x_y"), ("a.py:", "a"),
    ],
)  # fmt: skip
def test_runs_of_each_of_a_configs_arguments_have_a_folder_of_their_own(path, name):
    with flagsaver.flagsaver():
        flags.FLAGS(["verb", f"--config={path}"])
        assert CONFIG_FLAG.name == name


def load(path, *overrides):
    return parse_config(load_config(path, overrides))


def test_overrides_change_fields_and_set_those_the_file_leaves_out(config_file):
    parsed = load(
        config_file,
        ("optim.lr", "1e-3"),
        ("optim.accumulate", "4"),
        ("data.packing", "false"),
        ("data.path", "123"),
        ("data.system", "None"),
        ("adapter.num_tokens", "10"),
        ("adapter.targets", "('q', 'v')"),
    )
    assert (parsed.optim.lr, parsed.optim.accumulate, parsed.data.packing) == (1e-3, 4, False)
    assert (parsed.data.path, parsed.data.system) == ("123", None)
    assert parsed.adapter.options == {"num_tokens": 10, "targets": ("q", "v")}


CHOICE = Choice("optim", "name", "adam", {"adam": ("b1", "b2", "decay"), "sgd": ("momentum", "decay")})


@pytest.mark.parametrize(
    ("optim", "overrides", "left", "dropped"),
    [
        ({"b1": 0, "decay": 1, "lr": 2}, {"name": "sgd"}, {"decay": 1, "lr": 2, "name": "sgd"}, "config.optim.b1"),
        ({"b1": 0, "b2": 1}, {"name": "sgd", "b2": "3"}, {"b2": 3, "name": "sgd"}, "config.optim.b1"),
        ({"name": "sgd", "momentum": 1}, {"name": "adam"}, {"name": "adam"}, "config.optim.momentum"),
        # A mistake in the file stays, and so does everything for which no known value is substituted.
        ({"momentum": 1}, {"name": "sgd"}, {"momentum": 1, "name": "sgd"}, None),
        ({"name": "adam", "momentum": 1}, {"name": "adam"}, {"momentum": 1, "name": "adam"}, None),
        ({"b1": 0}, {"name": "none"}, {"b1": 0, "name": "none"}, None),
        ({"b1": 0, "name": "none"}, {"name": "adam"}, {"b1": 0, "name": "adam"}, None),
        ({"b1": 0}, {"b1": "1"}, {"b1": 1}, None),
    ],
)
def test_options_of_an_overridden_choice_go_with_it(tmp_path, optim, overrides, left, dropped):
    file, said = tmp_path / "config.py", []
    file.write_text(f"def get_config():\n    return {{'optim': {optim}}}")
    given = [(f"optim.{name}", text) for name, text in overrides.items()]
    assert load_config(file, given, choices=[CHOICE], say=said.append).to_dict() == {"optim": left}
    assert [line.rpartition(": ")[2] for line in said] == ([dropped] if dropped else [])
    assert load_config(file, given).to_dict() == {"optim": {**optim, **left}}


def test_a_choice_that_a_config_requires_may_be_given(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict, config_dict\n\ndef get_config():\n"
        "    return ConfigDict({'optim': {'name': config_dict.required_placeholder(str), 'b1': 1}})"
    )
    loaded = load_config(file, [("optim.name", "sgd")], choices=[CHOICE])
    assert loaded.to_dict() == {"optim": {"name": "sgd", "b1": 1}}


def test_a_config_may_take_an_argument(config_file):
    assert load(f"{config_file}:7").steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "fails at line 1: SyntaxError: invalid syntax"),
        ("\nx = 1 / 0", "fails at line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return {}['lr']", "fails at line 2: KeyError: 'lr'"),
        ("def get_config():\n    return 3", "does not return a ConfigDict from get_config() but 3"),
        ("config = 1", "has no function get_config()"),
        ("def get_config():\n    raise SystemExit", "fails at line 2: SystemExit"),
        ("import sys\nsys.exit(3)", "fails at line 2: SystemExit: 3"),
        ("def get_config():\n    raise GeneratorExit", "fails at line 2: GeneratorExit"),
        (
            "def get_config():\n    return {1: 2, 'base': 3}",
            "does not return a config: TypeError: '<' not supported between instances of 'str' and 'int'",
        ),
        (
            "def get_config():\n    return {None: 2}",
            "does not return a config: TypeError: argument of type 'NoneType' is not iterable",
        ),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "config.py")
    assert str(caught.value) == f"config file {tmp_path / 'config.py'} {message}"


def test_a_placeholder_is_set_by_a_flag_or_is_named(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\nfrom ml_collections.config_dict import required_placeholder\n\n\n"
        "def get_config():\n    return ConfigDict({'base': {'path': required_placeholder(str)}, 'steps': 1})\n"
    )
    assert load_config(path, [("base.path", "7")]).to_dict() == {"base": {"path": "7"}, "steps": 1}
    with pytest.raises(
        InputError, match=rf"^config\.base\.path is not set, .* {path} requires it: set it, as --config"
    ):
        load_config(path, [("steps", "2")])


def test_a_frozen_config_takes_overrides(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import FrozenConfigDict\n\n\n"
        "def get_config():\n    return FrozenConfigDict({'base': {'path': 'a'}, 'steps': 1})\n"
    )
    assert load_config(path, [("base.path", "b")]).to_dict() == {"base": {"path": "b"}, "steps": 1}


def test_an_override_below_a_field_is_refused(config_file):
    with pytest.raises(InputError, match=r"^config\.steps is not a section, so config\.steps\.x cannot be set$"):
        load(config_file, ("steps.x", "1"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no config file was given: add --config=FILE, for example --config=configs/quickstart.py"),
        (["--config=nope.py"], f"config file nope.py does not exist; {GIVE}"),
        (["--folder"], "Missing value for flag --folder"),
        (["--config=FILE", "stray"], "'stray' is not a flag; flags are written --name=value"),
        (["--config=FILE", "--config.optim.lrr=1"], "config.optim.lrr is not a field; did you mean config.optim.lr?"),
        (["--config=FILE", "--config.optim.lr=fast"], "config.optim.lr is 'fast', but should be a number"),
        (["--config=FILE", "--config.optim.lr"], "config.optim.lr is True, but should be a number"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(config_file, arguments, sentence, monkeypatch):
    status, _ = run_here([a.replace("FILE", config_file) for a in arguments], monkeypatch)
    assert status == f"error: {sentence}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.steps=3", "--config=FILE", "--config.optim.lr", "1e-3", "--noconfig.data.packing"],
        ["-config=FILE:3", "-config.optim.lr=1e-3", "--config.data.packing=False"],
    ],
)
def test_overrides_are_written_as_flags_are(config_file, arguments, monkeypatch):
    status, config = run_here([a.replace("FILE", config_file) for a in arguments], monkeypatch)
    assert (status, config.steps, config.optim.lr, config.data.packing) == (0, 3, 1e-3, False)


def test_commands_are_quiet_and_their_ends_are_clean(command, config_file):
    """All commands are in one test, so that the processes run side by side."""
    right = command(f"--config={config_file}", "--config.steps=3")
    wrong = command("--workdri=x")
    interrupted = command(f"--config={config_file}", "--workdir=wait")
    piped = command(f"--config={config_file}", "--workdir=much")

    assert interrupted.stdout.readline() == "waiting\n"
    interrupted.send_signal(signal.SIGINT)
    assert piped.stdout.readline() == "0\n"
    piped.stdout.close()
    piped.stdout = None

    sentence = "error: --workdri is not a flag of this command; did you mean --workdir?\n"
    assert (wrong.communicate(), wrong.returncode) == (("", sentence), 1)
    assert (interrupted.communicate(), interrupted.returncode) == (("", "\ninterrupted\n"), 130)
    assert (piped.communicate(), piped.returncode) == ((None, ""), 141)
    if platform.has_tpu() or platform.has_gpu():
        pytest.skip("this machine has an accelerator, whose runtime may have something to say")
    assert (right.communicate(), right.returncode) == (("3 1.0 True None cpu\n", ""), 0)


def test_a_mistake_ends_the_command_whatever_its_threads_wait_for(tmp_path):
    program = """
import threading
from aligner_jax.errors import InputError
from aligner_jax.runtime import command

def main():
    threading.Thread(target=threading.Event().wait).start()
    raise InputError("the disk is full")

command.run(main)
"""
    paths = {"PYTHONPATH": places.PYTHONPATH}
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **paths}, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (1, "error: the disk is full\n")


@pytest.mark.parametrize(
    "argument",
    [
        "--" + "x" * 3_000_000,
        "--x" * 1_000_000,
        "y" * 3_000_000,
        "--config=" + "z" * 3_000_000,
        "--config=FILE:" + "z" * 3_000_000,
        "--config.steps=" + "9" * 4000,
        "--config.steps=" + "9" * 3_000_000,
        "--config.optim.lr=" + "9" * 4000,
        "--config.optim.lr=1e999",
        "--config.optim.schedule=" + "[" * 1_000_000,
        "--config.data.path=" + "(" * 100,
        "--config." + "a." * 1_000_000 + "b=1",
        "--config.seed=\x1b[2J\udcff",
        "--config.get=1",
        "--config.keys.get=1",
        "--config..=1",
        "--config.sweep.lr=(nan,)",
        "--config.sweep.lr=" + str([1.0] * 100_000),
        "--config.base=" + str({"a" * 1000: 1}),
        "--config.base=" + str({1: 2}),
    ],
    ids=lambda argument: argument[:30],
)  # fmt: skip
def test_whatever_a_flag_holds_the_message_is_one_short_line(config_file, argument, monkeypatch):
    began = time.monotonic()
    arguments = [argument.replace("FILE", config_file)]
    if not argument.startswith("--config="):
        arguments.insert(0, f"--config={config_file}")
    status, seen = run_here(arguments, monkeypatch)
    if seen is None:
        assert status.startswith("error: ")
        assert len(status) < 420
        assert status.isprintable()
    assert time.monotonic() - began < 20


def test_a_config_may_hold_anything_and_the_message_is_one_line(tmp_path):
    for field, value in (
        ("steps", "10**5000"), ("seed", "-10**5000"), ("optim.lr", "10**400"), ("optim.schedule", "[1] * 10**6"),
        ("data.path", "b'x' * 10**6"), ("remat", "__import__('numpy').arange(9)"), ("sweep.lr", "['x' * 10**6]"),
        ("base.dtype", "object()"), ("data.packing", "'no'"), ("optim.b1", "float('nan')"), ("mesh.data", "True"),
    ):  # fmt: skip
        text = f"from ml_collections import ConfigDict\ndef get_config():\n    return {{'x': {value}}}"
        (tmp_path / "c.py").write_text(text)
        value = load_config(tmp_path / "c.py").x
        config = {"base": {"path": "m"}, "data": {"path": "d"}, "steps": 1}
        section, _, name = field.rpartition(".")
        (config.setdefault(section, {}) if section else config)[name] = value
        with pytest.raises(InputError, match=rf"^config\.{re.escape(field)}") as caught:
            parse_config(config)
        assert len(str(caught.value)) <= 400
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    c = {}\n    for _ in range(5000):\n"
        "        c = {'a': c}\n    return c"
    )
    with pytest.raises(InputError, match="nested too deeply"):
        load_config(tmp_path / "c.py")


def test_a_file_that_is_no_python_is_said_to_be_none(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": true}')
    with pytest.raises(
        InputError, match=r"fails at line 1: NameError: .*; a config file is a Python file \(.py\) with"
    ):
        load_config(tmp_path / "config.json")
