"""Servers that scripts start."""

import sys
from pathlib import Path

import pytest

from scripts.lib import server_log


def test_a_server_that_says_much_is_not_held_up(tmp_path: Path):
    line = "tiny at http://127.0.0.1:81/v1"
    code = f"import sys; print({line!r}, 'x' * 2**20, sep='\\n', file=sys.stderr)"
    process, url = server_log.start([sys.executable, "-c", code], tmp_path / "log")
    assert url == "http://127.0.0.1:81"
    # More than a pipe holds.
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "log").stat().st_size > 2**20


def test_a_server_that_does_not_start_is_told(tmp_path: Path):
    with pytest.raises(SystemExit, match="the server did not start: no port"):
        server_log.start([sys.executable, "-c", "import sys; sys.exit('no port')"], tmp_path / "log")
