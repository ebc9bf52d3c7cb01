"""Folds text to a width: at spaces, then after slashes, then after marks inside names, never inside a number."""

import re

from rich.cells import cell_len

# A number stays with its unit.
_SPACES = re.compile(r"\s*\S+(?:(?<=\d) (?:[KMGT]i?B|B|T|s|ms)\b\S*)?\s*")
# A date, a ratio and a fraction stay in one piece: no break between a mark and a digit.
_SLASHES = re.compile(r"(?<=[/\\])(?=[^\s\d/\\])")
_MARKS = re.compile(r"(?<=[_\-.:=,@(\[])(?=[^\s\d_\-.:=,@])")
DEEPEST = 2
"""Depth at which text folds inside names; at 1 it folds after slashes too, at 0 at spaces alone."""


def width_of(text: str) -> int:
    """Returns the columns that the widest line of a text takes."""
    return max(map(cell_len, text.split("\n")))


def least_width(text: str, depth: int) -> int:
    """Returns the least width at which no piece of this depth is broken; see `DEEPEST`."""
    lines = text.split("\n")
    return max((cell_len(piece.rstrip()) for line in lines for piece in _pieces(line, depth)), default=0)


def fold(text: str, width: int) -> list[str]:
    """Returns the text's lines, none wider than `width` columns, and no number cut unless it is wider itself.

    Args:
      text: text of any number of lines.
      width: columns of a line, at least 2 if the text has wide characters.
    """
    return [folded for line in text.split("\n") for folded in _fold_line(line, width)]


def _fold_line(line: str, width: int) -> list[str]:
    lines = [""]
    for piece in _fitting(line, width, 0):
        if cell_len((lines[-1] + piece).rstrip()) > width and lines[-1]:
            lines.append("")
            piece = piece.lstrip()
        lines[-1] += piece
    return [each.rstrip() for each in lines]


def _fitting(text: str, width: int, depth: int) -> list[str]:
    """Returns pieces that fit a line, each folded no deeper than it must be."""
    fitting: list[str] = []
    for piece in _pieces(text, depth):
        if cell_len(piece.rstrip()) <= width:
            fitting.append(piece)
        elif depth < DEEPEST:
            fitting += _fitting(piece, width, depth + 1)
        else:
            fitting += _characters(piece, width)
    return fitting


def _pieces(text: str, depth: int) -> list[str]:
    # The pattern would try every space of a blank line.
    pieces = _SPACES.findall(text) if text.strip() else []
    for marks in (_SLASHES, _MARKS)[:depth]:
        pieces = [part for piece in pieces for part in marks.split(piece)]
    return pieces


def _characters(text: str, width: int) -> list[str]:
    parts = [""]
    for character in text:
        if cell_len(parts[-1] + character.rstrip()) > width:
            parts.append("")
        parts[-1] += character
    return parts
