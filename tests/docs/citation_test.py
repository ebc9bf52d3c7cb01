"""CITATION.cff is valid by the schema's required keys, and names this version; the version is in the changelog."""

import re
import tomllib

import pytest
import yaml
from places import ROOT

import aligner_jax as aj

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KNOWN = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
"""All keys that version 1.2.0 of the schema has at the top."""


def test_it_has_the_keys_of_the_schema():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"authors", "cff-version", "message", "title"} <= CITATION.keys() <= KNOWN
    assert CITATION["type"] in ("software", "dataset")


@pytest.mark.parametrize("work", [CITATION, CITATION["preferred-citation"]], ids=["software", "paper"])
def test_every_author_is_a_person_or_an_entity(work: dict):
    assert work["authors"]
    for author in work["authors"]:
        assert author.keys() == {"name"} or {"family-names", "given-names"} <= author.keys()


def test_the_paper_is_complete():
    paper = CITATION["preferred-citation"]
    assert {"type", "title", "authors", "year", "journal", "url"} <= paper.keys()
    assert paper["title"].startswith("Aligner: One Global Token")
    assert [author["family-names"] for author in paper["authors"]] == ["Zhou", "Wu", "Zhu", "Terzopoulos"]
    assert paper["url"].endswith("2312.05503")


def test_it_is_of_this_version():
    assert (CITATION["version"], CITATION["license"]) == (aj.__version__, PROJECT["license"])
    released = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert aj.__version__ in released
