"""CSV, TSV and plain text files, and errors about formats."""

import gzip
import json
from pathlib import Path

import pytest
from source_samples import SAMPLES, as_parquet, lines, pair, refusal, turns

from aligner_jax.data.sources import Instruction, Text, load_dataset, load_examples, load_first
from aligner_jax.data.sources.formats import READ
from aligner_jax.errors import MAX_CHARACTERS, InputError


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def found(path: Path, **options) -> list[tuple[object, str]]:
    return [(e.record, e.where.removeprefix(str(path))) for e in load_dataset(path, **options).examples]


def test_rows_of_csv_and_tsv_are_records(tmp_path):
    text = 'question,id,answer\r\n"Two\nlines, ""quoted""",1,Oak\r\n\r\nTree?,2,Pine\r\n'
    expected = [(Instruction('Two\nlines, "quoted"', "", "Oak"), ":2"), (Instruction("Tree?", "", "Pine"), ":5")]
    assert found(written(tmp_path / "a.csv", text)) == expected
    assert found(written(tmp_path / "a.CSV.gz", gzip.compress(text.encode()))) == expected
    assert found(written(tmp_path / "b.csv", b"\xef\xbb\xbf" + text.encode())) == expected
    tsv = written(tmp_path / "a.tsv", "prompt\tchosen\trejected\nTree, please?\tOak\tYew\n")
    assert found(tsv) == [(pair(turns("Tree, please?"), "Oak", "Yew"), ":2")]
    names = {"question": "Frage", "answer": "Antwort"}
    german = written(tmp_path / "c.csv", "Frage,Antwort\nBaum?,Eiche\n")
    assert found(german, format="fields", fields=names) == [(Instruction("Baum?", "", "Eiche"), ":2")]


def test_an_unwanted_answer_of_a_csv_file_is_not_taken_for_a_wanted_one(tmp_path):
    path = written(tmp_path / "a.csv", "question,answer,kto_tag\nTree?,Oak,False\n")
    assert refusal(path) == ":2: the field 'kto_tag' holds a string, not true or false"


def test_what_is_json_is_read_as_json_under_any_name(tmp_path):
    record, expected = SAMPLES["gsm8k"]
    for name in ("a.txt", "a.csv", "a.tsv", "a", "a.data"):
        for text in (json.dumps(record), "\n [\n" + json.dumps(record) + "]"):
            assert [e.record for e in load_examples(written(tmp_path / name, text))] == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\nMore.\n\n \nTwo.\r\n", [("One.\nMore.", ":1"), ("Two.", ":5")]),
        ("\n\nOne.\r\nTwo.\r\n\r\n", [("One.", ":3"), ("Two.", ":4")]),
        ("\ufeffOne.", [("One.", ":1")]),
        ("[Verse]\nOne.\n\n  indented\n", [("[Verse]\nOne.", ":1"), ("  indented", ":4")]),
    ],
)
def test_texts_are_paragraphs_or_lines(tmp_path, text, expected):
    wanted = [(Text(text), where) for text, where in expected]
    assert found(written(tmp_path / "a.txt", text)) == wanted
    assert found(written(tmp_path / "a.txt.gz", gzip.compress(text.encode()))) == wanted


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"One.\n\xff", ":2 is not UTF-8 text"),
        ("a.txt", b" \n\n", " is empty"),
        ("a.txt", b"a\n\n" + b"word " * 2_000_000, ":3 holds a value of more than 4 MiB"),
        ("a.txt", b"a\n\n" + b"word\n" * 1_000_000, ":3 begins a document of more than 4 MiB"),
        ("a.csv", b"text\n" + b"a\n" * 250_000, " has 106,496 records and more in 500,005 bytes"),
        ("a.txt", b"a\n" * 250_000, " has 106,496 records and more in 500,000 bytes"),
        ("a.csv", b"question,answer\nTree?,Oak,Elm\n", ":2: the row has 3 fields, but the header 2"),
        ("a.csv", b'question,answer\nTree?,"Oak\n', ":2 is not CSV: unexpected end of data"),
        ("a.tsv", b'question\tanswer\nTree?\t"Oak\n', ":2 is not TSV: unexpected end of data"),
        ("a.csv", b"question,answer\nTree?," + b"x" * 200_000, ":2 is not CSV: field larger than field limit (131072)"),
        (
            "a.csv",
            b"a;b\n1;2\n",
            ":2: there is one field, 'a;b': it is divided by ';', but CSV is divided by commas",
        ),
        ("a.csv.gz", gzip.compress(b"question,answer\nTree?,Oak\n", mtime=0)[:-9], " is cut short"),
        ("a.dat", b"question,answer\nTree?,Oak\n", ":1 is not JSON"),
    ],
)
def test_tables_and_texts_that_are_refused(tmp_path, name, content, says):
    assert refusal(written(tmp_path / name, content)).startswith(says)


