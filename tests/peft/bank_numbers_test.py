"""Files of numbers are closed when nobody has them, and say nothing at exit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from aligner_jax.peft.bank_numbers import Numbers


def test_numbers_that_are_open_at_exit_print_nothing(tmp_path: Path):
    (tmp_path / "numbers.1").touch()
    # Kept until the names of modules are gone, as by a cache that is not Python's.
    program = (
        "import os, sys; from pathlib import Path; from aligner_jax.peft import bank_numbers\n"
        "sys._kept = os, bank_numbers, bank_numbers.Numbers(Path(sys.argv[1]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "numbers.1"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (ran.stdout, ran.stderr) == ("", "")


def test_numbers_that_nobody_has_are_closed(tmp_path: Path):
    (tmp_path / "numbers.1").touch()
    numbers = Numbers(tmp_path / "numbers.1")
    handle = numbers._handle
    os.fstat(handle)
    del numbers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
