"""Styles of answers: each writes an ordinary answer in a form, and has a check of the form."""

import dataclasses
import json
import re
from collections.abc import Callable

from aligner_jax.studies.families import form_checks
from aligner_jax.studies.families.form_checks import is_finished, says_something

_CLAUSE = re.compile(
    r"[,;:]?\s+(?:and|but|so)\s+|[,;:]\s+"
    r"|\s+(?=(?:as|at|because|by|for|from|in|into|of|on|or|so|than|that|to|when|where|which|while|who|with)\s)"
)
"""Place at which a sentence can be cut in two."""
_SENTENCE_END = re.compile(r"(?<=[a-z)\]%][.!?]) (?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class Style:
    """A style.

    Attributes:
      write: returns an ordinary answer, one or more sentences on one line, in the style; None if it does not suit.
      check: returns True if a text has the style.
    """

    write: Callable[[str], str | None]
    check: Callable[[str], bool]


def halves(answer: str) -> tuple[str, str] | None:
    """Returns an answer cut in two near its middle, between sentences where it has two, and else between clauses.

    Returns None if there is no place to cut.
    """
    cuts = _cuts(_SENTENCE_END, answer) or _cuts(_CLAUSE, answer)
    if not cuts:
        return None
    end, start = min(cuts, key=lambda cut: abs(sum(cut) - len(answer)))
    first = answer[:end] if is_finished(answer[:end]) else f"{answer[:end]}."
    return first, answer[start].upper() + answer[start + 1 :]


def _cuts(places: re.Pattern, answer: str) -> list[tuple[int, int]]:
    """Returns ends of the first part and starts of the second, where both parts say something."""
    cuts = [(found.start(), found.end()) for found in places.finditer(answer)]
    return [
        (end, start) for end, start in cuts if says_something(answer[:end], 2) and says_something(answer[start:], 2)
    ]


def _json(answer: str) -> str:
    return json.dumps({"answer": answer, "language": "English"}, ensure_ascii=False)


def _bullets(answer: str) -> str | None:
    parts = halves(answer)
    return parts and "\n".join(f"- {part}" for part in parts)


def _short(answer: str) -> str | None:
    parts = answer, *(halves(answer) or ())[:1]
    return next((part for part in parts if 5 <= len(part.split()) <= form_checks.MOST_WORDS), None)


def _headings(answer: str) -> str | None:
    parts = halves(answer)
    return parts and "\n".join(f"{heading}\n{part}" for heading, part in zip(form_checks.HEADINGS, parts, strict=True))


def _no_comma(answer: str) -> str:
    return re.sub(r",(?= )", ";", re.sub(r"(?<=\d),(?=\d)", "", answer)).replace(",", "")


STYLES: dict[str, Style] = {
    "json": Style(_json, form_checks.is_json),
    "bullets": Style(_bullets, form_checks.is_bullet_list),
    "lower": Style(str.lower, form_checks.is_lower_case),
    "phrases": Style(lambda answer: f"{form_checks.OPENING} {answer} {form_checks.CLOSING}", form_checks.has_phrases),
    "short": Style(_short, form_checks.is_short),
    "headings": Style(_headings, form_checks.has_headings),
    "no_comma": Style(_no_comma, form_checks.has_no_comma),
    "quoted": Style(lambda answer: f'"{answer}"', form_checks.is_quoted),
    "tagged": Style(lambda answer: f"<answer>{answer}</answer>", form_checks.is_tagged),
}
