"""The view of a data set: `python -m aligner_jax.data`."""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from source_samples import SAMPLES, lines

from aligner_jax.data.__main__ import main
from aligner_jax.data.documents import make_document
from aligner_jax.data.sources import load_dataset
from aligner_jax.data.tokenizer_files import load_tokenizer
from scripts.lib.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_tiny_llama(folder)
    return str(folder)


def shown(capsys, *arguments: object, status: int = 0) -> list[str]:
    assert main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    return (err if status else out).splitlines()


def test_counts_drops_and_turns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = SAMPLES["gsm8k"][0]
    lines(Path("a.jsonl"), {**record, "level": 3}, {**record, "answer": " "}, {**record, "answer": "4\n\ttabbed"})
    assert shown(capsys, "a.jsonl", "--examples=2") == [
        "a.jsonl: JSON, format 'gsm8k'",
        "  2 examples",
        "  dropped 1: empty answer (1)",
        "  fields that are not used: 'level' (1)",
        "  length in characters: least 15, median 22, 90% 28, 99% 30, most 30",
        "",
        "example 1, a.jsonl:1:",
        "  user      2 + 2?",
        "  assistant It is <<2+2=4>>4.⏎#### 4",
        "",
        "example 2, a.jsonl:3:",
        "  user      2 + 2?",
        "  assistant 4⏎⇥tabbed",
        "",
        "With --base=PATH, lengths and examples are in tokens, with the loss mask of training.",
    ]


@pytest.mark.parametrize("name", ["alpaca", "messages", "preferences", "text"])
def test_tokens_are_those_of_training_and_learned_ones_are_marked(tmp_path, capsys, base, name):
    path = lines(tmp_path / "a.jsonl", SAMPLES[name][0])
    tokenizer, (example,) = load_tokenizer(base), load_dataset(path).examples
    plain = shown(capsys, path, f"--base={base}", "--examples=1")
    colored = shown(capsys, path, f"--base={base}", "--examples=1", "--color=always")
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in colored] == plain
    assert "\x1b" not in "".join(plain)
    if name == "preferences":
        assert [line for line in plain if re.search(r"  (chosen|rejected): \d+ tokens, \d+ of them learned", line)]
        return
    document = make_document(example, tokenizer, "chat")
    learned = [
        tokenizer.backend.decode([token]) or tokenizer.backend.token(token)
        for token, counts in zip(document["tokens"].tolist(), document["loss_mask"], strict=True)
        if counts
    ]
    at = next(i for i, line in enumerate(plain) if line.startswith("  learned   "))
    assert "".join(line[12:] for line in plain[at:]) == "·".join(learned).replace("\n", "⏎")
    marked = [line for line in colored if "\x1b[1;4;32m" in line]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in marked] == plain[at:]
    assert f"  {len(document['tokens'])} tokens, {len(learned)} of them learned" in plain


def test_lengths_beyond_a_row_are_told(tmp_path, capsys, base):
    path = lines(tmp_path / "a.jsonl", *[SAMPLES["alpaca"][0]] * 3)
    assert any("3 of 3 are longer than a row of 8 tokens: raise data.sequence_length" in line for line in shown(
        capsys, path, f"--base={base}", "--sequence_length=8", "--examples=0"
    ))  # fmt: skip


def test_nothing_in_the_data_controls_the_terminal(tmp_path, capsys, base):
    bad = "\x1b[2J\x9b31m\u202e\r\x07"
    path = lines(tmp_path / "a.jsonl", {"instruction": bad, "output": bad, bad: "x", "system": bad})
    for options in ([], [f"--base={base}", "--template=chat"]):
        said = "\n".join(shown(capsys, path, *options))
        assert not set("\x1b\x9b\u202e\r\x07") & set(said)
        assert "\\x1b[2J" in said


def test_lines_fit_the_terminal(tmp_path, capsys, base, monkeypatch):
    long = {"instruction": "word " * 200 + "x" * 300, "output": "漢字" * 60}
    path = lines(tmp_path / "a.jsonl", long)
    monkeypatch.setenv("COLUMNS", "60")
    for options in ([], [f"--base={base}"]):
        examples = [line for line in shown(capsys, path, *options) if line.startswith("  ") and "length" not in line]
        assert max(map(cell_len, examples[2:])) <= 60
        assert any(" more " in line for line in examples)


def test_the_middle_of_a_long_text_without_spaces_is_left_out_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    path = lines(tmp_path / "a.jsonl", {"instruction": "漢字" * 90_000, "output": "."})
    said = shown(capsys, path)
    assert any(" 4,340 more " in line for line in said)
    assert len(said) < 250


def test_errors_are_one_sentence(tmp_path, capsys, base):
    assert shown(capsys, tmp_path / "none.csv", status=1) == [f"error: there is no file {tmp_path / 'none.csv'}"]
    path = lines(tmp_path / "a.jsonl", {"Frage": "Baum?", "Antwort": "Eiche"})
    (said,) = shown(capsys, path, status=1)
    assert said.endswith("docs/data.md")
    fields = ["--format=fields", "--fields.question=Frage", "--fields.answer=Antwort"]
    assert "  user      Baum?" in shown(capsys, path, *fields)
    assert shown(capsys, path, "--template=chat", *fields, status=1) == [
        "error: --template and --system need the tokenizer of a model: add --base=PATH"
    ]
    for name in ("x" * 300, "~nobody/base"):
        (said,) = shown(capsys, path, *fields, f"--base={name}", status=1)
        assert said.startswith("error: ")
    with pytest.raises(SystemExit, match=r"^error: '--sequence-length=3' is not an option; .*; --help explains the"):
        main([str(path), "--sequence-length=3"])
    sheet = tmp_path / "a.xlsx"
    sheet.write_bytes(b"PK\3\4 and more")
    (said,) = shown(capsys, sheet, status=1)
    assert "a.xlsx is a zip archive, as spreadsheets (.xlsx) are too: save the sheet as CSV, or unpack it; read" in said
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
