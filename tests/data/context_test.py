"""System prompts, histories and unknown fields; the formats of TRL's records."""

import json

import pytest
from source_samples import CHAT, HH, SAMPLES, as_parquet, lines, pair, refusal, turns

from aligner_jax.data.sources import SOURCES, Conversation, Instruction, load_dataset
from aligner_jax.data.sources.example import Preference
from aligner_jax.data.tfds_builder import prepare

SYSTEM = {"role": "system", "content": "Be kind."}
TASK = {"instruction": "And then?", "input": "", "output": "Then it rained."}


def records(path, format="auto", fields=None):
    return [example.record for example in load_dataset(path, format, fields).examples]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("source", [name for name in SAMPLES if SOURCES[name].system])
def test_a_system_prompt_beside_a_record_comes_first(tmp_path, source, name):
    record, expected = SAMPLES[source]
    path = lines(tmp_path / "a.jsonl", {**record, name: "Be kind."}, {**record, name: " "}, {**record, name: None})
    first, *others = records(path, source)
    assert others == [expected, expected]
    if isinstance(expected, Preference):
        assert first == Preference((SYSTEM, *expected.prompt), expected.chosen, expected.rejected)
    else:
        (plain,) = load_dataset(lines(tmp_path / "b.jsonl", record), source).examples
        assert first == Conversation((SYSTEM, *plain.messages()))
    assert records(as_parquet(tmp_path / "a.parquet", {**record, name: "Be kind."}), source) == [first]
    assert load_dataset(path, source).unused == {}


def test_a_history_comes_before_the_question(tmp_path):
    record = {**TASK, "system": "Be kind.", "history": [["Begin.", "It was sunny."], ["On?", "Yes."]]}
    expected = Conversation((SYSTEM, *turns("Begin.", "It was sunny.", "On?", "Yes.", "And then?", "Then it rained.")))
    path = lines(tmp_path / "a.jsonl", record, {**TASK, "history": []})
    assert records(path) == [expected, Instruction(**TASK)]
    assert records(as_parquet(tmp_path / "a.parquet", record)) == [expected]
    own = {"q": "And then?", "a": "Then it rained.", "s": "Be kind.", "h": record["history"]}
    names = {"instruction": "q", "output": "a", "system": "s", "history": "h"}
    assert records(lines(tmp_path / "b.jsonl", own), "fields", names) == [expected]
    folder = prepare("alpaca", tmp_path, raw=path)
    assert load_dataset(folder) == load_dataset(path)


def test_two_system_prompts_are_counted_and_equal_ones_are_one(tmp_path):
    talk = [{"from": "system", "value": "Be kind."}, *CHAT]
    rows = [{"conversations": talk, "system": text} for text in ("Be kind.", "Be rude.")]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows))
    assert [e.record for e in dataset.examples] == [Conversation((SYSTEM, *turns("Hi", "Hello")))]
    assert dataset.dropped == {"two system prompts": 1}


def test_fields_that_are_not_understood_are_named_once(tmp_path):
    chat = {"messages": [{**turn, "name": "Ann", "tool_calls": []} for turn in turns("Hi", "Hello")]}
    rows = [
        {**chat, "tools": "[]", "id": 3, "source": "web"},
        {**chat, "tools": "[{}]", "system": ["a"], "\x1b[2J": 1},
        {**chat, "tools": [{}], "history": "Begin."},
    ]
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows))
    assert dataset.unused == {"messages[].name": 3, "tools": 2, "system": 1, "history": 1, "\x1b[2J": 1}
    assert str(dataset) == (
        "3 examples; fields that are not used: 'messages[].name' (3), 'tools' (2), '\\x1b[2J' (1), 'history' (1), "
        "'system' (1)"
    )
    many = [{**TASK, f"f{i}": 1} for i in range(300)]
    dataset = load_dataset(lines(tmp_path / "b.jsonl", *many))
    assert len(dataset.unused) == 101
    assert sum(dataset.unused.values()) == 300
    assert str(dataset).endswith("'f14' (1) and 93 more")
    table = as_parquet(tmp_path / "c.parquet", {**TASK, "tools": "x", "seed": 1}, {**TASK, "tools": None, "seed": 2})
    assert load_dataset(table).unused == {"tools": 1, "seed": 2}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_fields_of_published_data_are_not_named(tmp_path, name):
    record, _ = SAMPLES[name]
    assert (
        load_dataset(lines(tmp_path / "a.jsonl", {**record, "id": "a", "source": "b", "score": 1}), name).unused == {}
    )


USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "What?"))
)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hello", "What?"),
        ([USER], [GOOD], [BAD]),
        ("Hi", [GOOD], [BAD]),
        ([USER], "Hello", "What?"),
        ([USER], [USER, GOOD], [USER, BAD]),
    ],
)
def test_preferences_of_every_form(tmp_path, prompt, chosen, rejected):
    record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    path = lines(tmp_path / "a.jsonl", record)
    expected = [pair(turns("Hi"), "Hello", "What?")]
    own = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    assert records(path) == records(path, "preferences") == records(path, "fields", own) == expected
    assert records(as_parquet(tmp_path / "a.parquet", record)) == expected


def test_preferences_that_are_none(tmp_path):
    first = {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}
    for record, says in (
        ({**first, "prompt": [USER, GOOD]}, "the field 'prompt' does not end with a turn that an assistant answers"),
        ({**first, "prompt": []}, "the field 'prompt' does not end with a turn that an assistant answers"),
        ({**first, "chosen": [USER]}, "the field 'chosen' does not end with a turn of 'assistant'"),
        ({**first, "chosen": []}, "the field 'chosen' does not end with a turn of 'assistant'"),
        (
            {**first, "chosen": [{**USER, "content": "Bye"}, GOOD]},
            "the field 'chosen' is a whole chat, but does not begin",
        ),
        ({**first, "rejected": 7}, "the field 'rejected' holds a number, not text"),
        ({**first, "chosen": ["Hello"]}, "the field 'chosen' is not a list of objects with 'role' and 'content'"),
    ):
        assert refusal(lines(tmp_path / "a.jsonl", first, record)).startswith(f":2: {says}")
    longer = {**first, "chosen": [GOOD, USER, GOOD], "rejected": [BAD, USER, BAD]}
    dataset = load_dataset(lines(tmp_path / "b.jsonl", first, longer))
    assert dataset.dropped == {"prompts differ": 1}
    assert records(lines(tmp_path / "c.jsonl", {**HH, "prompt": ""})) == [pair(turns("Hi"), "Hello", "What?")]


def test_completions_of_every_form(tmp_path):
    rows = [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [SYSTEM, USER], "completion": [GOOD]},
        {"prompt": "Hi", "completion": "What?", "label": False},
        {"prompt": "Hi", "completion": "Hello", "label": True},
    ]
    rows.append({"prompt": turns("Hi", "Hello", "And?"), "completion": [GOOD]})
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *rows))
    talk = Conversation((SYSTEM, *turns("Hi", "Hello")))
    earlier = {"role": "assistant", "content": "Hello", "learned": False}
    assert [e.record for e in dataset.examples] == [
        Instruction("Hi", "", "Hello"),
        talk,
        Instruction("Hi", "", "Hello"),
        Conversation((USER, earlier, *turns("And?", "Hello"))),
    ]
    assert dataset.dropped == {"unwanted answer": 1}
    bad = {"prompt": [USER], "completion": [USER]}
    assert (
        refusal(lines(tmp_path / "b.jsonl", bad))
        == ":1: the field 'completion' does not end with a turn of 'assistant'"
    )
    assert json.dumps(rows[0]) in (tmp_path / "a.jsonl").read_text()


