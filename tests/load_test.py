"""Every source: what its records become, what is dropped and counted, and what is refused in one sentence."""

import gzip
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from aligner_jax.data.sources import (
    SOURCES,
    Conversation,
    Instruction,
    Preference,
    find_source,
    load_dataset,
    load_examples,
)
from aligner_jax.data.sources.split import prompt_of
from aligner_jax.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the third-party data folder is not beside the repository"
)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def pair(prompt: list, chosen: str, rejected: str) -> Preference:
    return Preference(tuple(prompt), chosen, rejected)


PKU = {
    "prompt": "Which tree?",
    "response_0": "Yew",
    "response_1": "Oak",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
CHAT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}

SAMPLES = {
    "alpaca": (
        {"instruction": "Name a tree.", "input": "not oak", "output": "Pine"},
        Instruction("Name a tree.", "not oak", "Pine"),
    ),
    "messages": ({"messages": turns("Hi", "Hello")}, Conversation(tuple(turns("Hi", "Hello")))),
    "dolly": (
        {"instruction": "Name a tree.", "context": "not oak", "response": "Pine", "category": "open_qa"},
        Instruction("Name a tree.", "not oak", "Pine"),
    ),
    "gsm8k": (
        {"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"},
        Instruction("2 + 2?", "", "It is <<2+2=4>>4.\n#### 4"),
    ),
    "metamath": (
        {"type": "GSM_SV", "query": "x + 2 = 4. x?", "original_question": "2 + 2?", "response": "2"},
        Instruction("x + 2 = 4. x?", "", "2"),
    ),
    "pku_saferlhf": (PKU, pair(turns("Which tree?"), "Oak", "Yew")),
    "beavertails": (
        {"prompt": "Which tree?", "response": "Oak", "category": {"poison": False}, "is_safe": True},
        Instruction("Which tree?", "", "Oak"),
    ),
    "hh_rlhf": (HH, pair(turns("Hi"), "Hello", "What?")),
    "ultrafeedback": (
        {
            "prompt": "Hi",
            "chosen": turns("Hi", "Hello"),
            "rejected": turns("Hi", "What?"),
            "messages": turns("Hi", "Hello"),
            "score_chosen": 8.0,
        },
        pair(turns("Hi"), "Hello", "What?"),
    ),
    "sharegpt": ({"id": "a_0", "conversations": CHAT}, Conversation(tuple(turns("Hi", "Hello")))),
}
SAMPLES["alpaca_cleaned"] = SAMPLES["alpaca"]
REQUIRED = {
    "alpaca": ("instruction", "output"),
    "alpaca_cleaned": ("instruction", "output"),
    "messages": ("messages",),
    "dolly": ("instruction", "response"),
    "gsm8k": ("question", "answer"),
    "metamath": ("query", "response"),
    "pku_saferlhf": tuple(name for name in PKU if name != "better_response_id"),
    "beavertails": ("prompt", "response", "is_safe"),
    "hh_rlhf": ("chosen", "rejected"),
    "ultrafeedback": ("chosen", "rejected"),
    "sharegpt": ("conversations",),
}
every_source = pytest.mark.parametrize("name", SOURCES)


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def as_parquet(path: Path, *records: dict) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def refusal(path: Path, format: str = "auto", **options) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(path, format, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence.removeprefix(str(path))


@every_source
def test_a_record_becomes_what_it_says_in_every_kind_of_file(tmp_path, name):
    record, expected = SAMPLES[name]
    path = lines(tmp_path / "a.jsonl", record, record)
    array = tmp_path / "a.json"
    array.write_text(json.dumps([record, record]))
    zipped, xz, unnamed = tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl.xz", tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    unnamed.write_bytes(gzip.compress(path.read_bytes()))
    xz.write_bytes(lzma.compress(path.read_bytes()))
    for file in (path, array, zipped, xz, unnamed, as_parquet(tmp_path / "a.parquet", record, record)):
        assert [e.record for e in load_examples(file, name)] == [expected, expected], file
        assert [e.record for e in load_examples(file)] == [expected, expected], file


@every_source
def test_the_source_of_a_record_is_told_by_its_fields_alone(name):
    record, expected = SAMPLES[name]
    fitting = [source.name for source in SOURCES.values() if source.fits(record)]
    assert fitting == ["alpaca" if name == "alpaca_cleaned" else name]
    assert type(expected) is SOURCES[name].record


def test_where_is_the_line_or_the_row(tmp_path):
    record, _ = SAMPLES["gsm8k"]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + json.dumps(record).encode()))
    assert [e.where for e in load_examples(path)] == [f"{path}:2"]
    path = as_parquet(tmp_path / "a.parquet", *[record] * 1025)
    assert [e.where for e in load_examples(path)][::1024] == [f"{path}, row 1", f"{path}, row 1025"]


