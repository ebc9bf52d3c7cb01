"""Folders of data files: splits, shards, and folders that hold several data sets."""

import json
from pathlib import Path

import pytest
from source_samples import as_parquet, refusal

from aligner_jax.data.sources import folder as folder_module
from aligner_jax.data.sources import load_dataset
from aligner_jax.errors import InputError


def record(answer: str) -> dict[str, str]:
    return {"question": f"{answer}?", "answer": answer}


def answers(path: Path | str) -> list[str]:
    return [example.answer for example in load_dataset(path).examples]


def write(folder: Path, *names: str) -> Path:
    """Writes a file of one record under every name; its answer is the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            as_parquet(path, record(name))
        elif path.suffix == ".csv":
            path.write_text(f"question,answer\n?,{name}\n")
        else:
            path.write_text(json.dumps(record(name)) + "\n")
    return folder


def test_the_layout_of_the_hub(tmp_path):
    shards = [f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)]
    folder = write(tmp_path / "a", *shards[::-1], "data/test-00000-of-00001.parquet", "dataset_infos.json", "README.md")
    dataset = load_dataset(folder)
    assert [e.answer for e in dataset.examples] == shards
    assert [e.where for e in dataset.examples] == [f"{folder / name}, row 1" for name in shards]
    assert (dataset.format, dataset.form) == ("gsm8k", "Parquet")
    assert answers(f"{folder}:test") == answers(folder / "data" / "test-00000-of-00001.parquet")
    (folder / shards[0]).unlink()
    assert refusal(folder) == " lacks 1 of the 2 files of 'train', the first of them train-00000-of-00002"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.jsonl", "test.jsonl", "notes.txt"), {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (("a.jsonl", "b.jsonl", ".hidden.jsonl", "c.py"), {"train": ["a.jsonl", "b.jsonl"]}),
        (("my_training_set.csv", "dev.csv"), {"train": ["my_training_set.csv"], "validation": ["dev.csv"]}),
        (("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"), {
            "train": ["train/0000.parquet", "train/0001.parquet"], "test": ["test/0000.parquet"],
            "testing": ["test/0000.parquet"],
        }),
        (("data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"), {
            "train_gen": ["data/train_gen-00000-of-00001.parquet"],
        }),
    ],
)  # fmt: skip
def test_names_of_files_and_folders_tell_the_split(tmp_path, names, splits):
    folder = write(tmp_path, *names)
    for split, expected in splits.items():
        assert answers(f"{folder}:{split}") == expected
    if "train" in splits:
        assert answers(folder) == splits["train"]


def test_folders_that_do_not_say_which_files_are_meant(tmp_path):
    folder = write(tmp_path / "a", "train.jsonl", "test.jsonl")
    with pytest.raises(InputError, match=r"a has no files of the split 'validation'; there are test, train: write "):
        load_dataset(f"{folder}:validation")
    gen = write(tmp_path / "b", "train_gen-00000-of-00001.parquet", "train_sft-00000-of-00001.parquet")
    assert refusal(gen).startswith(" has no files of the split 'train'; there are train_gen, train_sft: write ")
    languages = write(tmp_path / "c", "en/train.jsonl", "de/train.jsonl")
    assert refusal(languages) == (
        f" has files of the split 'train' in several folders (de, en): name one of them, such as {languages / 'en'}"
    )
    both = write(tmp_path / "d", "train.jsonl", "train.parquet")
    assert refusal(both) == (
        " has files of the split 'train' in several forms (.jsonl, .parquet), which may hold the same examples: name "
        "the file to read"
    )
    saved = write(tmp_path / "e", "state.json", "data-00000-of-00001.arrow")
    assert refusal(saved) == (
        " holds no file of examples, but what the method save_to_disk of the package datasets writes: write it with "
        'to_parquet("FILE")'
    )


def test_shards_of_a_split_are_named_as_the_split_is(tmp_path):
    write(tmp_path, "dev-00000-of-00001.jsonl", "train-00000-of-00001.jsonl")
    for split in ("dev", "val", "validation"):
        assert answers(f"{tmp_path}:{split}") == ["dev-00000-of-00001.jsonl"]


@pytest.mark.parametrize(("numbers", "lacks"), [((0, 2), "1 of the 2 files of 'train', the first of them train-00001"),
                                                ((1, 2), None), ((0, 1), None)])  # fmt: skip
def test_shards_are_numbered_from_0_or_from_1(tmp_path, numbers, lacks):
    names = [f"train-{number:05}-of-00002.jsonl" for number in numbers]
    write(tmp_path, *names)
    if lacks is None:
        assert answers(tmp_path) == names
    else:
        assert refusal(tmp_path) == f" lacks {lacks}-of-00002"


def test_the_folder_that_an_error_recommends_can_be_read(tmp_path):
    folder = write(tmp_path, "train/en/a.jsonl", "train/de/a.jsonl")
    assert refusal(folder).endswith(f"(train/de, train/en): name one of them, such as {folder}/train/en")
    assert answers(folder / "train/en") == ["train/en/a.jsonl"]


def test_all_files_of_a_folder_have_one_format(tmp_path):
    folder = write(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "b.jsonl").write_text('{"instruction": "a", "output": "b"}')
    said = refusal(folder)
    assert said.startswith("/b.jsonl:1: the record has no field 'question'; its fields are ")
    assert "; this is the format 'alpaca', and the file before it 'gsm8k': name one of the two files" in said


def test_a_folder_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_MAX_FILES", 3)
    folder = write(tmp_path, "a.jsonl", "deeper/b.jsonl", ".hidden")
    assert refusal(folder) == " holds more than 3 files, too many for a folder of data"


def test_links_to_folders_are_not_followed(tmp_path):
    folder = write(tmp_path / "a", "a.jsonl")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    assert answers(folder) == ["a.jsonl"]
