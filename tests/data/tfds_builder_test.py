"""Sources as TFDS builders: data is read back as it was prepared, and a failed preparation leaves nothing."""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import grain
import pytest
import tensorflow_datasets as tfds

from aligner_jax.data.sources import SOURCES, Conversation, load_dataset
from aligner_jax.data.sources.prepared import from_features, prepared_examples
from aligner_jax.data.tfds_builder import make_builder, prepare
from aligner_jax.errors import InputError

JSON = ("dataset_info", "features", "metadata")
PAIR = {"chosen": "\n\nHuman: Hé\n\nAssistant: Hello", "rejected": "\n\nHuman: Hé\n\nAssistant: What?"}
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}] * 2}
TASK = {"instruction": "Name a tree.", "input": "", "output": "Pine\u2028é"}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def many(record: dict, count: int = 30) -> list[dict]:
    """Returns distinct records, so that their order shows."""
    return [
        json.loads(json.dumps(record).replace("Hello", f"Hello {i}").replace("Pine", f"Pine {i}")) for i in range(count)
    ]


@pytest.mark.parametrize(("name", "record"), [("hh_rlhf", PAIR), ("sharegpt", CHAT), ("alpaca", TASK)])
def test_prepared_examples_are_those_of_the_file_in_its_order(tmp_path, name, record):
    path = lines(tmp_path / "a.jsonl", *many(record))
    folder = prepare(name, tmp_path / "data", raw=path)
    assert folder == tmp_path / "data" / name / "1.0.0"
    assert any(".array_record" in file.name for file in folder.iterdir())
    expected = load_dataset(path)
    assert load_dataset(folder) == load_dataset(folder, name) == load_dataset(folder / "train") == expected
    stream = prepared_examples(folder)
    assert isinstance(stream, grain.MapDataset)
    assert [stream[i] for i in range(len(stream))] == expected.examples


def test_grain_reads_the_builders_own_data_source(tmp_path):
    path = lines(tmp_path / "a.jsonl", TASK)
    builder = make_builder("alpaca_cleaned", tmp_path / "data", raw=path)
    builder.download_and_prepare(file_format="array_record")
    assert builder.info.homepage == SOURCES["alpaca_cleaned"].homepage
    (example,) = grain.MapDataset.source(builder.as_data_source("train")).map(from_features)
    assert example == load_dataset(path).examples[0]


def test_splits_and_what_was_dropped_are_kept(tmp_path):
    train = lines(tmp_path / "train.jsonl", TASK, {**TASK, "output": ""})
    test = lines(tmp_path / "test.jsonl", {**TASK, "output": "Oak"})
    folder = prepare("alpaca", tmp_path, raw={"train": train, "test": test})
    assert load_dataset(folder) == load_dataset(train)
    assert load_dataset(folder).dropped == {"empty answer": 1}
    assert load_dataset(folder / "test") == load_dataset(test)
    with pytest.raises(InputError, match=r"1\.0\.0 has no split 'valid'; there are train, test$"):
        load_dataset(folder / "valid")
    with pytest.raises(InputError, match=r"1\.0\.0 holds the source 'alpaca', not 'dolly'$"):
        load_dataset(folder, "dolly")


def test_named_fields_can_be_prepared_too(tmp_path):
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    path = lines(tmp_path / "a.jsonl", {"q": "Tree?", "good": "Oak", "bad": "Yew"})
    folder = prepare("fields", tmp_path, raw=path, fields=fields)
    assert load_dataset(folder) == load_dataset(path, "fields", fields)


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    good, bad = lines(tmp_path / "a.jsonl", TASK), lines(tmp_path / "b.jsonl", TASK, {"instruction": "a"})
    with pytest.raises(InputError, match=r"b\.jsonl:2: the record has no field 'output'"):
        prepare("alpaca", tmp_path / "data", raw={"train": good, "test": bad})
    assert not list((tmp_path / "data").rglob("*record*"))
    assert not (tmp_path / "data" / "alpaca" / "1.0.0").exists()
    prepare("alpaca", tmp_path / "data", raw=good)
    with pytest.raises(InputError, match=r"alpaca/1\.0\.0 is prepared already: remove it, or choose another folder$"):
        prepare("alpaca", tmp_path / "data", raw=good)
    assert len(load_dataset(prepare("alpaca", tmp_path / "data")).examples) == 1


