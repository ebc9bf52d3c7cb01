"""What libraries log reaches stderr as plain sentences."""

import os
import subprocess
import sys

import places

PROGRAM = """
import logging, warnings
logging.warning("first, with a handler of its own making")
from absl import logging as absl_logging
from aligner_jax.runtime import command

def main():
    logging.getLogger("aligner_jax.x").warning("of the\\npackage")
    absl_logging.warning("of absl")
    absl_logging.error("an error of %s", "absl")
    warnings.warn("a warning\\nof two lines")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("library").exception("failed")

command.run(main)
"""


def test_log_lines_have_no_prefix_and_no_traceback():
    environment = {**os.environ, "PYTHONPATH": places.PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == "WARNING:root:first, with a handler of its own making"
    assert lines == ["of the package", "of absl", "an error of absl", "a warning of two lines", "failed: why"]
