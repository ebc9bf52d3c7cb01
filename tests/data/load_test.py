"""Every source: its examples, the records that are dropped and counted, and those refused in one sentence."""

import json
from collections.abc import Iterator

import places
import pytest
from source_samples import CHAT, HH, PKU, REQUIRED, SAMPLES, as_parquet, every_source, lines, pair, refusal, turns

from aligner_jax.data.sources import (
    SOURCES,
    Conversation,
    Instruction,
    Preference,
    Text,
    find_source,
    load_dataset,
    load_examples,
    load_first,
)
from aligner_jax.data.sources.formats import READ
from aligner_jax.data.sources.split import prompt_of
from aligner_jax.errors import InputError

SHARED = places.SHARED / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the third-party data folder is not beside the repository"
)


@every_source
def test_the_source_of_a_record_is_told_by_its_fields_alone(name):
    record, expected = SAMPLES[name]
    fitting = [source.name for source in SOURCES.values() if source.fits(record)]
    assert fitting == ["alpaca" if name == "alpaca_cleaned" else name]
    assert type(expected) is SOURCES[name].record


def test_the_shared_form_of_pku_and_pairs_without_a_safe_answer(tmp_path):
    safer_first = {"prompt": "Which tree?", "response": ["Oak", "Yew"]}
    dataset = load_dataset(lines(tmp_path / "a.jsonl", safer_first))
    assert [e.record for e in dataset.examples] == [SAMPLES["pku_saferlhf"][1]]
    both = [{**PKU, "is_response_1_safe": False}, {**PKU, "is_response_0_safe": True, "safer_response_id": 0}]
    dataset = load_dataset(lines(tmp_path / "b.jsonl", *both))
    assert [e.record for e in dataset.examples] == [pair(turns("Which tree?"), "Yew", "Oak")]
    assert dataset.dropped == {"no safe answer": 1}


@pytest.mark.parametrize(("value", "words"), [(True, "true"), (2, "2"), (-1, "-1"), ("1", "a string")])
def test_the_safer_response_is_number_0_or_1(tmp_path, value, words):
    path = lines(tmp_path / "a.jsonl", {**PKU, "safer_response_id": value})
    assert refusal(path) == f":1: the field 'safer_response_id' holds {words}, not 0 or 1"


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_current_folder(path, tmp_path, monkeypatch):
    lines(tmp_path / "train.jsonl", {"question": "a", "answer": "b"})
    monkeypatch.chdir(tmp_path)
    for load in (load_dataset, load_first):
        with pytest.raises(InputError, match=r"^the path of the data is empty: give a file"):
            load(path)


def test_unsafe_answers_are_not_learned_from(tmp_path):
    record, expected = SAMPLES["beavertails"]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", {**record, "is_safe": False}, record))
    assert [e.record for e in dataset.examples] == [expected]
    assert str(dataset) == "1 example; dropped 1: unsafe answer (1)"


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
        "1 example; dropped 5: empty answer (1), equal pair (1), prompts differ (1), turns out of order (2)"
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
    for name in ("chatgpt", "bing", "bard"):
        other = {"conversations": [CHAT[0], {"from": name, "value": "Hello"}]}
        (example,) = load_dataset(lines(tmp_path / f"{name}.jsonl", other)).examples
        assert example.record == Conversation((*turns("Hi", "Hello"),))
    stranger = {"conversations": [*CHAT, {"from": "narrator", "value": "Hm."}]}
    assert ":1, turn 3: the field 'from' is 'narrator', but" in refusal(lines(tmp_path / "b.jsonl", stranger))


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
    """Returns records that the source refuses, and words that each refusal must have."""
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


def test_a_file_of_no_known_format_is_told_the_formats(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"q": "a", "a": "b"})
    with pytest.raises(InputError) as caught:
        load_dataset(path)
    assert str(caught.value) == (
        f"{path}:1: the record's fields are 'q', 'a', which tell no format; rename them, or set data.format to "
        f"'fields' and name them in data.fields{READ}"
    )
    with pytest.raises(InputError, match=r"^the data format 'x' is unknown; .*, fields: docs/data\.md") as caught:
        load_dataset(path, "x")
    assert all(name in str(caught.value) for name in SOURCES)


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
        ({"question": "q", "answer": "a"}, {"q": "Tree?", "a": "Oak"}, Instruction("Tree?", "", "Oak")),
        ({"prompt": "q", "completion": "a"}, {"q": "Tree?", "a": "Oak"}, Instruction("Tree?", "", "Oak")),
        (
            {"question": "q", "chosen": "good", "rejected": "bad"},
            {"q": "Tree?", "good": "Oak", "bad": "Yew"},
            pair(turns("Tree?"), "Oak", "Yew"),
        ),
        ({"text": "body"}, {"body": "Oaks grow."}, Text("Oaks grow.")),
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
    with pytest.raises(InputError, match=r"^data\.fields has instruction, reply, but should have instruction and "):
        load_dataset(path, "fields", {"instruction": "q", "reply": "a"})
    with pytest.raises(
        InputError, match=r"^data\.fields has question and prompt and answer, of which two mean 'instruction'"
    ):
        load_dataset(path, "fields", {"question": "q", "prompt": "a", "answer": "a"})
    with pytest.raises(InputError, match=r"^data\.fields has text, system, but should have instruction and "):
        load_dataset(path, "fields", {"text": "q", "system": "a"})
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
    # Only numbers are compared, since a failed assertion on lists would print texts that must not be printed.
    assert len(dataset.examples) == examples
    assert len({prompt_of(example) for example in dataset.examples}) == prompts
    assert dataset.dropped == dropped


@needs_shared
def test_prompts_for_evaluation_only_are_no_source():
    path = SHARED / "eval" / "beavertails_evaluation_700.json"
    assert refusal(path, "beavertails").startswith(":2: the record has no field 'response'")
