"""Prompts of Vicuna-bench and of a file of questions; the model's answers are given."""

import json
from pathlib import Path

from aligner_jax.data.templates import render_prompt
from aligner_jax.decoding.choose import Sampling
from aligner_jax.evals import answers, vicuna
from aligner_jax.evals.answers import AnswersOptions
from aligner_jax.evals.vicuna import VicunaOptions

TEXTS = [" two words \n", "", "one"]


def responses(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


def test_first_turns_are_asked_as_the_authors_did(asked, tiny_subject, tmp_path: Path):
    lines = [{"question_id": f"q{i}", "category": "c", "turns": ["Why?", "And now?"]} for i in range(4)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = VicunaOptions(path=str(tmp_path / "question.jsonl"))
    scores, prompts, seed = asked(vicuna, options, TEXTS, limit=3, seed=5)
    assert scores == {"model": "[/tiny]", "responses": 3, "empty": 1, "mean_words": 1.0}
    tokenizer = tiny_subject().tokenizer
    assert [tokenizer.decode(each.ids) for each in prompts] == [render_prompt("Why?", tokenizer, "alpaca")] * 3
    assert [each[1:] for each in prompts] == [
        (100, Sampling(0.7, 200), ("### Instruction",), i, False) for i in range(3)
    ]
    assert seed == 5
    assert [(each["question_id"], each["response"]) for each in responses(tmp_path)] == [
        ("q0", "two words"),
        ("q1", ""),
        ("q2", "one"),
    ]


def test_any_questions_are_asked_as_the_options_say(asked, tiny_subject, tmp_path: Path):
    lines = [{"text": f"Why {i}?", "kind": "k"} for i in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = AnswersOptions(
        path=str(tmp_path / "questions.jsonl"), prompt_field="text", category_field="kind", template="chat",
        system="Be brief.", temperature=0.25, top_k=7, max_new_tokens=9,
    )  # fmt: skip
    scores, prompts, seed = asked(answers, options, TEXTS, limit=3, seed=5)
    assert scores == {"model": "[/tiny]", "responses": 3, "empty": 1}
    tokenizer = tiny_subject().tokenizer
    wanted = render_prompt("Why 2?", tokenizer, "chat", system="Be brief.")
    assert prompts[2].ids == tuple(tokenizer.encode(wanted, bos=tokenizer.add_bos))
    assert [each[1:] for each in prompts] == [(9, Sampling(0.25, 7), (), i, False) for i in range(3)]
    assert seed == 5
    assert [(each["question_id"], each["category"], each["prompt"]) for each in responses(tmp_path)] == [
        (str(i + 1), "k", f"Why {i}?") for i in range(3)
    ]