def test_without_files_the_manual_folder_serves_and_then_a_download(tmp_path, monkeypatch):
    rows = {
        split: lines(tmp_path / f"{split}.jsonl", {"question": split, "answer": "4"}) for split in ("train", "test")
    }
    asked = []

    def download(self, urls):
        asked.append(urls)
        return {split: [rows[split] for _ in names] for split, names in urls.items()}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    folder = prepare("gsm8k", tmp_path / "downloaded")
    root = SOURCES["gsm8k"].root
    assert asked == [{"train": [root + "train.jsonl"], "test": [root + "test.jsonl"]}]
    assert [load_dataset(folder / split).examples[0].question for split in rows] == ["train", "test"]

    manual = tmp_path / "by_hand" / "downloads" / "manual"
    manual.mkdir(parents=True)
    shutil.copy(rows["train"], manual)
    folder = prepare("gsm8k", tmp_path / "by_hand")
    assert [example.where for example in load_dataset(folder).examples] == [f"{manual}/train.jsonl:1"]
    assert len(asked) == 1

    def refuse(self, urls):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(ConnectionError: no route to host\); fetch its files"
    ):
        prepare("dolly", tmp_path)


def test_what_has_no_builder(tmp_path):
    with pytest.raises(InputError, match="'auto' is none"):
        make_builder("auto", tmp_path)
    with pytest.raises(InputError, match="the data format 'alpacca' is unknown"):
        make_builder("alpacca", tmp_path)
    with pytest.raises(InputError, match="the source 'messages' has no published files: say with raw="):
        prepare("messages", tmp_path)


def test_damaged_folders_are_one_sentence(tmp_path):
    folder = prepare("alpaca", tmp_path, raw=lines(tmp_path / "a.jsonl", *many(TASK)))
    files = {file for file in folder.iterdir() if file.name != "LICENSE"}
    assert {file.name.partition(".")[0] for file in files} == {"alpaca-train", *JSON}
    for file in files:
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 3], b"\xff" * len(content)):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"^{re.escape(str(folder))}\b[^\n]*\Z"):
                load_dataset(folder)
        file.write_bytes(content)
    assert len(load_dataset(folder).examples) == 30


def test_the_builders_need_no_tensorflow(tmp_path):
    path = lines(tmp_path / "a.jsonl", TASK)
    code = (
        "import sys\n"
        "from aligner_jax.data.tfds_builder import prepare\n"
        "from aligner_jax.data.sources import load_dataset\n"
        f"print(load_dataset(prepare('alpaca', {str(tmp_path)!r}, raw={str(path)!r})), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 example False"


def test_without_the_package_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    folder = prepare("alpaca", tmp_path, raw=lines(tmp_path / "a.jsonl", TASK))
    for found in (None, types.ModuleType("tensorflow_datasets")):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", found)
        with pytest.raises(InputError, match=r"prepared data need the package tensorflow-datasets \(.*; pip install"):
            load_dataset(folder)


def test_a_folder_names_no_classes_of_others(tmp_path):
    """TFDS imports what features.json names."""
    folder = prepare("alpaca", tmp_path, raw=lines(tmp_path / "a.jsonl", TASK))
    features = folder / "features.json"
    text = features.read_text()
    for name in ("antigravity.X", "os.path.X", "tensorflow_datasets.core.featuresX.Y"):
        features.write_text(text.replace("tensorflow_datasets.core.features.text_feature.Text", name, 1))
        with pytest.raises(InputError, match=rf"features.json names the class '{name}', and examples have features of"):
            load_dataset(folder)
    features.write_text(text)
    assert len(load_dataset(folder).examples) == 1


def test_what_was_not_used_is_kept(tmp_path):
    path = lines(tmp_path / "a.jsonl", {**TASK, "tools": "x"})
    folder = prepare("alpaca", tmp_path, raw=path)
    assert load_dataset(folder).unused == load_dataset(path).unused == {"tools": 1}
    metadata = json.loads((folder / "metadata.json").read_text())
    del metadata["unused"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert load_dataset(folder).unused == {}
    (folder / "metadata.json").write_text(json.dumps({**metadata, "dropped": {"train": {"x": -1}}}))
    with pytest.raises(InputError, match=r"metadata.json: dropped.train.x is -1, not an integer from 0"):
        load_dataset(folder)


def test_folders_that_were_prepared_before_turns_could_be_no_targets():
    stored = {"messages": {"role": [b"user", b"assistant"], "content": [b"Hi", b"Hello"]}, "where": b"a:1"}
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    assert from_features(stored).record == Conversation(turns)