def test_every_error_about_a_format_ends_with_the_list_of_what_is_read(tmp_path):
    gsm8k = SAMPLES["gsm8k"][0]
    for content in (
        {"q": "a"}, {"text": 3}, {**gsm8k, "answer": None}, "text", {"chosen": "a", "rejected": "b"},
        {"messages": "hi"}, {"prompt": "a", "response": 3}, {"f" * 300: 1, "g" * 300: 2},
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            load_dataset(lines(tmp_path / "a.jsonl", content))
        assert str(caught.value).endswith(READ), content
        assert len(str(caught.value)) <= MAX_CHARACTERS
    for path in (written(tmp_path / "b", "question,answer\n1,2\n"), as_parquet(tmp_path / "a.parquet", {"q": "a"})):
        with pytest.raises(InputError) as caught:
            load_dataset(path)
        assert str(caught.value).endswith(READ)
    with pytest.raises(InputError) as caught:
        load_dataset(written(tmp_path / "c.jsonl.gz", gzip.compress(b'{"a": 1}')[:-9]))
    assert READ not in str(caught.value)


def test_a_record_of_another_format_than_the_named_one_is_recognized(tmp_path):
    preference = SAMPLES["preferences"][0]
    assert refusal(lines(tmp_path / "a.jsonl", preference), "alpaca") == (
        ":1: the record has no field 'instruction'; its fields are 'prompt', 'chosen', 'rejected'; this is the format "
        "'preferences': set data.format to 'auto'"
    )
    assert refusal(lines(tmp_path / "b.jsonl", {"chosen": "Oak", "rejected": "Yew"})) == (
        ":1: the record has the two answers of a preference, but no field 'prompt'; its fields are 'chosen', 'rejected'"
    )


def test_two_questions_or_answers_are_not_guessed(tmp_path):
    record = {"prompt": "Tree?", "question": "Which?", "response": "Oak"}
    assert refusal(lines(tmp_path / "a.jsonl", record)).startswith(
        ":1: the record's fields are 'prompt', 'question', 'response', which tell no format"
    )
    assert refusal(lines(tmp_path / "a.jsonl", record), "question_answer") == (
        ":1: 'prompt' and 'question' may both be the question: set data.format to 'fields' and name it in data.fields"
    )


@pytest.mark.parametrize("question", ["instruction", "prompt", "question", "query", "input"])
@pytest.mark.parametrize("answer", ["output", "completion", "response", "answer"])
def test_every_pair_of_usual_names_is_told_by_the_fields(tmp_path, question, answer):
    record = {question: "Tree?", answer: "Oak", "id": 3}
    assert found(lines(tmp_path / "a.jsonl", record)) == [(Instruction("Tree?", "", "Oak"), ":1")]
    if question != "input":
        assert found(lines(tmp_path / "a.jsonl", {**record, "input": "No pine."}), format="question_answer") == [
            (Instruction("Tree?", "No pine.", "Oak"), ":1")
        ]


def test_only_the_first_records_are_read_if_no_more_are_asked_for(tmp_path):
    record, bad = SAMPLES["gsm8k"][0], {"question": 3}
    path = lines(tmp_path / "a.jsonl", *[record] * 100, bad)
    first = load_first(path)
    assert (first.format, first.form, len(first.examples)) == ("gsm8k", "JSON", 100)
    assert refusal(path).startswith(":101: ")
    with pytest.raises(InputError, match=r":100: the field 'question' holds a number"):
        load_first(lines(tmp_path / "b.jsonl", *[record] * 99, bad))


def test_a_missing_file_of_a_known_data_set_is_told_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, place in (
        ("data/alpaca_data.json", "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"),
        ("MetaMathQA-395K.json", "https://huggingface.co/datasets/meta-math/MetaMathQA/resolve/main/"),
        ("data/pku_saferlhf/train.jsonl", "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF/resolve/main/"),
    ):
        with pytest.raises(InputError) as caught:
            load_dataset(name)
        assert str(caught.value).startswith(f"there is no file {name}; it is published at {place}")
    with pytest.raises(InputError) as caught:
        load_dataset("train.jsonl")
    assert str(caught.value) == "there is no file train.jsonl"
