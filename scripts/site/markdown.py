"""Links, headings and code blocks of Markdown pages."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^ *(?P=fence)[ ]*$"
    r"|(?P<link>!?\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\))"
    r"|`(?P<inline>(?:[^`\n]|\n(?!\s*\n))+)`"
    r"|^(?P<heading>\#+)[ ]+(?P<title>[^\n]+)$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of code: the number of its first line of code, its language and its text without indentation."""

    line: int
    language: str
    text: str


class Link(NamedTuple):
    """A link or image: its line, text and target."""

    line: int
    text: str
    target: str


def blocks(page: str) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    found = []
    for token in _TOKEN.finditer(page):
        if token["fence"]:
            indent = len(token["indent"])
            code = "\n".join(line[indent:] for line in token["code"].splitlines())
            found.append(Block(_line(page, token.start("code")), token["language"].strip(), code))
    return found


def indented(page: str) -> list[Block]:
    """Returns the blocks of code that are marked by an indentation of four spaces alone."""
    lines = _TOKEN.sub(lambda token: re.sub(r"[^\n]", "", token[0]) if token["fence"] else token[0], page)
    found = re.finditer(r"(?:^|\n)[ ]*\n((?:    [^\n]*(?:\n|$))+)", lines)
    return [
        Block(_line(lines, code.start(1)), "", "\n".join(line[4:] for line in code[1].splitlines())) for code in found
    ]


def links(page: str) -> list[Link]:
    """Returns the links and images of a page, in order, without those in code."""
    return list(_links(page, page, 0))


def _links(text: str, page: str, start: int) -> Iterator[Link]:
    for token in _TOKEN.finditer(text):
        if token["link"]:
            yield Link(_line(page, start + token.start()), token["text"], token["target"])
            yield from _links(token["text"], page, start + token.start("text"))


def inline_code(page: str) -> list[tuple[int, str]]:
    """Returns the code within a page's text, with the number of the line that it begins in."""
    found = []
    for token in _TOKEN.finditer(page):
        if token["inline"]:
            found.append((_line(page, token.start()), token["inline"]))
        elif token["link"]:
            found += [(_line(page, token.start()), code) for _, code in inline_code(token["text"])]
    return found


def with_links(page: str, change: Callable[[Link], str]) -> str:
    """Returns the page with every link replaced by what `change` returns for it.

    A link in the text of another (an image that is a link) is changed first.
    """

    def changed(token: re.Match) -> str:
        if not token["link"]:
            return token[0]
        bang = "!" if token["link"].startswith("!") else ""
        link = Link(_line(page, token.start()), with_links(token["text"], change), token["target"])
        return bang + change(link)

    return _TOKEN.sub(changed, page)


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as code hosts and the site name them."""
    found: set[str] = set()
    for token in _TOKEN.finditer(page):
        if token["heading"]:
            title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", token["title"]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            number = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
            found.add(f"{slug}-{number}" if number else slug)
    return found


def _line(page: str, position: int) -> int:
    return page.count("\n", 0, position) + 1
