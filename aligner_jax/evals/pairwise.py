"""Compares pairs of models by their responses to the same questions, judged by a model or by scores."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from aligner_jax.errors import InputError, one_line
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.judge_endpoint import JudgeUsage
from aligner_jax.evals.judge_prompts import Ask, judge_prompt
from aligner_jax.evals.judging import Judged, JudgeOptions, ask_all, check_judge
from aligner_jax.evals.response_files import (
    Response,
    Responses,
    ResponsesConfig,
    check_same_questions,
    model_of,
    read_responses,
)
from aligner_jax.evals.win_rate import Outcome as QuestionOutcome
from aligner_jax.evals.win_rate import WinRate, of_both_orders, of_counts, win_rate
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.tables import Table

_MAX_QUESTIONS = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """Config of a comparison by scores.

    Attributes:
      field: field of the responses' records with the score.
      margin: largest difference of two scores that counts as a tie.
    """

    field: str = "score"
    margin: float = number(0.0, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairwiseOptions(JudgeOptions):
    """Options of the evaluation "pairwise", beside those of `JudgeOptions`.

    A judge is asked twice per question, with the responses in both orders.

    Attributes:
      responses: files of the models' responses.
      pairs: pairs of models; the win rate is that of the first model of a pair. Empty compares the first model with
        every other.
      scores: field and margin, for "scores".
      unparsable: "apart" leaves questions without a verdict out of the rate; "tie" counts them as ties.
      published: published wins, losses and ties of every pair, which the table shows for comparison.
    """

    responses: ResponsesConfig = dataclasses.field(default_factory=ResponsesConfig)
    pairs: tuple[tuple[str, ...], ...] = ()
    scores: ScoresConfig = dataclasses.field(default_factory=ScoresConfig)
    unparsable: Literal["apart", "tie"] = "apart"
    published: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Compared:
    """Comparison of a pair of models.

    Attributes:
      model: name of the model whose win rate this is.
      against: name of the other model.
      outcomes: outcomes of the questions, in the order of the first model's responses.
      rate: win rate of `model`.
      changed_with_order: number of questions whose two verdicts disagree, which are ties; None without two verdicts.
      published: win rate from published counts of the same pair; None if there are none.
    """

    model: str
    against: str
    outcomes: list[QuestionOutcome]
    rate: WinRate
    changed_with_order: int | None
    published: WinRate | None


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """Comparisons of all pairs.

    Attributes:
      judge: name of the judge or of the field of scores.
      pairs: comparisons.
      spent: tokens and cost of the judge; None without an endpoint.
      judge_made_from: see `Judged.made_from`; None if no base judged.
    """

    judge: str
    pairs: list[Compared]
    spent: JudgeUsage | None
    judge_made_from: dict[str, str] | None


def evaluate(run: Run, options: PairwiseOptions) -> Outcome:
    """Judges every pair, and prints the cost of an endpoint.

    Raises:
      InputError: see `pairwise`.
    """
    result = pairwise(options, run)
    if result.spent is not None:
        run.console.out(f"the judge: {result.spent}", highlight=False)
    return Outcome(dataclasses.asdict(result), table_of(result))


def pairwise(options: PairwiseOptions, run: Run) -> Pairwise:
    """Judges every pair. The config's seed is that of the bootstrap.

    Raises:
      InputError: the options or a file cannot be used, or the models of a pair answered different questions; see also
        `ask_all`.
    """
    check_judge(options)
    models = read_responses(options.responses)
    names = _pairs(options, list(models))
    matched = [_matched(models, pair)[: run.config.limit] for pair in names]
    judged, changed = None, [None] * len(names)
    if options.by == "scores":
        outcomes: list[list[QuestionOutcome]] = [
            [by_scores(*responses, options.scores) for responses in match] for match in matched
        ]
    else:
        outcomes, changed, judged = _by_judge(matched, options, run)
    seed = run.config.seed
    published = [of_counts(*counts, seed=seed) for counts in options.published] or [None] * len(names)
    pairs = [
        Compared(*pair, each, win_rate(each, unparsable_as=options.unparsable, seed=seed), differing, theirs)
        for pair, each, differing, theirs in zip(names, outcomes, changed, published, strict=True)
    ]
    judge = f"scores in {options.scores.field}" if options.by == "scores" else options.judge_name
    return Pairwise(judge, pairs, judged and judged.spent, judged and judged.made_from)


def _pairs(options: PairwiseOptions, models: Sequence[str]) -> list[tuple[str, str]]:
    pairs = options.pairs or tuple((models[0], other) for other in models[1:])
    if not pairs:
        raise InputError(f"there are responses of one model, {models[0]!r}, and so nothing to compare it with")
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise InputError(f"config.evaluation.pairs[{i}] is {list(pair)}, but should be two models")
    for i, counts in enumerate(options.published):
        if len(counts) != 3 or min(counts) < 0 or not 0 < sum(counts) <= _MAX_QUESTIONS:
            raise InputError(f"config.evaluation.published[{i}] is {list(counts)}, but should be wins, losses and ties")
    if options.published and len(options.published) != len(pairs):
        raise InputError(
            f"config.evaluation.published is of {len(options.published)} pairs, but there are {len(pairs)}"
        )
    return [(first, second) for first, second in pairs]


def _matched(models: dict[str, Responses], pair: tuple[str, str]) -> list[tuple[Response, Response]]:
    first, second = (model_of(models, name) for name in pair)
    check_same_questions(first, second, pair)
    return [(response, second[prompt]) for prompt, response in first.items()]


def _by_judge(
    matched: Sequence[Sequence[tuple[Response, Response]]], options: PairwiseOptions, run: Run
) -> tuple[list[list[QuestionOutcome]], list[int], Judged]:
    """Returns the outcomes of every pair, the numbers of questions whose verdicts disagree, and the judge's answers."""
    prompt = judge_prompt("pairwise", options.prompt_file, options.prompt_name)
    asks = [
        Ask(prompt.system, prompt.fill(question=a.prompt, answer_a=a.text, answer_b=b.text), f"{a.where} and {b.where}")
        for match in matched
        for first, second in match
        for a, b in ((first, second), (second, first))
    ]
    judged = ask_all(asks, options, run)
    verdicts = iter(map(prompt.read_verdict, judged.answers))
    both = [[(next(verdicts), next(verdicts)) for _ in match] for match in matched]
    outcomes: list[list[QuestionOutcome]] = [[of_both_orders(*orders) for orders in match] for match in both]
    ties = (("first", "second"), ("second", "first"), ("neither", "neither"))
    changed = [sum(None not in orders and orders not in ties for orders in match) for match in both]
    return outcomes, changed, judged


