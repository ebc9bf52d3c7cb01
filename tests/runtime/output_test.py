import io
import os
import subprocess
import sys

import pytest
from places import PYTHONPATH
from rich.table import Table
from rich.text import Text

from aligner_jax.analysis.report import Section
from aligner_jax.analysis.report import Table as Figures
from aligner_jax.analysis.write import show
from aligner_jax.errors import InputError, printable
from aligner_jax.files.content import open_file
from aligner_jax.runtime.output import PlainConsole


@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_of_files_move_no_cursor(is_terminal: bool):
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=60, force_terminal=is_terminal, color_system=None, highlight=False)
    console.out("saved: a\x1b[2J\x9bb\u202e")
    table = Table()
    table.add_column(Text("\x1b]0;title\x07"))
    table.add_row(Text("ä\u00a0x\n\x1b[31my"))
    console.print(table)
    shown = screen.getvalue()
    assert "saved: a\\x1b[2J\\x9bb\\u202e\n" in shown
    assert "\\x1b]0;t" in shown
    assert "ä\u00a0x" in shown
    assert "\x1b[" not in shown
    assert "\x1b]" not in shown


def test_printable_text_keeps_lines_tabs_and_letters():
    assert printable("a\tb\nü漢\U0001f469\u200d\U0001f469") == "a\tb\nü漢\U0001f469\u200d\U0001f469"
    assert printable("\r\x00\x7f\u2066") == "\\r\\x00\\x7f\\u2066"


def test_brackets_in_names_of_figures_are_no_markup():
    screen = io.StringIO()
    figures = Figures("name", "[/a]", ("[/c]",), [("[/d]",)], brief=True)
    show([Section("title", "", tables=[figures])], PlainConsole(file=screen, width=60))
    for text in ("[/a]", "[/c]", "[/d]"):
        assert text in screen.getvalue()


def test_a_file_that_fails_while_it_is_read_is_named():
    # The kernel refuses to read from address 0.
    with (
        open_file("/proc/self/mem") as file,
        pytest.raises(InputError, match=r"^/proc/self/mem cannot be read: In"),
    ):
        file.read(8)


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
    logging.getLogger("hub").addHandler(logging.StreamHandler())
    logging.getLogger("hub.file").warning("once")

command.run(main)
"""


def test_log_lines_have_no_prefix_and_no_traceback():
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == "WARNING:root:first, with a handler of its own making"
    assert lines == ["of the package", "of absl", "an error of absl", "a warning of two lines", "failed: why", "once"]
