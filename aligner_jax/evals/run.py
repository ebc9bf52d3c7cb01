"""Runs evaluations. `EVALUATIONS` maps names in configs to evaluations."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.answers import ANSWERS
from aligner_jax.evals.gsm8k import GSM8K
from aligner_jax.evals.harness import HARNESS
from aligner_jax.evals.interface import EvaluateConfig, Evaluation, Outcome, Run, parse_options
from aligner_jax.evals.mmlu_generated import MMLU_GENERATED
from aligner_jax.evals.pairwise import PAIRWISE
from aligner_jax.evals.safety import SAFETY
from aligner_jax.evals.subject import Subject, load_subject
from aligner_jax.evals.vicuna import VICUNA
from aligner_jax.files.content import exists
from aligner_jax.files.fields import read_fields
from aligner_jax.runtime import sharding
from aligner_jax.runtime.fields import did_you_mean
from aligner_jax.runtime.files import reason, write_atomically
from aligner_jax.runtime.waiting import Waiting, hidden
from aligner_jax.weights.base import Base, unused_model

RESULTS = "results.json"
_PATHS = ("path", "mmlu", "gsm8k", "include")
"""Names of options that are paths of files or folders."""
_SOURCES = {
    "mmlu": "; its authors publish the files as data.tar (github.com/hendrycks/test): unpack it and give the folder, "
    "or a zip of it",
    "gsm8k": "; its authors publish the files at github.com/openai/grade-school-math",
}
"""Ends of messages about a missing path, which say where its files are published, by the option's name."""

EVALUATIONS: dict[str, Evaluation] = {
    "answers": ANSWERS,
    "gsm8k": GSM8K,
    "harness": HARNESS,
    "mmlu_generated": MMLU_GENERATED,
    "pairwise": PAIRWISE,
    "safety": SAFETY,
    "vicuna": VICUNA,
}


def find_evaluation(name: str) -> Evaluation:
    """Returns the evaluation of that name. Raises InputError if there is none."""
    if name not in EVALUATIONS:
        raise InputError(
            f"config.evaluation.name is {name!r}, which is no evaluation; {did_you_mean(name, EVALUATIONS)}"
        )
    return EVALUATIONS[name]


def evaluate(
    config: EvaluateConfig, adapter_path: str | None, folder: Path, console: Console, *, base: Base | None = None
) -> Outcome:
    """Runs an evaluation, writes results.json to the folder, and prints its table.

    Args:
      config: config of the evaluation.
      adapter_path: adapter file or folder; None evaluates the base alone.
      folder: folder of the results, which is created if it does not exist.
      console: console for the table and for progress lines.
      base: the base, if it is loaded already, in place of that of the config.

    Raises:
      InputError: the config, the base, the adapter, the data or the folder cannot be used, or the folder has the
        results of another evaluation.
    """
    if jax.process_count() > 1:
        raise InputError("an evaluation runs on the devices of one host, and this one was started on several")
    evaluation = find_evaluation(config.evaluation.name)
    options = parse_options(evaluation, config)
    if adapter_path is not None and not evaluation.has_model:
        raise InputError(
            f"--adapter is given, but the evaluation {config.evaluation.name!r} runs no model; the adapter of a judge "
            "is config.evaluation.judge.adapter"
        )
    _check_paths(options)
    _check_results(folder / RESULTS, config.evaluation.name)
    mesh, rules = sharding.mesh_of(config.mesh), sharding.rules_of(config.mesh)
    with sharding.use(mesh, rules):
        subject = None
        if evaluation.has_model and config.base is not None:
            with hidden() if console.quiet else Waiting(f"loading {config.base.path}", lines=False):
                subject = load_subject(
                    config.base, adapter_path, mesh=mesh, rules=rules, batch_size=config.batch_size, base=base
                )
            console.out(f"base: {config.base.path}; adapter: {subject.adapter or 'none'}")
            if sentence := unused_model(config.base, subject.base.config):
                console.out(f"base: {sentence}")
        made_from = _made_from(config, options, subject)
        _make(folder)
        outcome = evaluation.run(Run(config, subject, folder, console, made_from), options)
    results = {"evaluation": config.evaluation.name, "made_from": made_from, "scores": outcome.scores}
    path = folder / RESULTS
    # Written before the table is printed, since printing fails if the reader of a pipe (`| head`) is gone.
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    console.print(outcome.table)
    console.out(f"written: {path}")
    return outcome


def _check_paths(options: Any) -> None:
    """Refuses missing data before a model is loaded."""
    for name in _PATHS:
        path = getattr(options, name, None)
        if path is not None and not exists(path):
            where = _SOURCES.get(name, "")
            raise InputError(f"config.evaluation.{name} is {path}, which does not exist{where}")


def _check_results(path: Path, name: str) -> None:
    """Refuses a folder with results of another evaluation, which would be overwritten."""
    if not exists(path):
        return
    try:
        was = read_fields(path).text("evaluation")
    except InputError as error:
        raise InputError(f"{path} is not what an evaluation writes; give another folder (--out=DIR)") from error
    if was != name:
        raise InputError(f"{path} is of the evaluation {was!r}, not of {name!r}; give another folder (--out=DIR)")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be made: {reason(error)}") from error


def _made_from(config: EvaluateConfig, options: Any, subject: Subject | None) -> dict[str, Any]:
    chosen = {f"config.evaluation.{name}": value for name, value in dataclasses.asdict(options).items()}
    made_from = {"config.evaluation.name": config.evaluation.name, **chosen}
    made_from |= {"config.limit": config.limit, "config.seed": config.seed}
    if subject is not None:
        # The last bits of a row's result depend on the other rows of its batch.
        made_from |= {"config.batch_size": config.batch_size, **subject.made_from()}
    return made_from
