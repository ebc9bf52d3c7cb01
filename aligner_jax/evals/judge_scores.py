"""Judging by scores that a reward model gave each response: the higher is preferred."""

import dataclasses

from aligner_jax.evals.response_files import Response
from aligner_jax.evals.win_rate import Outcome
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """Which scores decide.

    Attributes:
      field: the column.
      margin: scores no farther apart than this are a tie.
    """

    field: str = "score"
    margin: float = number(0.0, least=0)


def by_scores(first: Response, second: Response, config: ScoresConfig) -> Outcome:
    """What becomes of a question, for `first`. Scores do not depend on an order, so one verdict is enough.

    Raises:
      InputError: the field is missing, or holds no number; names file and line.
    """
    difference = first.number(config.field) - second.number(config.field)
    if abs(difference) <= config.margin:
        return "tie"
    return "win" if difference > 0 else "loss"
