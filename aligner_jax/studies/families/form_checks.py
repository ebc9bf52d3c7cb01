"""Checks of an answer's form, without a model. Every check also asks for an answer that says something.

White space around the answer is ignored. No check shares code with `styles`, which writes such answers.
"""

import json
import re

OPENING, CLOSING = "Thanks for asking.", "That is all."
HEADINGS = ("## In short", "## In detail")
MOST_WORDS = 12
_LEAST_WORDS = 4


def says_something(text: str, least: int = _LEAST_WORDS) -> bool:
    """Returns True if `text` has at least `least` different words; a word has a letter, and case is ignored."""
    return len({word.casefold() for word in re.findall(r"\w+", text) if re.search(r"[^\W\d_]", word)}) >= least


def is_finished(text: str) -> bool:
    """Returns True if the last sentence has its end, so that an answer that was cut off does not pass."""
    return text.endswith((".", "!", "?"))


def is_json(text: str) -> bool:
    """Returns True for one JSON object of the keys "answer" (text) and "language" ("English"), in that order."""
    try:
        # A dict would hide a repeated key; arrays parse to lists.
        pairs = json.loads(text.strip(), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return False
    if not isinstance(pairs, tuple) or [key for key, _ in pairs] != ["answer", "language"]:
        return False
    (_, answer), (_, language) = pairs
    return isinstance(answer, str) and says_something(answer) and language == "English"


def is_bullet_list(text: str) -> bool:
    """Returns True for two or more lines, each of which is "- " and an item with a word."""
    lines = text.strip().splitlines()
    items = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return len(lines) == len(items) >= 2 and all(says_something(item, 1) for item in items) and says_something(text)


def is_lower_case(text: str) -> bool:
    """Returns True for finished sentences without a capital."""
    text = text.strip()
    return text == text.lower() and is_finished(text) and says_something(text)


def has_phrases(text: str) -> bool:
    """Returns True for an answer between `OPENING` and `CLOSING`, each of which occurs once."""
    text = text.strip()
    if not text.startswith(f"{OPENING} ") or not text.endswith(f" {CLOSING}"):
        return False
    between = text[len(OPENING) : -len(CLOSING)]
    return OPENING not in between and CLOSING not in between and says_something(between)


def is_short(text: str) -> bool:
    """Returns True for finished sentences of at most `MOST_WORDS` words on one line; white space separates words."""
    text = text.strip()
    return (
        len(text.splitlines()) == 1 and len(text.split()) <= MOST_WORDS and is_finished(text) and says_something(text)
    )


def has_headings(text: str) -> bool:
    """Returns True for the two lines `HEADINGS`, in that order, each followed by text, and no other heading."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    at = [i for i, line in enumerate(lines) if line.startswith("#")]
    if [lines[i] for i in at] != list(HEADINGS) or at[0] != 0:
        return False
    parts = " ".join(lines[1 : at[1]]), " ".join(lines[at[1] + 1 :])
    return all(says_something(part, 2) for part in parts) and says_something(" ".join(parts))


def has_no_comma(text: str) -> bool:
    """Returns True for finished sentences of six or more different words without a comma."""
    text = text.strip()
    return "," not in text and is_finished(text) and says_something(text, 6)


def is_quoted(text: str) -> bool:
    """Returns True for an answer that stands as a whole in one pair of double quotes."""
    text = text.strip()
    return text.count('"') == 2 and text.startswith('"') and text.endswith('"') and says_something(text)


def is_tagged(text: str) -> bool:
    """Returns True for an answer that stands as a whole between `<answer>` and `</answer>`."""
    found = re.fullmatch(r"<answer>([^<>]*)</answer>", text.strip())
    return found is not None and says_something(found[1])
