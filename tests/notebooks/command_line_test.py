import sys

import pytest

from aligner_jax.errors import InputError
from aligner_jax.notebooks.command_line import COLUMNS, command


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