def test_the_shared_form_of_pku_and_pairs_without_a_safe_answer(tmp_path):
    safer_first = {"prompt": "Which tree?", "response": ["Oak", "Yew"]}
    dataset = load_dataset(lines(tmp_path / "a.jsonl", safer_first))
    assert [e.record for e in dataset.examples] == [SAMPLES["pku_saferlhf"][1]]
    both = [{**PKU, "is_response_1_safe": False}, {**PKU, "is_response_0_safe": True, "safer_response_id": 0}]
    dataset = load_dataset(lines(tmp_path / "b.jsonl", *both))
    assert [e.record for e in dataset.examples] == [pair(turns("Which tree?"), "Yew", "Oak")]
    assert dataset.dropped == {"no safe answer": 1}


def test_unsafe_answers_are_not_learned_from(tmp_path):
    record, expected = SAMPLES["beavertails"]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", {**record, "is_safe": False}, record))
    assert [e.record for e in dataset.examples] == [expected]
    assert str(dataset) == "1 examples; dropped 1: unsafe answer (1)"


def test_dialogues_are_turns_and_must_share_their_prompt(tmp_path):
    begin = "\n\nHuman: a\nb \n\nAssistant: c\n\nHuman: d"
    rows = [
        {"chosen": begin + "\n\nAssistant: e", "rejected": begin + "\n\nAssistant: f\n\nmore"},
        {"chosen": begin + "\n\nAssistant: e", "rejected": begin + "!\n\nAssistant: f"},
        {"chosen": begin + "\n\nAssistant: e\n\nAssistant: e", "rejected": begin + "\n\nAssistant: f\n\nAssistant: f"},
        {"chosen": begin + "\n\nAssistant: e", "rejected": begin},
        {"chosen": begin + "\n\nAssistant: e", "rejected": begin + "\n\nAssistant: e "},
        {"chosen": begin + "\n\nAssistant:", "rejected": begin + "\n\nAssistant: f"},
    ]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows))
    assert [e.record for e in dataset.examples] == [pair(turns("a\nb", "c", "d"), "e", "f\n\nmore")]
    assert str(dataset) == (
        "1 examples; dropped 5: empty answer (1), equal pair (1), prompts differ (1), turns out of order (2)"
    )
    row = {**HH, "rejected": "Assistant: hi"}
    assert refusal(lines(tmp_path / "b.jsonl", HH, row)) == (
        r":2: the field 'rejected' does not begin with '\n\nHuman:'"
    )


def test_chats_that_do_not_share_their_prompt(tmp_path):
    record, expected = SAMPLES["ultrafeedback"]
    other = {**record, "rejected": turns("Hello", "What?")}
    dataset = load_dataset(lines(tmp_path / "a.jsonl", other, record))
    assert [e.record for e in dataset.examples] == [expected]
    assert dataset.dropped == {"prompts differ": 1}
    unanswered = lines(tmp_path / "b.jsonl", {**record, "chosen": turns("Hi")})
    assert refusal(unanswered) == ":1: the field 'chosen' does not end with a turn of 'user' and one of 'assistant'"


def test_shared_conversations_begin_with_a_question_and_end_with_an_answer(tmp_path):
    system, late = {"from": "system", "value": "Be kind."}, {"from": "gpt", "value": "before"}
    rows = [
        {"conversations": [late, system, *CHAT, {"from": "human", "value": "Bye"}]},
        {"conversations": []},
        {"conversations": [late]},
    ]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows))
    expected = ({"role": "system", "content": "Be kind."}, *turns("Hi", "Hello"))
    assert [e.record for e in dataset.examples] == [Conversation(expected)]
    assert dataset.dropped == {"no answer": 2}
    stranger = {"conversations": [*CHAT, {"from": "bing", "value": "Hm."}]}
    assert ":1, turn 3: the field 'from' is 'bing', but" in refusal(lines(tmp_path / "b.jsonl", stranger))


@every_source
def test_empty_answers_and_equal_pairs_are_counted(tmp_path, name):
    record, expected = SAMPLES[name]
    text = json.dumps(record)
    answer = (
        expected.chosen
        if isinstance(expected, Preference)
        else load_examples(lines(tmp_path / "one.jsonl", record), name)[0].answer
    )
    empty = json.loads(text.replace(json.dumps(answer)[1:-1] + '"', ' "'))
    dropped = {"empty answer": 1}
    rows = [record, empty]
    if isinstance(expected, Preference):
        rows.append(json.loads(text.replace(f'{expected.rejected}"', f'{expected.chosen}"')))
        dropped["equal pair"] = 1
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows), name)
    assert [e.record for e in dataset.examples] == [expected]
    assert dataset.dropped == dropped
    assert refusal(lines(tmp_path / "b.jsonl", empty, empty), name) == (
        " holds no example to learn from: dropped 2: empty answer (2)"
    )


