"""The documentation site builds without a warning, and has every page."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import places
import pytest

from scripts.site import pages
from scripts.site.build import build


class Links(HTMLParser):
    """Targets of a page's links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "scripts.site", f"--out={folder}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=places.ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return folder


def reached(site: Path) -> set[str]:
    """Returns the paths of all pages that links lead to from the index, below the site's folder."""
    found, waiting = set(), ["index.html"]
    while waiting:
        page = waiting.pop()
        if page in found or not page.endswith(".html"):
            continue
        found.add(page)
        for target in Links((site / page).read_text(encoding="utf-8")).targets:
            link = urlsplit(target)
            if not link.scheme and link.path:
                file = ((site / page).parent / unquote(link.path)).resolve()
                assert file.is_file(), f"{page} links to {target}, which the site does not have"
                waiting.append(str(file.relative_to(site.resolve())))
    return found


def test_every_page_is_reachable_from_the_index(site: Path):
    expected = {f"docs/{path.stem}.html" for path in (places.ROOT / "docs").glob("*.md")}
    assert expected - reached(site) == set()


def test_every_page_of_docs_has_a_place_in_the_order():
    assert pages.unlisted(places.ROOT) == [], "add these pages to a section of scripts/site/pages.py"


def test_no_page_has_two_places():
    listed = [page for section in pages.SECTIONS.values() for page in section]
    assert sorted(set(listed)) == sorted(listed)


def test_a_page_needs_nothing_from_the_network(site: Path):
    for page in sorted(site.rglob("*.html")):
        html = page.read_text(encoding="utf-8")
        for mark in ('src="http', "src='http", 'rel="stylesheet" type="text/css" href="http', "@import"):
            assert mark not in html, f"{page.name} loads something from the network"


FAULTS = {
    "[a page](no_page.md)": "no_page",
    "[a heading](#no_heading)": "no_heading",
    "![a figure](no_figure.svg)": "no_figure",
    "```{no_directive}\n```": "no_directive",
}


# myst-parser uses what Sphinx will drop in a later major release, which the ranges of requirements leave out.
@pytest.mark.filterwarnings("ignore:.*is deprecated:PendingDeprecationWarning")
def test_every_fault_of_a_page_is_a_warning(tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# Title\n\n" + "\n\n".join(FAULTS))
    found = build(tmp_path / "source", tmp_path / "out").splitlines()
    assert len(found) == len(FAULTS)
    for fault in FAULTS.values():
        assert any(line.startswith("index.md:") and fault in line for line in found), fault
