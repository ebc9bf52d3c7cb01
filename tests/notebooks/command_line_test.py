import sys
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.notebooks.command_line import COLUMNS, command, running


@pytest.mark.parametrize("show", [True, False])
def test_it_returns_and_prints_the_output(show: bool, capsys: pytest.CaptureFixture):
    program = "import os, sys; print(sys.executable, os.environ['COLUMNS']); print('two words')"
    expected = f"{sys.executable} {COLUMNS}\ntwo words\n"
    assert command(f'python -c "{program}"', show=show) == expected
    assert capsys.readouterr().out == (expected if show else "")


@pytest.mark.parametrize("show", [True, False])
def test_a_failure_ends_with_the_last_line(show: bool):
    with pytest.raises(InputError) as caught:
        command("python -c \"import sys; sys.exit('error: no such file')\"", show=show)
    assert str(caught.value).endswith("ended with status 1: error: no such file")


def test_a_tpu_stays_with_the_notebook(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert command("python -c \"import os; print(os.environ['JAX_PLATFORMS'])\"") == "cpu\n"


def test_a_server_runs_as_long_as_its_block(tmp_path: Path):
    server = tmp_path / "server.py"
    server.write_text(
        "import atexit, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'ended')!r}).touch)\n"
        "print('starting')\nprint('ready at port 17, it says')\n"
        "while True:\n    print('x' * 10_000)\n    time.sleep(0.01)\n"
    )
    with running(f"python {server}", until=r"port \d+") as found:
        assert found == "port 17"
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").exists()


def test_a_server_that_does_not_start():
    line = "python -c \"print('starting'); raise SystemExit('the port is taken')\""
    with (
        pytest.raises(InputError, match="ended with status 1: the port is taken"),
        running(line, until="ready"),
    ):
        raise AssertionError("it did not start")