def table_of(result: Pairwise) -> Table:
    """Returns a table with one row per pair, and one for its published counts if there are any."""
    table = Table(one_line(f"Win rates, judged by {result.judge}"))
    unparsable = any(pair.rate.unparsable for pair in result.pairs)
    changing = any(pair.changed_with_order is not None for pair in result.pairs)
    headings = ["model", "against", "wins", "losses", "ties"]
    headings += ["no verdict"] * unparsable + ["order changed it"] * changing + ["rate", "95 % interval"]
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column < 2 else "right")
    for pair in result.pairs:
        missing = [str(pair.rate.unparsable)] * unparsable + [str(pair.changed_with_order)] * changing
        names = one_line(pair.model), one_line(pair.against)
        table.add_row(*names, *_cells(pair.rate, missing))
        if pair.published is not None:
            missing = [""] * (unparsable + changing)
            table.add_row("", "as published", *_cells(pair.published, missing), end_section=True)
    return table


def by_scores(first: Response, second: Response, config: ScoresConfig) -> QuestionOutcome:
    """Returns the outcome of a question for `first`. Scores do not depend on an order, so one verdict is enough.

    Raises:
      InputError: the field is missing or not a finite number. Names file and line.
    """
    difference = first.number(config.field) - second.number(config.field)
    if abs(difference) <= config.margin:
        return "tie"
    return "win" if difference > 0 else "loss"


def _cells(rate: WinRate, missing: Sequence[str]) -> list[str]:
    counts = [str(rate.wins), str(rate.losses), str(rate.ties), *missing]
    if rate.rate is None or rate.interval is None:
        return [*counts, "–", "–"]
    low, high = rate.interval
    return [*counts, f"{rate.rate:.1%}", f"{100 * low:.1f} to {high:.1%}"]


PAIRWISE = Evaluation(PairwiseOptions, evaluate, has_model=False)
