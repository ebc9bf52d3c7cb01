"""The examples of docs/data.md are read, each by the format whose heading it stands under."""

import re
from pathlib import Path

import places
import pytest

from aligner_jax.data.sources import SOURCES, load_dataset

TEXT = (places.ROOT / "docs" / "data.md").read_text()
SUFFIXES = {"json": ".jsonl", "csv": ".csv", "tsv": ".tsv", "txt": ".txt"}


def sections() -> dict[str, str]:
    """Returns the text under every heading of a format."""
    formats = TEXT.partition("\n## Formats\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (\w+)\n", formats, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(section: str) -> list[tuple[str, str]]:
    """Returns the language and the content of every code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", sections())
def test_examples_are_read_as_what_they_stand_under(tmp_path: Path, name: str):
    found = blocks(sections()[name])
    shell = " ".join(content for language, content in found if language == "sh")
    fields = dict(re.findall(r"--config\.data\.fields\.(\w+)=(\S+)", shell))
    examples = [(SUFFIXES[language], content) for language, content in found if language != "sh"]
    assert examples
    for number, (suffix, content) in enumerate(examples):
        path = tmp_path / f"{number}{suffix}"
        path.write_text(content, encoding="utf-8")
        dataset = load_dataset(path, "fields" if fields else "auto", fields)
        assert dataset.format == name, content
        assert (dataset.dropped, dataset.unused) == ({}, {})
        rows = content.count("\n\n") + 1 if suffix == ".txt" else content.count("\n") - (suffix in (".csv", ".tsv"))
        assert len(dataset.examples) == rows


def test_every_format_has_an_example():
    assert sections().keys() == {*SOURCES, "fields"} - {"alpaca_cleaned"}
    assert "`alpaca_cleaned` is the same" in sections()["alpaca"]


def test_the_bounds_are_those_of_the_code():
    from aligner_jax.data.sources.bounded import FREE, MAX_RATIO, MAX_RECORD
    from aligner_jax.data.sources.folder import _MAX_FILES
    from aligner_jax.data.sources.json_records import MAX_VALUES

    for said in (
        f"{MAX_RECORD >> 20} MiB and {MAX_VALUES:,} values", f"{MAX_RATIO} times its size and {FREE >> 20} MiB more",
        f"{_MAX_FILES:,} files",
    ):  # fmt: skip
        assert said in " ".join(TEXT.split())
