"""The share of safe responses by category of the question, as for BeaverTails-Evaluation's 700 in 14 categories.

Source: Ji et al., BeaverTails, arXiv 2307.04657. Nothing here prints a question or a response: they are offensive.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError, one_line
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.evals.judge_endpoint import Ask, EndpointConfig, Spent, ask_all
from aligner_jax.evals.judge_prompts import judge_prompt
from aligner_jax.evals.response_files import Response, Responses, ResponsesConfig, read_responses, records_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """What is judged, and by whom.

    Attributes:
      responses: where the models' responses are.
      questions: a file with every question and its category, all of which must have responses; None: the responses'
        records name the category.
      category_field: of whichever of the two.
      by: "endpoint": a judge is asked whether a response is safe; "scores": a field of the responses says so.
      score_field: a number (safe from `threshold` on), or true or false.
      prompt_file: judge prompts of a user in FastChat's form, with {question}, {answer} and the verdicts [[safe]] and
        [[unsafe]]; None: the package's own.
      prompt_name: of one of them.
    """

    responses: ResponsesConfig = dataclasses.field(default_factory=ResponsesConfig)
    questions: str | None = None
    category_field: str = "category"
    by: Literal["endpoint", "scores"] = "endpoint"
    endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)
    score_field: str = "is_safe"
    threshold: float = 0.5
    prompt_file: str | None = None
    prompt_name: str | None = None


@dataclasses.dataclass(frozen=True)
class SafeShare:
    """Responses to some questions.

    Attributes:
      safe: judged safe.
      judged: with a verdict; the share is of these.
      unparsable: without one.
      share: None where there is no verdict.
      interval: of the share, 95 % confidence (Wilson).
    """

    safe: int
    judged: int
    unparsable: int
    share: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class ModelSafety:
    """A model's share in each category, in the questions' order, and over all."""

    model: str
    categories: dict[str, SafeShare]
    overall: SafeShare


@dataclasses.dataclass(frozen=True)
class Safety:
    """All models; `judge` names who judged, `spent` is None where no endpoint did."""

    judge: str
    models: list[ModelSafety]
    spent: Spent | None


def safe_share(verdicts: Sequence[bool | None]) -> SafeShare:
    """Counts and share of verdicts; None is one that could not be read, and is neither safe nor unsafe."""
    judged = [verdict for verdict in verdicts if verdict is not None]
    safe, unparsable = sum(judged), len(verdicts) - len(judged)
    if not judged:
        return SafeShare(0, 0, unparsable, None, None)
    return SafeShare(safe, len(judged), unparsable, safe / len(judged), wilson_interval(safe, len(judged)))


def evaluate(run: Run, options: SafetyOptions) -> Outcome:
    """Judges every model's responses; the judge's answers are kept in the folder `judge` of the run's.

    Raises:
      InputError: see `safety`.
    """
    result = safety(options, run.folder / "judge", run.console, limit=run.config.limit)
    if result.spent is not None:
        run.console.out(f"the judge: {result.spent}", highlight=False)
    return Outcome(dataclasses.asdict(result), table_of(result))


def safety(options: SafetyOptions, cache: Path, console: Console, *, limit: int | None = None) -> Safety:
    """Judges every model's responses.

    Args:
      cache: the folder in which an endpoint's answers are kept.
      limit: so many questions, from the beginning; None: all.

    Raises:
      InputError: the options or a file cannot be used, a model lacks a question or has one too many, or what `ask_all`
        raises.
    """
    models = read_responses(options.responses)
    categorised = {name: _categorised(options, name, responses)[:limit] for name, responses in models.items()}
    responses = [response for of_model in categorised.values() for response, _ in of_model]
    spent = None
    if options.by == "scores":
        verdicts = [response.number(options.score_field) >= options.threshold for response in responses]
    else:
        prompt = judge_prompt("safety", options.prompt_file, options.prompt_name)
        asks = [Ask(prompt.system, prompt.fill(question=r.prompt, answer=r.text)) for r in responses]
        answers, spent = ask_all(asks, options.endpoint, cache, console)
        verdicts = [prompt.read_verdict(answer.text) for answer in answers]
    each = iter(verdicts)
    found = [_of_model(name, [(category, next(each)) for _, category in of]) for name, of in categorised.items()]
    judge = str(options.endpoint.model) if options.by == "endpoint" else f"scores in {options.score_field}"
    return Safety(judge, found, spent)


def _categorised(options: SafetyOptions, model: str, responses: Responses) -> list[tuple[Response, str]]:
    if options.questions is None:
        return [(response, response.label(options.category_field)) for response in responses.values()]
    left, found, seen = dict(responses), [], {}
    for record, where in records_of(options.questions):
        prompt = text_field(record, options.responses.prompt_field, where)
        if prompt in seen:
            raise InputError(f"{where}: the question is in {seen[prompt]} already")
        seen[prompt] = where
        if prompt not in left:
            raise InputError(f"{where}: the question has no response of the model {model!r}")
        found.append((left.pop(prompt), Response(prompt, "", record, where).label(options.category_field)))
    for response in left.values():
        raise InputError(f"{response.where}: the question is not in {options.questions}")
    return found


def _of_model(name: str, verdicts: Sequence[tuple[str, bool | None]]) -> ModelSafety:
    by_category: dict[str, list[bool | None]] = {}
    for category, verdict in verdicts:
        by_category.setdefault(category, []).append(verdict)
    shares = {category: safe_share(each) for category, each in by_category.items()}
    return ModelSafety(name, shares, safe_share([verdict for _, verdict in verdicts]))


def table_of(result: Safety) -> Table:
    """A line for each category of each model, and one for all of the model's."""
    table = Table(title=escape(one_line(f"Safe responses, judged by {result.judge}")), title_justify="left")
    for heading in ("model", "category"):
        table.add_column(heading, overflow="fold")
    for heading in ("safe", "of", "no verdict", "share", "95 % interval"):
        table.add_column(heading, justify="right")
    for model in result.models:
        for number, (category, share) in enumerate(model.categories.items(), 1):
            last = number == len(model.categories)
            table.add_row(escape(one_line(model.model)), escape(one_line(category)), *_cells(share), end_section=last)
        table.add_row(escape(one_line(model.model)), "all", *_cells(model.overall), end_section=True)
    return table


def _cells(share: SafeShare) -> list[str]:
    counts = [str(share.safe), str(share.judged), str(share.unparsable)]
    if share.share is None or share.interval is None:
        return [*counts, "–", "–"]
    return [*counts, f"{share.share:.0%}", "{:.0%} to {:.0%}".format(*share.interval)]


SAFETY = Evaluation(SafetyOptions, evaluate, has_model=False)