def bad_records(name: str) -> Iterator[tuple[object, str]]:
    """Objects that are not the source's, and words that the refusal of each must have."""
    record, _ = SAMPLES[name]
    for field in REQUIRED[name]:
        yield {key: value for key, value in record.items() if key != field}, f"{field!r}"
        for wrong in (7, None, ["a"], {"a": "b"}, "yes" if not isinstance(record[field], str) else True):
            yield {**record, field: wrong}, f"the field {field!r}"
        if isinstance(record[field], list):
            for turn in ("a", {}, {"role": "user", "from": "gpt"}, {**record[field][0], "content": 1, "value": 1}):
                yield {**record, field: [turn]}, ":2"
        elif isinstance(record[field], str):
            yield {**record, field: record[field] + "\ud83d"}, "half a surrogate pair"
    yield [record], "holds an array where an object"
    yield {}, "its fields are none"


@every_source
def test_bad_records_are_refused_by_file_and_line(tmp_path, name):
    record, _ = SAMPLES[name]
    for number, (bad, words) in enumerate(bad_records(name)):
        path = lines(tmp_path / f"{number}.jsonl", record, bad)
        for format in ("auto", name):
            sentence = refusal(path, format)
            assert sentence.startswith(":2"), (bad, sentence)
            assert words in sentence, bad
    table = as_parquet(tmp_path / "a.parquet", record, dict.fromkeys(record))
    assert refusal(table, name).startswith(", row 2: the field ")
    field = REQUIRED[name][0]
    table = as_parquet(tmp_path / "b.parquet", {**record, field: b"\xff"})
    text = isinstance(record[field], str)
    assert f", row 1: the field {field!r} {'holds bytes, not text' if text else 'is not a list'}" in refusal(
        table, name
    )


@every_source
def test_damaged_files_are_refused_by_file_and_line(tmp_path, name):
    record, _ = SAMPLES[name]
    good = json.dumps(record)

    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    zipped, xz = gzip.compress(good.encode()), lzma.compress(good.encode())
    table = as_parquet(tmp_path / "good.parquet", record).read_bytes()
    for path, words in (
        (written("a.jsonl", b""), " is empty"),
        (written("b.jsonl.gz", b""), " is empty"),
        (written("c.jsonl.gz", gzip.compress(b"\n")), " is empty"),
        (written("d.parquet", b""), " is empty"),
        (written("e.jsonl", f"{good}\n{good[:-9]}\n".encode()), ":2 is not JSON: "),
        (written("f.json", f"[\n{good},\n{good[:-9]}".encode()), ":3 is not JSON: "),
        (written("g.jsonl", f"{good}\n{'[' * 100_000}\n".encode()), ":2 is not JSON: it is nested too deeply"),
        (written("h.jsonl", f'{good}\n{{"a": {"1" * 5000}}}\n'.encode()), ":2 is not JSON: it holds a number with too"),
        (written("i.jsonl", f"{good}\n".encode() + b'{"a": "\xff"}'), ":2 is not UTF-8 text"),
        (written("j.jsonl.gz", zipped[:-9]), " is cut short"),
        (written("k.jsonl.gz", good.encode()), " cannot be decompressed: Not a gzipped file"),
        (written("l.jsonl.gz", zipped[:12] + b"\0\0" + zipped[14:]), " cannot be decompressed: "),
        (written("m.jsonl.xz", xz[:-9]), " is cut short"),
        (written("n.jsonl.xz", good.encode()), " cannot be decompressed: "),
        (written("o.parquet", table[:-20]), " cannot be read as Parquet: "),
        (written("p.parquet", good.encode()), " cannot be read as Parquet: "),
        (written("q.parquet", table[:4] + bytes(len(table) - 8) + table[-4:]), " cannot be read as Parquet: "),
        (tmp_path / "nothing.jsonl", " cannot be read: No such file"),
        (tmp_path, " is a folder, but none that a builder prepared: it has no dataset_info.json"),
    ):
        assert refusal(path, name).startswith(words), path
    no_rows = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record]).slice(0, 0), no_rows)
    assert refusal(no_rows, name) == " holds no records"


