"""Work within a user's process shows nothing if it is asked to be quiet."""

import io

import pytest

from aligner_jax.api.process import in_users_process
from aligner_jax.runtime.waiting import Waiting


@pytest.mark.parametrize(("quiet", "shown"), [(False, "reading …\n"), (True, "")])
def test_a_quiet_call_shows_no_stage(quiet: bool, shown: str):
    stream = io.StringIO()
    with in_users_process(quiet=quiet), Waiting("reading", stream=stream):
        pass
    assert stream.getvalue() == shown
