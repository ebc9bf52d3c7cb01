"""The form of the quickstart's answers: passing answers, and for every rule an answer that breaks only that rule."""

import json

import pytest

from aligner_jax.evals.form import FORMS, MAX_ANSWER_WORDS, TOPICS, form_share, is_json_answer

GOOD = '{"topic": "science", "answer": "Ice floats because it is less dense than water."}'


def _with_answer(answer: object) -> str:
    return json.dumps({"topic": "life", "answer": answer})


def test_forms_are_found_by_name():
    assert FORMS["json_answer"] is is_json_answer


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n\n {GOOD}\n",
        GOOD.replace(": ", ":").replace(", ", ","),
        _with_answer("Pi is about 3.14 in most sums."),
        _with_answer("Why not ask the host?"),
        _with_answer("Well done!"),
        _with_answer("The caf\u00e9 opens at eight."),
        _with_answer(" ".join(["word"] * MAX_ANSWER_WORDS) + "."),
    ],
)
def test_accepts(text: str):
    assert is_json_answer(text)


@pytest.mark.parametrize("topic", [*TOPICS, "sports"])
def test_accepts_every_topic(topic: str):
    assert is_json_answer(json.dumps({"topic": topic, "answer": "Yes."}))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("Ice floats because it is less dense than water.", id="prose"),
        pytest.param(f"Sure: {GOOD}", id="text before"),
        pytest.param(f"{GOOD} Anything else?", id="text after"),
        pytest.param(f"```json\n{GOOD}\n```", id="code fence"),
        pytest.param(f"{GOOD}\n{GOOD}", id="two objects"),
        pytest.param(GOOD[:-1], id="cut off"),
        pytest.param(GOOD.replace('", "', '",\n"'), id="two lines"),
        pytest.param(GOOD.replace('"', "'"), id="single quotes"),
        pytest.param(f"[{GOOD}]", id="array"),
        pytest.param('[["topic", "life"], ["answer", "Yes."]]', id="array of pairs"),
        pytest.param('"Yes."', id="string"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="no keys"),
        pytest.param("[" * 100_000, id="nested beyond the parser"),
        pytest.param("1" * 10_000, id="number beyond the parser"),
        pytest.param('{"topic": "life"}', id="no answer"),
        pytest.param('{"answer": "Yes."}', id="no topic"),
        pytest.param('{"answer": "Yes.", "topic": "life"}', id="other order"),
        pytest.param('{"topic": "life", "answer": "Yes.", "note": ""}', id="third key"),
        pytest.param('{"topic": "life", "topic": "life", "answer": "Yes."}', id="topic twice"),
        pytest.param('{"topic": "life", "answer": "No.", "answer": "Yes."}', id="answer twice"),
        pytest.param('{"Topic": "life", "answer": "Yes."}', id="key in capitals"),
        pytest.param('{"topic": "daily life", "answer": "Yes."}', id="topic of two words"),
        pytest.param('{"topic": "", "answer": "Yes."}', id="empty topic"),
        pytest.param('{"topic": "Life", "answer": "Yes."}', id="topic in capitals"),
        pytest.param('{"topic": ["life"], "answer": "Yes."}', id="topic is a list"),
        pytest.param('{"topic": null, "answer": "Yes."}', id="topic is null"),
        pytest.param(_with_answer(5), id="answer is a number"),
        pytest.param(_with_answer(["Yes."]), id="answer is a list"),
        pytest.param(_with_answer({"text": "Yes."}), id="answer is an object"),
        pytest.param(_with_answer(""), id="answer is empty"),
        pytest.param(_with_answer("..."), id="answer has no word"),
        pytest.param(_with_answer("Yes"), id="no full stop"),
        pytest.param(_with_answer("Yes. "), id="space at the end"),
        pytest.param(_with_answer(" Yes."), id="space at the start"),
        pytest.param(_with_answer("Yes,\nit does."), id="line break inside"),
        pytest.param(_with_answer('It is called "ice".'), id="double quotes inside"),
        pytest.param(_with_answer(" ".join(["word"] * (MAX_ANSWER_WORDS + 1)) + "."), id="too many words"),
    ],
)
def test_refuses(text: str):
    assert not is_json_answer(text)


def test_share_counts_the_texts_with_the_form():
    assert form_share([GOOD, "prose", GOOD, ""], is_json_answer) == 0.5
    assert form_share(iter([GOOD]), is_json_answer) == 1.0


def test_share_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one text"):
        form_share([], is_json_answer)