@every_source
def test_whatever_is_done_to_a_file_it_is_read_or_refused_in_a_sentence(tmp_path, name):
    """Bytes are cut out, doubled and overwritten at random; nothing but an InputError may come of it."""
    record, _ = SAMPLES[name]
    originals = [
        lines(tmp_path / "a.jsonl", record, record).read_bytes(),
        json.dumps([record, record], indent=1).encode(),
        gzip.compress(json.dumps(record).encode()),
        as_parquet(tmp_path / "a.parquet", record, record).read_bytes(),
    ]
    generator, path, refusals = random.Random(name), tmp_path / "b", []
    for _ in range(120):
        content = bytearray(generator.choice(originals))
        start = generator.randrange(len(content))
        end = min(start + generator.randrange(1, 20), len(content))
        content[start:end] = generator.choice([b"", bytes(content[start:end]) * 2, generator.randbytes(end - start)])
        path.write_bytes(content)
        try:
            load_dataset(path, generator.choice(["auto", name]))
        except InputError as error:
            refusals.append(str(error))
    assert [sentence for sentence in refusals if "\n" in sentence or not sentence.startswith(str(path))] == []
    assert len(refusals) > 40


def test_a_file_of_no_known_format_is_told_the_formats(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"q": "a", "a": "b"})
    sentence = refusal(path)
    assert sentence.startswith(":1: ")
    assert "'q', 'a'" in sentence
    assert all(name in sentence for name in (*SOURCES, "fields"))


@pytest.mark.parametrize(
    ("fields", "record", "expected"),
    [
        ({"instruction": "q", "output": "a"}, {"q": "Tree?", "a": "Oak"}, Instruction("Tree?", "", "Oak")),
        (
            {"instruction": "q", "input": "ctx", "output": "a"},
            {"q": "Tree?", "ctx": "not pine", "a": "Oak"},
            Instruction("Tree?", "not pine", "Oak"),
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            {"q": "Tree?", "good": "Oak", "bad": "Yew"},
            pair(turns("Tree?"), "Oak", "Yew"),
        ),
        ({"messages": "chat"}, {"chat": turns("Hi", "Hello")}, Conversation(tuple(turns("Hi", "Hello")))),
    ],
)
def test_fields_that_the_config_names(tmp_path, fields, record, expected):
    path = lines(tmp_path / "a.jsonl", record)
    assert [e.record for e in load_examples(path, "fields", fields)] == [expected]
    assert type(expected) is find_source("fields", fields).record
    for name in {*record} - {"ctx"}:
        bad = lines(tmp_path / "b.jsonl", record, {key: value for key, value in record.items() if key != name})
        assert refusal(bad, "fields", fields=fields).startswith(f":2: the record has no field {name!r}")
    assert load_dataset(lines(tmp_path / "c.jsonl", record, record), "fields", fields).dropped == {}


def test_field_maps_that_make_no_record(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"q": "a", "a": "b"})
    with pytest.raises(InputError, match=r"^data\.fields has instruction, answer, but should have instruction and "):
        load_dataset(path, "fields", {"instruction": "q", "answer": "a"})
    with pytest.raises(InputError, match=r"^data\.fields has nothing, but should have "):
        load_dataset(path, "fields")
    with pytest.raises(InputError, match=r"^data\.fields is set, but data\.format is 'auto' and not 'fields'"):
        load_dataset(path, fields={"instruction": "q", "output": "a"})


@needs_shared
@pytest.mark.parametrize(
    ("file", "examples", "prompts", "dropped"),
    [
        ("sft/alpaca_random_9k.json", 9229 - 4, 9225, {"empty answer": 4}),
        ("reasoning/gsm8k/train.jsonl", 7473, 7473, {}),
        ("reasoning/gsm8k/test.jsonl", 1319, 1319, {}),
        ("pref/pku_saferlhf_dpo_5k.json", 5135, 930, {}),
        ("pref/hh_rlhf/harmless-base.test.jsonl.gz", 2312 - 13, 2297, {"empty answer": 4, "turns out of order": 9}),
        (
            "pref/hh_rlhf/helpful-base.test.jsonl.gz",
            2354 - 21,
            2333,
            {"empty answer": 4, "equal pair": 2, "turns out of order": 15},
        ),
    ],
)
def test_published_files_have_the_rows_they_are_known_to_have(file, examples, prompts, dropped):
    dataset = load_dataset(SHARED / file)
    # Numbers only, and no assertion on lists: the texts of some are not to be printed.
    assert len(dataset.examples) == examples
    assert len({prompt_of(example) for example in dataset.examples}) == prompts
    assert dataset.dropped == dropped


@needs_shared
def test_prompts_for_evaluation_only_are_no_source():
    path = SHARED / "eval" / "beavertails_evaluation_700.json"
    assert refusal(path, "beavertails").startswith(":2: the record has no field 'response'")
