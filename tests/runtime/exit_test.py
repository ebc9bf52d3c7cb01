"""Lines on stderr while a progress bar may be on the terminal."""

import os
import pty

from aligner_jax.runtime.exit import write_line


def test_a_line_is_written_with_what_is_no_text_escaped(capfd):
    write_line("stopped at \udcff")
    assert capfd.readouterr().err == "stopped at \\udcff\n"


def test_on_a_terminal_a_line_takes_the_place_of_the_bar():
    outer, terminal = pty.openpty()
    real = os.dup(2)
    try:
        os.write(terminal, b"training ---- 3/9")
        os.dup2(terminal, 2)
        write_line("SIGINT: the run stops")
    finally:
        os.dup2(real, 2)
        os.close(real)
    written = b""
    while not written.endswith(b"\n"):
        written += os.read(outer, 1000)
    os.close(outer)
    os.close(terminal)
    assert written == b"training ---- 3/9\r\x1b[2KSIGINT: the run stops\r\n"
