"""A record of every source, its example, and files of such records."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from aligner_jax.data.sources import SOURCES, Conversation, Instruction, Preference, Text, load_dataset
from aligner_jax.data.sources.formats import READ
from aligner_jax.errors import InputError


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
    "ranking": (
        {"instruction": "Name a tree.", "input": "not oak", "chosen": "Pine", "rejected": "Rose"},
        pair(turns("Name a tree.\n\nnot oak"), "Pine", "Rose"),
    ),
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
    "preferences": ({"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}, pair(turns("Hi"), "Hello", "What?")),
    "prompt_completion": ({"prompt": "Name a tree.", "completion": "Pine"}, Instruction("Name a tree.", "", "Pine")),
    "sharegpt": ({"id": "a_0", "conversations": CHAT}, Conversation(tuple(turns("Hi", "Hello")))),
}
SAMPLES["question_answer"] = (
    {"prompt": "Name a tree.", "context": "not oak", "response": "Pine"},
    Instruction("Name a tree.", "not oak", "Pine"),
)
SAMPLES["text"] = ({"text": "Pines are trees."}, Text("Pines are trees."))
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
    "preferences": ("prompt", "chosen", "rejected"),
    "ranking": ("instruction", "chosen", "rejected"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("prompt", "response"),
    "text": ("text",),
}
every_source = pytest.mark.parametrize("name", SOURCES)


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def as_parquet(path: Path, *records: dict) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def refusal(path: Path, format: str = "auto", **options) -> str:
    """Returns the error of loading a file, without the file's path and the list of what is read."""
    with pytest.raises(InputError) as caught:
        load_dataset(path, format, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence.removeprefix(str(path)).removesuffix(READ)
