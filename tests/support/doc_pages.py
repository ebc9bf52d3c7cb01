"""The project's pages, and the shell lines in them."""

import re
import shlex
from typing import NamedTuple

import places

from scripts.site.markdown import blocks, indented, inline_code

PAGES = sorted(
    str(path.relative_to(places.ROOT))
    for pattern in ("*.md", "docs/*.md", "notebooks/*.md", "aligner_jax/data/quickstart/*.md")
    for path in places.ROOT.glob(pattern)
)
"""Paths of all pages, below the repository."""

_SHELL = {"bash", "sh", "shell", "console", ""}
_PROGRAM = r"(?:\w+=\S+ )*(?:python -m|python3? |bash |pip |aligner-jax |source )"
_STARTS = re.compile(_PROGRAM)
_SEPARATORS = {"|", "&&", "||", ";", "&", "then", "do", "else"}


class Line(NamedTuple):
    """A command on a page: its place, and its words without those that only mark what may be left out.

    Attributes:
      place: "page:line".
      words: the command's words.
      is_whole: False if the page leaves a part out ("…").
    """

    place: str
    words: list[str]
    is_whole: bool


def read(page: str) -> str:
    """Returns the text of a page."""
    return (places.ROOT / page).read_text(encoding="utf-8")


def shell_lines(name: str, text: str) -> list[Line]:
    """Returns all commands in a page's blocks of shell, and those in its text that begin with a program of ours.

    Raises:
      AssertionError: a line cannot be split into words; names it.
    """
    found = []
    for block in [*blocks(text), *indented(text)]:
        if block.language in _SHELL:
            for number, line in _joined(block.text, always=block.language != ""):
                found += _commands(f"{name}:{block.line + number}", line)
    for number, code in inline_code(text):
        if _STARTS.match(code):
            found += _commands(f"{name}:{number}", code)
    return found


def _joined(text: str, *, always: bool) -> list[tuple[int, str]]:
    """Returns the lines with their numbers, continued ones joined; in blocks without a language, commands alone."""
    lines: list[tuple[int, str]] = []
    goes_on = False
    for number, line in enumerate(text.splitlines()):
        # A synopsis goes on in lines that are indented.
        goes_on = goes_on or (bool(lines) and not always and line.startswith("  "))
        if goes_on:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]} {line.strip()}")
        elif line.strip() and (always or _STARTS.match(line)):
            lines.append((number, line.strip().removeprefix("$ ")))
        goes_on = line.endswith("\\")
        if goes_on:
            lines[-1] = (lines[-1][0], lines[-1][1].removesuffix("\\").rstrip("\\ "))
    return lines


def _commands(place: str, line: str) -> list[Line]:
    text, marked = " ".join(line.split()), 1
    while marked:
        text, marked = re.subn(r"\[(-{1,2}[^\[\]]*)\]", r"\1", text)
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise AssertionError(f"{place}: {error}: {line}") from None
    found: list[list[str]] = [[]]
    for word in words:
        if word in _SEPARATORS:
            found.append([])
        else:
            found[-1].append(word.removesuffix(";"))
            if word.endswith(";"):
                found.append([])
    is_whole = "…" not in text and "..." not in text
    return [Line(place, [w for w in each if w not in ("…", "...")], is_whole) for each in found if each]
