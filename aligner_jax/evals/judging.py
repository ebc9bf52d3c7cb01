"""Judges of responses: the options that evaluations share, and the function that asks the judge they choose."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.evals.interface import Run
from aligner_jax.evals.judge_base import BaseJudgeConfig, ask_base
from aligner_jax.evals.judge_endpoint import EndpointConfig, JudgeUsage, ask_endpoint
from aligner_jax.evals.judge_prompts import Ask
from aligner_jax.evals.subject import subject_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of evaluations with a judge.

    Attributes:
      by: "endpoint" asks a judge behind an endpoint, "base" one that runs in this process; "scores" reads a field of
        the responses' records.
      endpoint: the judge and its endpoint, for "endpoint".
      judge: the judge, for "base".
      prompt_file: file of judge prompts in FastChat's format; None means the package's own prompt.
      prompt_name: name of the prompt in that file.
    """

    by: Literal["endpoint", "base", "scores"] = "endpoint"
    endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)
    judge: BaseJudgeConfig = dataclasses.field(default_factory=BaseJudgeConfig)
    prompt_file: str | None = None
    prompt_name: str | None = None

    @property
    def judge_name(self) -> str:
        """Name of the judge; not for "scores"."""
        if self.by == "endpoint" or self.judge.base is None:
            return str(self.endpoint.model)
        base = Path(self.judge.base.path).name
        return base if self.judge.adapter is None else f"{base} with {subject_name(self.judge.adapter)}"


class Judged(NamedTuple):
    """Answers of a judge.

    Attributes:
      answers: the answers, in the order of the requests.
      spent: tokens and cost; None without an endpoint.
      made_from: fingerprint, dtype and quantization of the judge's base, and digest of its adapter; None for an
        endpoint, which does not tell them.
    """

    answers: list[str]
    spent: JudgeUsage | None
    made_from: dict[str, str] | None


def check_judge(options: JudgeOptions) -> None:
    """Refuses a base for "endpoint", no base for "base", and the adapter of a judge without its base.

    Options of the judges that are not chosen are otherwise ignored.

    Raises:
      InputError: the options are among these.
    """
    if options.by == "endpoint" and options.judge.base is not None:
        raise InputError(
            "config.evaluation.judge.base is set, but config.evaluation.by is 'endpoint'; set it to 'base' to ask "
            "that base, or config.evaluation.judge.base=None to ask the endpoint"
        )
    if options.by == "base" and options.judge.base is None:
        raise InputError("config.evaluation.judge.base.path is not set; it says which base judges")
    if options.judge.adapter is not None and options.judge.base is None:
        raise InputError(
            "config.evaluation.judge.adapter is set, but no base for it; set config.evaluation.by to 'base' and "
            "config.evaluation.judge.base.path to that base, or config.evaluation.judge.adapter=None"
        )


def ask_all(asks: Sequence[Ask], options: JudgeOptions, run: Run) -> Judged:
    """Asks the judge that the options choose.

    Answers are kept in the subfolder `judge` of the run's folder.

    Raises:
      InputError: see `ask_base` and `ask_endpoint`.
    """
    if options.by == "base":
        answers, made_from = ask_base(asks, options.judge, run)
        return Judged(answers, None, made_from)
    answers, usage = ask_endpoint(asks, options.endpoint, run.folder / "judge", run.console)
    return Judged([answer.text for answer in answers], usage, None)
