"""Evaluate a base, with an adapter or without one.

python -m aligner_jax.evaluate --config=configs/eval/quick.py --adapter=runs/quickstart/adapter.safetensors [--out=DIR]

The folder (runs/eval/CONFIG/ADAPTER by default) gets what is finished as it is finished, and results.json at the end.
The same command goes on where a run was ended.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.evaluation import EvaluateConfig, Outcome, Run, parse_evaluate_config, parse_options
from aligner_jax.evals.evaluations import find_evaluation
from aligner_jax.evals.subject import Subject, load_subject, subject_name
from aligner_jax.runtime import command, distributed, sharding
from aligner_jax.runtime.files import reason, write_atomically
from aligner_jax.tasks.program import check_model

CONFIG = command.config_flag()
ADAPTER = flags.DEFINE_string(
    "adapter", None, "An adapter: a .safetensors, a .pth or a PEFT folder; without one, the base alone is evaluated."
)
OUT = flags.DEFINE_string("out", None, "Folder of the results; default runs/eval/CONFIG/ADAPTER.")

RESULTS = "results.json"


def main() -> None:
    config = parse_evaluate_config(CONFIG.value)
    folder = Path(OUT.value or f"runs/eval/{CONFIG.name}/{subject_name(ADAPTER.value)}")
    evaluate(config, ADAPTER.value, folder, distributed.console())


def evaluate(config: EvaluateConfig, adapter_path: str | None, folder: Path, console: Console) -> Outcome:
    """The whole evaluation: prints its table, and writes results.json into the folder.

    Raises:
      InputError: the config, the base, the adapter, the data or the folder cannot be used.
    """
    if jax.process_count() > 1:
        raise InputError("an evaluation runs on the devices of one host, and this one was started on several")
    evaluation = find_evaluation(config.evaluation.name)
    options = parse_options(evaluation, config)
    mesh, rules = sharding.mesh_of(config.mesh), sharding.rules_of(config.mesh)
    with sharding.use(mesh, rules):
        subject = None
        if evaluation.has_model and config.base is not None:
            subject = load_subject(config.base, adapter_path, mesh=mesh, rules=rules, batch_size=config.batch_size)
            check_model(config.base, subject.base.config)
            console.out(f"base: {config.base.path}; adapter: {subject.adapter or 'none'}")
        made_from = _made_from(config, options, subject)
        _make(folder)
        outcome = evaluation.run(Run(config, subject, folder, console, made_from), options)
    console.print(outcome.table)
    results = {"evaluation": config.evaluation.name, "made_from": made_from, "scores": outcome.scores}
    path = folder / RESULTS
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    console.out(f"written: {path}")
    return outcome


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {reason(error)}") from error


def _made_from(config: EvaluateConfig, options: Any, subject: Subject | None) -> dict[str, Any]:
    chosen = {f"config.evaluation.{name}": value for name, value in dataclasses.asdict(options).items()}
    made_from = {"config.evaluation.name": config.evaluation.name, **chosen}
    made_from |= {"config.limit": config.limit, "config.seed": config.seed}
    if subject is not None:
        # What a row's neighbours are is seen in its last bits.
        made_from |= {"config.batch_size": config.batch_size, **subject.made_from()}
    return made_from


if __name__ == "__main__":
    command.run(main)
