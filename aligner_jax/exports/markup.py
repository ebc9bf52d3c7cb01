"""Texts from files as scalars of YAML and as code in Markdown, where no character has a meaning."""

import json
import re


def yaml_text(text: str) -> str:
    """Returns a text as a double-quoted YAML scalar of one line."""
    quoted = json.dumps(_without_surrogates(text), ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def yaml_number(value: float) -> str:
    """Returns a finite number as a YAML float of 7 digits; without a decimal point, YAML 1.1 would read a text."""
    return f"{value:.6f}" if value == 0 or 0.1 <= abs(value) < 1e6 else f"{value:.6e}"


def code(text: str, most: int = 500) -> str:
    """Returns a text as inline code of Markdown: on one line, cut after `most` characters.

    Args:
      text: any text, not for a table, where "|" ends a cell even in code.
      most: most characters.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in _without_surrogates(text)).split())
    line = line if len(line) <= most else line[:most] + "…"
    if not line:
        return "(empty)"
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    # Spaces at both ends are removed when the code is shown.
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def _without_surrogates(text: str) -> str:
    # They stand for bytes of file names that are not UTF-8.
    return text.encode(errors="replace").decode()
