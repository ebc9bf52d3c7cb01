"""GSM8K, zero-shot and generated: the number after the marker "The answer is: " must equal the right answer.

There are three protocols:

- "metamath" is the protocol of MetaMath's repository, whose data the paper trains on. The prompt is Alpaca's and ends
  in "Let's think step by step.". Decoding is greedy, makes at most 512 tokens and stops at words that begin another
  turn. The answer is the first number after the last marker; fractions and decimals are rounded to whole numbers.
- "authors" is the protocol of the Aligner authors' repository. The prompt is "[|User|] … [|AI Assistant|] ". Decoding
  samples at most 200 tokens at temperature 0.4 with top-k 200. The answer is the text from the first marker to "#" or
  the end of the line. Full stops, spaces and LaTeX's dollar and per cent signs are removed, and the rest must equal
  the right number as text (so "1,000" does not equal 1000).
- "template" uses the prompt format of the adapter's training data. Decoding is greedy and makes at most 256 tokens.
  Numbers are read as in "metamath", but may contain commas. With the marker "#### " it suits adapters trained on
  GSM8K's own answers.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.records import read_records
from aligner_jax.data.sources.values import check_text
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.tables import Table

MARKER = "The answer is: "
_METAMATH_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
_METAMATH_STOPS = ("Question", "USER", "ASSISTANT", "Instruction", "Response")
_AUTHORS_PROMPT = "[|User|] {question} [|AI Assistant|] "
# MetaMath's pattern: it reads a number with two commas only up to the second.
_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_NUMBER_WITH_COMMAS = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*[.,/]?\d+)")


class Decoding(NamedTuple):
    """Decoding options of a protocol."""

    max_new_tokens: int
    sampling: Sampling = Sampling()
    until: tuple[str, ...] = ()


DECODINGS = {
    "metamath": Decoding(512, until=_METAMATH_STOPS),
    "authors": Decoding(200, Sampling(0.4, 200)),
    "template": Decoding(256),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm8kOptions:
    """Options of the evaluation "gsm8k".

    Attributes:
      path: GSM8K's test.jsonl (fields question, answer) or MetaMath's copy of it (query, response).
      protocol: prompt, decoding and parsing of answers; see the module's docstring.
      marker: text that precedes the number in an answer.
      template, system: prompt format of the protocol "template"; see `PromptFormat.resolve`.
      max_new_tokens: tokens of an answer at most; None means the protocol's limit.
    """

    path: str
    protocol: Literal["metamath", "authors", "template"] = "metamath"
    marker: str = MARKER
    template: TemplateName = "auto"
    system: str | None = None
    max_new_tokens: int | None = number(None, least=1)


class Problem(NamedTuple):
    """A question and its answer, a whole number."""

    question: str
    answer: int


def read_problems(path: str) -> list[Problem]:
    """Reads the problems of a file.

    Raises:
      InputError: the file cannot be read, or a record is not a problem. Names file and line.
    """
    problems = []
    for record, where in read_records(path):
        question, answer = (
            next((record[name] for name in names if isinstance(record.get(name), str)), None)
            for names in (("question", "query"), ("answer", "response"))
        )
        if question is None or answer is None:
            raise InputError(f"{where}: the record has no texts 'question' and 'answer' (nor 'query' and 'response')")
        check_text(question, "the question", where)
        found = answer.rpartition("#### ")[2] if "#### " in answer else ""
        try:
            problems.append(Problem(question, int(found.replace(",", ""))))
        except ValueError:
            raise InputError(f"{where}: its answer does not end in '#### ' and a whole number") from None
    return problems


def evaluate(run: Run, options: Gsm8kOptions) -> Outcome:
    """Generates answers and returns the accuracy, its 95 % interval, and the share of answers with the marker."""
    if not options.marker.strip():
        raise InputError("config.evaluation.marker is empty, but the answer's number must follow something")
    problems = read_problems(options.path)[: run.config.limit]
    subject, decoding = run.model, DECODINGS[options.protocol]
    new = options.max_new_tokens or decoding.max_new_tokens
    prompts = [
        Prompt(encoded(subject, text), new, decoding.sampling, decoding.until, i)
        for i, text in enumerate(_asked(run, problems, options))
    ]
    store = run.result_store("generated", without=("marker",))
    texts = generate(subject, prompts, store, run.console, seed=run.config.seed)
    right = [
        is_right(text, problem.answer, protocol=options.protocol, marker=options.marker)
        for text, problem in zip(texts, problems, strict=True)
    ]
    marked = sum(options.marker.strip() in text for text in texts)
    scores = {
        "protocol": options.protocol,
        "problems": len(problems),
        "solved": sum(right),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": wilson_interval(sum(right), len(right)),
        "answers_with_the_marker": marked / len(texts),
    }
    return Outcome(scores, table_of(scores, options.marker))


def table_of(scores: Mapping[str, Any], marker: str) -> Table:
    """Returns a table with one row per score."""
    table = Table(f"GSM8K, no examples, protocol {scores['protocol']!r}")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("solved", f"{scores['solved']:,} of {scores['problems']:,}")
    table.add_row("accuracy", f"{scores['accuracy']:.4f}")
    table.add_row("its 95 % interval", "{:.4f} to {:.4f}".format(*scores["accuracy_interval"]))
    table.add_row(f"answers with {marker.strip()!r}", f"{scores['answers_with_the_marker']:.1%}")
    return table


def _asked(run: Run, problems: Sequence[Problem], options: Gsm8kOptions) -> list[str]:
    if options.protocol == "template":
        prompt_format = run.prompt_format(options.template, options.system)
        return [prompt_format.render(problem.question, run.model.tokenizer) for problem in problems]
    prompt = _METAMATH_PROMPT if options.protocol == "metamath" else _AUTHORS_PROMPT
    return [prompt.replace("{question}", problem.question) for problem in problems]


def is_right(text: str, answer: int, *, protocol: str, marker: str = MARKER) -> bool:
    """Returns True if a continuation of the prompt gives the answer under the protocol."""
    if protocol == "authors":
        _, there, rest = text.partition(marker)
        return bool(there) and _as_text(rest) == str(answer)
    _, there, rest = text.rpartition(marker)
    pattern = _NUMBER if protocol == "metamath" else _NUMBER_WITH_COMMAS
    return bool(there) and _rounded(rest, pattern) == answer


def _rounded(text: str, pattern: re.Pattern[str]) -> int | None:
    """Returns the first number of the text, rounded to a whole number; None if there is none."""
    match = pattern.search(text)
    if match is None:
        return None
    numerator, slash, denominator = match[0].replace(",", "").partition("/")
    if slash and (not numerator.strip("+-") or not denominator):
        return None
    # MetaMath's code reads a fraction over zero as its numerator.
    value = Fraction(numerator) / (Fraction(denominator or 1) or 1)
    return round(value)


def _as_text(rest: str) -> str:
    """Normalises an answer for comparison as text, by those of MATH's rules that can yield a whole number."""
    text = rest.partition("#")[0].partition("\n")[0]
    text = text.strip().strip(".").strip().strip(".").strip()
    for removed in ("\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%"):
        text = text.replace(removed, "")
    if text.count("\\text{ ") == 1:
        text = text.partition("\\text{ ")[0]
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    return text.replace(" ", "")


GSM8K = Evaluation(Gsm8kOptions, evaluate)
