"""Every link of README and docs leads to a file and to a heading that exist."""

import doc_pages
import places
import pytest
from doc_pages import PAGES

from scripts.site.markdown import anchors, links


def broken(page: str, text: str) -> list[str]:
    """Returns the links of a page that lead nowhere, as "page:line: sentence"."""
    found = []
    for link in links(text):
        path, _, anchor = link.target.partition("#")
        if path.startswith(("https://", "http://127.0.0.1", "http://localhost", "mailto:")):
            continue
        file = (places.ROOT / page).parent / path if path else places.ROOT / page
        if ":" in path or not file.resolve().is_relative_to(places.ROOT):
            found.append(f"{page}:{link.line}: {link.target} is neither https nor a file of the repository")
        elif path and not file.exists():
            found.append(f"{page}:{link.line}: there is no {path}")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if path else text):
            found.append(f"{page}:{link.line}: {path or 'this page'} has no heading #{anchor}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str):
    assert broken(page, doc_pages.read(page)) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a](b.md)", "there is no b.md"),
        ("![a\nb](figures/no.svg)", "there is no figures/no.svg"),
        ("[a](#no)", "this page has no heading #no"),
        ("[a](tpu.md#no)", "tpu.md has no heading #no"),
        ("[![a](no.svg)](tpu.md)", "there is no no.svg"),
        ("[a](http://example.org)", "is neither https nor"),
        ("[a](../../other/x.md)", "is neither https nor"),
    ],
)
def test_a_broken_link_is_seen(text: str, sentence: str):
    (found,) = broken("docs/page.md", f"# Title\n\n{text}\n")
    assert found.startswith("docs/page.md:3: ")
    assert sentence in found


def test_links_in_code_are_none():
    assert (
        broken("docs/page.md", "`[a](b.md)`\n\n```\n[a](b.md)\n```\n\n[b](#c-d)\n\n## `C` [d](https://e.org)\n") == []
    )


def test_headings_of_one_name_are_numbered():
    assert anchors("# A b\n\n## A b\n\n### `c_d`, (e)\n") == {"a-b", "a-b-1", "c_d-e"}
