"""Diffs on pages: the files that they change, and what a copy of the repository is after them."""

import re
from pathlib import Path
from typing import NamedTuple

from scripts.site.markdown import blocks


class Hunk(NamedTuple):
    """Lines of a file before and after a change."""

    before: list[str]
    after: list[str]


def diffs_of(text: str) -> dict[str, list[Hunk]]:
    """Returns the changes of all diffs on a page, by file; a new file has one hunk with nothing before.

    Raises:
      AssertionError: a hunk has another number of lines than its head says, so that `git apply` would refuse it.
    """
    found: dict[str, list[Hunk]] = {}
    for block in blocks(text):
        if block.language != "diff":
            continue
        for part in re.split(r"^--- ", block.text, flags=re.MULTILINE)[1:]:
            heads, *hunks = re.split(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*\n", part, flags=re.MULTILINE)
            name = re.findall(r"^\+\+\+ b/(\S+)$", heads, re.MULTILINE)[0]
            for old, new, body in zip(hunks[::3], hunks[1::3], hunks[2::3], strict=True):
                lines = body.splitlines()
                hunk = Hunk([x[1:] for x in lines if x[:1] != "+"], [x[1:] for x in lines if x[:1] != "-"])
                assert [len(hunk.before), len(hunk.after)] == [int(old or 1), int(new or 1)], f"{name}: a hunk's counts"
                found.setdefault(name, []).append(hunk)
    return found


def apply(diffs: dict[str, list[Hunk]], folder: Path) -> None:
    """Changes the files of a copy of the repository.

    Raises:
      AssertionError: the lines before a change are not in the file, or more than once.
    """
    for name, hunks in diffs.items():
        file = folder / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        for hunk in hunks:
            if not hunk.before:
                assert not text, f"{name} exists already"
                text = "\n".join(hunk.after) + "\n"
                continue
            before = "\n".join(hunk.before) + "\n"
            assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
            text = text.replace(before, "\n".join(hunk.after) + "\n")
        file.write_text(text, encoding="utf-8")
