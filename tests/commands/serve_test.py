"""The command: what it needs, that it serves, and that SIGTERM ends it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import command_runs
import openai
import places
import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a base and adapters: --base=PATH --adapters=DIR_OR_BANK"),
        (["--base=x"], "give a base and adapters: --base=PATH --adapters=DIR_OR_BANK"),
        (["--base=x", "--adapters=y", "--host=no.such.host.invalid"], "nothing can listen on no.such.host.invalid"),
        (["--base=x", "--adapters=y", "--port=0"], "there is no base model at x"),
        (["--base=x", "--adapters=y", "--port=0", "--api_key_file=/nothing"], "/nothing"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], sentence: str):
    ended = command_runs.run_command("serve", *arguments)
    assert ended.status == 1
    assert sentence in ended.err


def test_a_folder_of_adapters_must_exist(tiny_model: Path):
    ended = command_runs.run_command("serve", f"--base={tiny_model}", "--adapters=/nothing", "--port=0")
    assert (ended.status, "/nothing is not a folder of adapters" in ended.err) == (1, True)


def test_several_processes_are_refused(tiny_model: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "aligner_jax.serve", f"--base={tiny_model}", "--adapters=y", "--port=0"],
            env={
                **os.environ, "PYTHONPATH": places.PYTHONPATH, "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": number,
            },
            stderr=subprocess.PIPE, text=True,
        )
        for number in "01"
    ]  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert "error: a server runs on the devices of one host, and 2 processes were joined; start it alone" in err
        assert process.returncode == 1


def test_the_command_serves_until_sigterm(tiny_model: Path, tmp_path: Path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "keys").write_text("a-key-for-this-test\n")
    command = [
        sys.executable, "-m", "aligner_jax.serve", f"--base={tiny_model}", f"--adapters={tmp_path / 'adapters'}",
        "--port=0", "--dtype=float32", "--nowarm_up", "--tokens=64", f"--api_key_file={tmp_path / 'keys'}",
        # Programs of the running request still compile after the signal.
        "--grace_seconds=300",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=places.ROOT) as process:
        line = process.stderr.readline()
        found = re.search(r"^tiny at (http://127\.0\.0\.1:\d+/v1)$", line)
        assert found, line
        options = {"model": "tiny", "prompt": "Why", "max_tokens": 4, "temperature": 0}
        with openai.OpenAI(base_url=found[1], api_key="a-key-for-this-test", max_retries=0) as client:
            assert client.completions.create(**options).usage.completion_tokens == 4
            stream = client.completions.create(**{**options, "max_tokens": 60}, stream=True)
            next(iter(stream))
            process.send_signal(signal.SIGTERM)
            assert len(list(stream)) > 1
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
