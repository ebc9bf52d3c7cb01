import json

import places
import pytest

from aligner_jax.data.sources import Conversation, Example, Instruction, load_examples
from aligner_jax.errors import InputError

SHARED = places.SHARED / "data"
PINE = {"instruction": "Name a tree.", "input": "", "output": "Pine"}
OAK = {"instruction": "Name another.", "input": "not pine", "output": "Oak"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def write(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8") if isinstance(text, str) else path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([PINE, OAK], indent=2),
        json.dumps([PINE, OAK]) + "\n",
        f"\n{json.dumps(PINE)}\r\n\n  {json.dumps(OAK)}",
        b"\xef\xbb\xbf" + json.dumps([PINE, OAK]).encode(),
        "[\n" + json.dumps(PINE) + "\n,\n" + json.dumps(OAK) + "\n]",
    ],
)
def test_arrays_and_lines_are_the_same(tmp_path, text):
    assert [e.record for e in load_examples(write(tmp_path, text))] == [Instruction(**PINE), Instruction(**OAK)]


def test_where_is_the_line_a_record_begins_on(tmp_path):
    path = write(tmp_path, json.dumps([PINE, OAK], indent=2))
    assert [e.where for e in load_examples(path)] == [f"{path}:2", f"{path}:7"]
    path = write(tmp_path, f"{json.dumps(PINE)}\n\n{json.dumps(OAK)}\n")
    assert [e.where for e in load_examples(path)] == [f"{path}:1", f"{path}:3"]


def test_line_separators_inside_strings_are_text(tmp_path):
    record = {**PINE, "output": "a\u2028b\x85c"}
    path = write(tmp_path, json.dumps(record, ensure_ascii=False) + "\n" + json.dumps(OAK))
    assert [e.answer for e in load_examples(path)] == ["a\u2028b\x85c", "Oak"]


def test_input_may_be_missing(tmp_path):
    path = write(tmp_path, json.dumps({"instruction": "Name a tree.", "output": "Pine", "id": 3}))
    assert load_examples(path)[0].record == Instruction("Name a tree.", "", "Pine")


def test_messages_end_with_the_assistants_last_turn(tmp_path):
    later = {"messages": [*CHAT["messages"], {"role": "user", "content": "Bye"}]}
    path = write(tmp_path, json.dumps(CHAT) + "\n" + json.dumps(later))
    first, second = load_examples(path)
    assert first.record == second.record == Conversation(tuple(CHAT["messages"]))
    assert (first.question, first.answer) == ("Hi", "Hello")


def test_an_instruction_as_a_conversation():
    example = Example(Instruction(**OAK), "x:1")
    question = "Name another.\n\nnot pine"
    assert example.messages() == [{"role": "user", "content": question}, {"role": "assistant", "content": "Oak"}]
    assert (example.question, example.answer) == (question, "Oak")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "holds no records"),
        (json.dumps(PINE) + '\n{"instruction": ', r":2 is not JSON"),
        (json.dumps([PINE, OAK], indent=2)[:-8], r":10 is not JSON"),
        (f"[{json.dumps(PINE)}\n", r":2 is not JSON: expected ',' or the array's '\]', the file ends"),
        (f"[{json.dumps(PINE)}\n{json.dumps(OAK)}]", r":2 is not JSON: expected ','"),
        (f"[{json.dumps(PINE)},\n]", r":2 is not JSON"),
        (f"[{json.dumps(PINE)}]\nx", r":2 is not JSON: something follows"),
        ("\n[1]", r":2 holds a number where an object"),
        ('{"instruction": "a", "output": "b"}\n"c"', r":2 holds a string where an object"),
        (json.dumps(PINE) + "\n" + json.dumps({"instruction": "a"}), r":2: the record has no field 'output'"),
        ("{}", r":1: the record's fields are none, which tell no format"),
        (json.dumps({**PINE, "output": ["a"]}), r":1: the field 'output' holds an array, not text"),
        (json.dumps({**PINE, "input": 3}), r":1: the field 'input' holds a number, not text"),
        (json.dumps({**PINE, "output": None}), r":1: the field 'output' holds null, not text"),
        (json.dumps({**PINE, "output": "\ud83d"}), r":1: the field 'output' holds half a surrogate pair"),
        (b'{"instruction": "a", "output": "b"}\n{"output": "\xff"}', r":2 is not UTF-8"),
        (b'[{"instruction": "a",\n"output": "\xff"}]', r":2 is not UTF-8"),
        (json.dumps({"messages": "hi"}), r":1: the field 'messages' is not a list"),
        (json.dumps({"messages": []}), r":1: no message has the role 'assistant'"),
        (json.dumps({"messages": [{"role": "user"}]}), r":1, message 1: the record has no field 'content'"),
        (json.dumps(CHAT) + "\n" + json.dumps(PINE), r":2: the record has no field 'messages'"),
    ],
)
def test_bad_files_are_refused_by_file_and_line(tmp_path, text, message):
    with pytest.raises(InputError, match=r"data\.jsonl.*" + message):
        load_examples(write(tmp_path, text))


def test_formats_and_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^there is no file .*nothing\.json$"):
        load_examples(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="'alpacca' is unknown; there are auto, alpaca, messages"):
        load_examples(write(tmp_path, json.dumps(PINE)), "alpacca")
    with pytest.raises(InputError, match="no field 'messages'"):
        load_examples(write(tmp_path, json.dumps(PINE)), "messages")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party data folder is not beside the repository")
def test_published_files():
    examples = load_examples(SHARED / "sft" / "alpaca_random_9k.json")
    records = [example.record for example in examples]
    # 3,666 of 9,229 rows have an input; so does one of the four without output.
    assert len(records) == 9229 - 4
    assert sum(bool(record.input) for record in records) == 3666 - 1
    with pytest.raises(InputError, match=r"self_instruct_seed_tasks\.jsonl:1: the record has no field 'output'"):
        load_examples(SHARED / "sft" / "self_instruct_seed_tasks.jsonl")
