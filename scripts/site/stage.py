"""Collects the sources of the site in one folder, in which links between files are those of the repository."""

import shutil
from pathlib import Path

from scripts.site.markdown import Link, with_links
from scripts.site.pages import INDEX, present
from scripts.site.reference import REFERENCE

ROOT = Path(__file__).resolve().parents[2]


def stage(folder: Path) -> None:
    """Copies all pages into the folder, and the files that they link to.

    Pages keep their paths, so that one relative link serves a reader of the repository and of the site. The site has no
    page for a folder of the repository: a link to one becomes plain text.
    """
    sections = present(ROOT)
    for page in [INDEX, *(page for pages in sections.values() for page in pages)]:
        target = folder / ("index.md" if page == INDEX else page)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / page).read_text(encoding="utf-8")
        target.write_text(with_links(text, lambda link, page=page: _link(link, page, folder)), encoding="utf-8")
    for page, write in REFERENCE.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(write(), encoding="utf-8")
    sections["Reference"] = list(REFERENCE)
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        for title, pages in sections.items():
            index.write(_toctree(title, pages))


def _toctree(title: str, pages: list[str]) -> str:
    """Returns a table of contents, which the site shows in its side bar only."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *(f"/{p}" for p in pages), "```", ""])


def _link(link: Link, page: str, folder: Path) -> str:
    """Returns a link as the site needs it, and copies the file that it leads to."""
    path, hash_, anchor = link.target.partition("#")
    target = link.target
    if path and ":" not in path:
        file = ((ROOT / page).parent / path).resolve()
        if file.is_dir():
            return link.text
        if file == ROOT / INDEX:
            target = f"{path.removesuffix(INDEX)}index.md{hash_}{anchor}"
        elif file.is_file() and file.suffix != ".md":
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return f"[{link.text}]({target})"
