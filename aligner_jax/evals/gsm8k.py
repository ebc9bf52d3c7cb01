"""GSM8K without examples, generated: the number after "The answer is: " must be the right one.

Three protocols:

- "metamath" is that of MetaMath's repository, whose data the paper trains on: Alpaca's prompt that ends in "Let's think
  step by step.", greedy decoding of at most 512 tokens that ends at words of another turn, the first number after the
  last marker, of which fractions and decimals are rounded to whole numbers.
- "authors" is that of the Aligner authors' repository: the prompt is "[|User|] … [|AI Assistant|] ", decoding samples
  at temperature 0.4 among the 200 most probable tokens, 200 of them at most, and the answer is what follows the first
  marker up to "#" or the line's end, which must equal the right number as text once full stops, spaces and LaTeX's
  dollar and per cent signs are gone (so "1,000" is not 1000).
- "template" asks as the adapter's training data did, decodes greedily, at most 256 tokens, and reads numbers as
  "metamath" does, commas in them included. With the marker "#### " it is for adapters trained on GSM8K's own answers.
"""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.records import read_records
from aligner_jax.data.sources.values import check_text
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.runtime.fields import number

MARKER = "The answer is: "
_METAMATH_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
_METAMATH_STOPS = ("Question", "USER", "ASSISTANT", "Instruction", "Response")
_AUTHORS_PROMPT = "[|User|] {question} [|AI Assistant|] "
# MetaMath's: of a number with two commas it reads the part before the second.
_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_NUMBER_WITH_COMMAS = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*[.,/]?\d+)")


class Decoding(NamedTuple):
    """How a protocol decodes."""

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
    """Where the problems are and how they are asked.

    Attributes:
      path: GSM8K's test.jsonl (question, answer) or MetaMath's copy of it (query, response).
      marker: what the answer's number follows.
      template, system: of the protocol "template", see `PromptFormat.resolve`.
      max_new_tokens: None: the protocol's.
    """

    path: str
    protocol: Literal["metamath", "authors", "template"] = "metamath"
    marker: str = MARKER
    template: TemplateName = "auto"
    system: str | None = None
    max_new_tokens: int | None = number(None, least=1)


class Problem(NamedTuple):
    """A question and the whole number that answers it."""

    question: str
    answer: int


def read_problems(path: str) -> list[Problem]:
    """The problems of a file.

    Raises:
      InputError: the file cannot be read, or a record is no problem; names file and line.
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
    """How many problems are solved, the 95 % interval of their share, and how many answers have the marker at all."""
    if not options.marker.strip():
        raise InputError("config.evaluation.marker is empty, but the answer's number must follow something")
    problems = read_problems(options.path)[: run.config.limit]
    subject, decoding = run.model, DECODINGS[options.protocol]
    new = options.max_new_tokens or decoding.max_new_tokens
    prompts = [
        Prompt(encoded(subject, text), new, decoding.sampling, decoding.until, i)
        for i, text in enumerate(_asked(run, problems, options))
    ]
    kept = run.kept("generated", without=("marker",))
    texts = generate(subject, prompts, kept, run.console, seed=run.config.seed)
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
    table = Table(title=f"GSM8K, no examples, protocol {options.protocol!r}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("solved", f"{scores['solved']:,} of {scores['problems']:,}")
    table.add_row("accuracy", f"{scores['accuracy']:.4f}")
    table.add_row("its 95 % interval", "{:.4f} to {:.4f}".format(*scores["accuracy_interval"]))
    table.add_row(escape(f"answers with {options.marker.strip()!r}"), f"{scores['answers_with_the_marker']:.1%}")
    return Outcome(scores, table)


def _asked(run: Run, problems: Sequence[Problem], options: Gsm8kOptions) -> list[str]:
    if options.protocol == "template":
        prompt_format = run.prompt_format(options.template, options.system)
        return [prompt_format.render(problem.question, run.model.tokenizer) for problem in problems]
    prompt = _METAMATH_PROMPT if options.protocol == "metamath" else _AUTHORS_PROMPT
    return [prompt.replace("{question}", problem.question) for problem in problems]


def is_right(text: str, answer: int, *, protocol: str, marker: str = MARKER) -> bool:
    """Whether a continuation of the prompt gives the answer, as the protocol reads it."""
    if protocol == "authors":
        _, there, rest = text.partition(marker)
        return bool(there) and _as_text(rest) == str(answer)
    _, there, rest = text.rpartition(marker)
    pattern = _NUMBER if protocol == "metamath" else _NUMBER_WITH_COMMAS
    return bool(there) and _rounded(rest, pattern) == answer


def _rounded(text: str, pattern: re.Pattern[str]) -> int | None:
    """The first number of the text, to the nearest whole one; None where there is none."""
    match = pattern.search(text)
    if match is None:
        return None
    numerator, slash, denominator = match[0].replace(",", "").partition("/")
    if slash and (not numerator.strip("+-") or not denominator):
        return None
    # A fraction over zero counts as its numerator there.
    value = Fraction(numerator) / (Fraction(denominator or 1) or 1)
    return round(value)


def _as_text(rest: str) -> str:
    """What is left of an answer to compare as text: MATH's normalisation, as far as it can leave a whole number."""
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