def unlearned(content):
    return {"role": "assistant", "content": content, "learned": False}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_answers_of_weight_0_are_no_targets(tmp_path, mark):
    first, answer, second, last = turns("Hi", "Hello", "And?", "Bye")
    wanted = [Conversation((first, unlearned("Hello"), second, last)), Conversation((first, answer))]
    rows = [[first, {**answer, **mark}, second, {**last, "weight": 1}], [first, answer, second, {**last, **mark}]]
    rows.append([first, {**answer, **mark}])
    talks = [[{"from": t["role"], "value": t["content"], **t} for t in row] for row in rows]
    for turn in (turn for talk in talks for turn in talk):
        del turn["role"], turn["content"]
    for name, chats in (("messages", rows), ("conversations", talks), ("conversations", rows)):
        path = lines(tmp_path / "a.jsonl", *({name: chat} for chat in chats))
        dataset = load_dataset(path)
        assert [example.record for example in dataset.examples] == wanted
        assert (dataset.dropped, dataset.unused) == ({"no answer": 1}, {})
    folder = prepare("messages", tmp_path, raw=lines(tmp_path / "b.jsonl", *({"messages": row} for row in rows)))
    assert records(folder) == wanted
    half = {"messages": [first, {**answer, "weight": 0.5}]}
    assert "'weight' should be 0 or 1" in refusal(lines(tmp_path / "c.jsonl", half))


def test_contents_in_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    path = lines(tmp_path / "a.jsonl", {"messages": [USER, {**GOOD, "content": parts}]})
    assert records(path) == [Conversation(tuple(turns("Hi", "Hello")))]
    assert records(
        lines(tmp_path / "b.jsonl", {"prompt": [USER], "chosen": [{**GOOD, "content": parts}], "rejected": [BAD]})
    ) == [pair(turns("Hi"), "Hello", "What?")]
    for part in ({"type": "image_url", "image_url": {}}, "Hello", {"type": "text"}, None):
        says = refusal(lines(tmp_path / "c.jsonl", {"messages": [USER, {**GOOD, "content": [part]}]}))
        assert says.startswith(":1, message 2: the ")


def test_records_in_which_tools_take_part_are_counted(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = [[USER, {**call, "content": said}, {"role": "tool", "content": "4"}, GOOD] for said in (None, "", "See:")]
    rows.append([USER, GOOD])
    dataset = load_dataset(lines(tmp_path / "a.jsonl", *({"messages": row} for row in rows)))
    assert [example.record for example in dataset.examples] == [Conversation((USER, GOOD))]
    assert dataset.dropped == {"calls of tools": 3}
    talk = [CHAT[0], {"from": "function_call", "value": "{}"}, {"from": "observation", "value": "4"}, CHAT[1]]
    dataset = load_dataset(lines(tmp_path / "b.jsonl", {"conversations": talk}, {"conversations": CHAT}))
    assert [example.record for example in dataset.examples] == [Conversation((USER, GOOD))]
    assert dataset.dropped == {"turns of tools": 1}


def test_unwanted_answers_are_not_learned(tmp_path):
    rows = [{**TASK, "kto_tag": False}, {**TASK, "kto_tag": True}]
    for path in (lines(tmp_path / "a.jsonl", *rows), as_parquet(tmp_path / "a.parquet", *rows)):
        dataset = load_dataset(path)
        assert [example.record for example in dataset.examples] == [Instruction(**TASK)]
        assert (dataset.dropped, dataset.unused) == ({"unwanted answer": 1}, {})


def test_rankings_of_conversations(tmp_path):
    good, bad = {"from": "gpt", "value": "Hello"}, {"from": "gpt", "value": "What?"}
    record = {"conversations": CHAT[:1], "chosen": good, "rejected": bad, "system": "Be kind."}
    for path in (lines(tmp_path / "a.jsonl", record), as_parquet(tmp_path / "a.parquet", record)):
        dataset = load_dataset(path)
        assert [example.record for example in dataset.examples] == [pair([SYSTEM, USER], "Hello", "What?")]
        assert dataset.unused == {}
    longer = {**record, "conversations": [*CHAT, CHAT[0]]}
    assert records(lines(tmp_path / "b.jsonl", longer)) == [pair([SYSTEM, USER, GOOD, USER], "Hello", "What?")]
    for change, says in (
        ({"conversations": CHAT}, "'conversations' does not end with a turn of a human"),
        ({"chosen": {"from": "human", "value": "Hello"}}, "'chosen' is not a turn of 'gpt'"),
        ({"rejected": {"value": "Hello"}}, "'from'"),
    ):
        assert says in refusal(lines(tmp_path / "c.jsonl", record, {**record, **change}))
