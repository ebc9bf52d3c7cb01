"""Data sets of the hub: their names, the package that reads them, and failures. Nothing is downloaded."""

import sys
import types

import datasets
import pytest

from aligner_jax.data.sources import Instruction, load_dataset
from aligner_jax.data.sources.hub import HubName, parse_name
from aligner_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/name:test", ("org/name", None, "test")),
        ("openai/gsm8k:main/test", ("openai/gsm8k", "main", "test")),
        ("name", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("../b", None),
        ("a/b:", None),
    ],
)
def test_names(text, parts):
    assert parse_name(text) == (HubName(*parts) if parts else None)


def test_rows_are_records_and_only_their_columns_are_read(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        columns = {"question": ["2 + 2?", "1 + 1?"], "answer": ["4", "2"], "level": ["easy", "easy"]}
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = load_dataset("org/sums:main/test")
    assert [e.record for e in dataset.examples] == [Instruction("2 + 2?", "", "4"), Instruction("1 + 1?", "", "2")]
    assert [e.where for e in dataset.examples] == ["org/sums:test, row 1", "org/sums:test, row 2"]
    assert str(dataset) == "2 examples; fields that are not used: 'level' (2)"
    assert (dataset.format, dataset.form) == ("gsm8k", "hub")
    load_dataset("org/sums")
    assert asked == [("org/sums", "main", "test"), ("org/sums", None, "train")]


def test_a_data_set_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    def load(name, config, split):
        raise ConnectionError("Couldn't reach 'org/sums' on the Hub\n(LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError) as caught:
        load_dataset("org/sums")
    assert str(caught.value) == (
        "there is no file or folder org/sums, and the data set of that name cannot be loaded from the Hugging Face hub "
        "(Couldn't reach 'org/sums' on the Hub (LocalEntryNotFoundError)): check name and network, or write it as "
        "ORG/NAME:CONFIG/SPLIT"
    )


def test_without_the_package_the_error_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as caught:
        load_dataset("org/sums")
    assert str(caught.value) == (
        "there is no file or folder org/sums; to read the data set of that name on the Hugging Face hub, "
        "pip install 'aligner_jax[data]' (in a clone: pip install -r requirements.txt)"
    )


@pytest.mark.parametrize(
    ("version", "ending"), [("3.6.0", "which may run code of data sets: pip install "), ("4.0.0", "")]
)
def test_a_release_that_may_run_code_of_data_sets_is_refused(monkeypatch, version, ending):
    monkeypatch.setattr(datasets, "__version__", version)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"question": []}))
    with pytest.raises(InputError, match=ending or "the split 'train' of the data set org/sums holds no records"):
        load_dataset("org/sums")


def test_missing_files_are_no_names_of_data_sets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    for name in ("data/alpaca.json", "data/train.csv", "data/notes.txt.gz", "data/part.parquet"):
        with pytest.raises(InputError, match=f"^there is no file {name}$"):
            load_dataset(name)
