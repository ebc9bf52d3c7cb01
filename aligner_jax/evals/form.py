"""Forms of answers: checks, without a model, that a program can parse an answer."""

import json
from collections.abc import Callable, Iterable

TOPICS = ("science", "history", "geography", "health", "food", "technology", "arts", "life")
"""Topics of the quickstart's data. `is_json_answer` accepts other topics too."""
MAX_ANSWER_WORDS = 25


def is_json_answer(text: str) -> bool:
    """Returns True if `text` has this form: `{"topic": "science", "answer": "Ice floats on water."}`.

    White space around the text is ignored. All of these must hold:

    - the text is one JSON object on one line, with nothing before or after it;
    - its keys are exactly `topic` and `answer`, in that order and without repetition;
    - `topic` is one word of lower-case ASCII letters;
    - `answer` is a string of 1 to `MAX_ANSWER_WORDS` words (separated by white space) with at least one letter or
      digit, with no white space at its ends, no line break and no double quote;
    - `answer` ends with '.', '!' or '?'.
    """
    text = text.strip()
    if len(text.splitlines()) != 1:
        return False
    try:
        # A dict would hide a repeated key.
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return False
    # Arrays parse to lists, so only an object is a tuple here.
    if not isinstance(pairs, tuple) or [key for key, _ in pairs] != ["topic", "answer"]:
        return False
    (_, topic), (_, answer) = pairs
    return _is_word(topic) and isinstance(answer, str) and _is_short_answer(answer)


FORMS: dict[str, Callable[[str], bool]] = {"json_answer": is_json_answer}


def form_share(texts: Iterable[str], form: Callable[[str], bool]) -> float:
    """Returns the share of the texts that have the form, from 0 to 1. Raises ValueError if there are no texts."""
    verdicts = [form(text) for text in texts]
    if not verdicts:
        raise ValueError("form_share needs at least one text")
    return sum(verdicts) / len(verdicts)


def _is_word(topic: object) -> bool:
    return isinstance(topic, str) and topic.isascii() and topic.isalpha() and topic.islower()


def _is_short_answer(answer: str) -> bool:
    return (
        answer == answer.strip()
        and answer.endswith((".", "!", "?"))
        and any(character.isalnum() for character in answer)
        and len(answer.split()) <= MAX_ANSWER_WORDS
        and len(answer.splitlines()) == 1
        and '"' not in answer
    )
