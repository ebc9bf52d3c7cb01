"""Markdown of texts that come from docstrings and help lines."""

import inspect
import re
from collections.abc import Iterable, Sequence


def prose(text: str) -> str:
    """Returns one line of Markdown that shows the text as it is, with its `code` as code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*<$|\[\]])", r"\\\1", part) for part in parts)


def paragraphs(text: str) -> str:
    """Returns Markdown of a docstring's description: commands and indented lines as code, lists as lists."""
    parts = []
    for part in text.split("\n\n"):
        if part.startswith(("python ", "    ")):
            parts.append(f"```bash\n{inspect.cleandoc(part)}\n```")
        elif part.startswith("```"):
            parts.append(part)
        else:
            head, *items = re.split(r"(?:^|\n)- ", part)
            parts.append("\n".join([*([prose(head)] if head else []), *(f"- {prose(item)}" for item in items)]))
    return "\n\n".join(parts) + "\n"


def code(text: object) -> str:
    """Returns text as code, for a cell of a table too."""
    escaped = str(text).replace("|", "\\|")
    return f"`{escaped}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of Markdown; cells are Markdown themselves."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def sections(docstring: str | None) -> dict[str, str]:
    """Returns the parts of a docstring by their headings ("Args", "Attributes"); "" is the description."""
    found, name = {"": []}, ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        if heading := re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            name = heading[1]
            found[name] = []
        else:
            if line and name and not line.startswith(" "):
                # The section has ended: what follows belongs to the description.
                name = ""
            found[name].append(line)
    return {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in found.items()}


def entries(section: str) -> dict[str, str]:
    """Returns the entries of a section such as "Args", "name: meaning", by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := re.match(r"(\**\w+(?:, \**\w+)*): (.*)", line):
            names = entry[1].replace("*", "").split(", ")
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
