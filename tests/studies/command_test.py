"""aligner_jax/studies/command.py: exit statuses, and one sentence for an error."""

import signal

import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies import command


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


def test_the_status_is_that_of_the_work():
    with pytest.raises(SystemExit) as ended:
        command.main(lambda: 3)
    assert ended.value.code == 3


def test_an_error_is_one_sentence_and_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command.main(raising(InputError("the file is missing")))
    assert ended.value.code == "error: the file is missing"
    with pytest.raises(SystemExit) as ended:
        command.main(raising(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_sigterm_ends_the_work_with_its_status():
    with pytest.raises(SystemExit) as ended:
        command.main(lambda: signal.raise_signal(signal.SIGTERM) or 0)
    assert ended.value.code == 143
