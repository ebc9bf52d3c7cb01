"""Runs tasks of lm-evaluation-harness: its own, those of a user's folder, and MMLU and GSM8K from local files."""

import contextlib
import dataclasses
import fnmatch
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.evals.harness_model import harness_model, import_lm_eval
from aligner_jax.evals.harness_tasks import write_gsm8k, write_mmlu
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.task_files import damaged_files
from aligner_jax.files.content import is_folder
from aligner_jax.runtime.fields import did_you_mean, number
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.tables import Table

DOCUMENTS = "documents.jsonl"
_PACKAGE = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Options of the evaluation "harness".

    Attributes:
      tasks: names of tasks, groups or tags; `*` matches any characters. Names that no local folder has are the
        harness's own tasks, whose data come from a hub.
      include: folder of task files (YAML); see the harness's task guide. Paths of data in them are relative to the
        working directory.
      mmlu: MMLU's zip or folder, for the group mmlu and the tasks mmlu_SUBJECT.
      gsm8k: folder of GSM8K's train.jsonl and test.jsonl, for the task gsm8k.
      num_fewshot: few-shot examples per prompt; None means the tasks' own.
      chat_template: applies the tokenizer's chat template to the prompts.
      bootstrap_iters: bootstrap resamples, for the standard errors of metrics without a formula; 0 means no standard
        errors.
    """

    tasks: tuple[str, ...]
    include: str | None = None
    mmlu: str | None = None
    gsm8k: str | None = None
    num_fewshot: int | None = number(None, least=0)
    chat_template: bool = False
    bootstrap_iters: int = number(1000, least=0)


def evaluate(run: Run, options: HarnessOptions) -> Outcome:
    """Runs the tasks and returns their metrics.

    The file documents.jsonl has one line per document, with its task, index, filter, target, responses and metrics.

    Raises:
      InputError: a task is unknown, cannot be loaded, or asks for something that the model does not support.
    """
    import_lm_eval()
    from datasets import disable_progress_bars
    from lm_eval.evaluator import simple_evaluate

    disable_progress_bars()
    # Its warnings tell of defaults, which results.json has. Errors of tasks are raised as exceptions.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, tasks = load_tasks(options, run.folder / "tasks")
    model = harness_model(run.model, run.result_store("requests"), run.console, seed=run.config.seed)
    with _mistakes_as_sentences(f"the tasks {', '.join(options.tasks)} cannot be run"):
        found: Any = simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, num_fewshot=options.num_fewshot, limit=run.config.limit,
            apply_chat_template=options.chat_template, bootstrap_iters=options.bootstrap_iters,
        )  # fmt: skip
    write_atomically(run.folder / DOCUMENTS, "".join(_documents(found["samples"])))
    scores = {
        "lm_eval_version": found["lm_eval_version"],
        "tasks": {name: _scores(metrics) for name, metrics in sorted(found["results"].items())},
        "documents": {name: counts["effective"] for name, counts in sorted(found["n-samples"].items())},
        "num_fewshot": {name: count for name, count in sorted(found["n-shot"].items()) if name in found["n-samples"]},
        "versions": dict(sorted(found["versions"].items())),
    }
    return Outcome(scores, table_of(scores))


def load_tasks(options: HarnessOptions, folder: Path) -> tuple[Any, list[Any]]:
    """Loads the tasks of the options with their data.

    Args:
      folder: folder to which the task files of MMLU and GSM8K are written.

    Returns:
      An `lm_eval.tasks.TaskManager` that knows the tasks, and the loaded tasks and groups for
      `lm_eval.simple_evaluate`.

    Raises:
      InputError: a task is unknown or cannot be loaded, or files cannot be read or written.
    """
    from lm_eval.tasks import TaskManager

    if not options.tasks:
        raise InputError("config.evaluation.tasks names no task")
    if options.mmlu is not None:
        write_mmlu(options.mmlu, folder)
    if options.gsm8k is not None:
        write_gsm8k(options.gsm8k, folder)
    folders: list[str | Path] = [folder] if folder.is_dir() else []
    damaged: list[str] = []
    if options.include is not None:
        if not is_folder(options.include):
            raise InputError(f"config.evaluation.include is {options.include}, which is no folder")
        damaged = damaged_files(options.include)
        folders.append(options.include)
    with _mistakes_as_sentences("the task files cannot be read"):
        # The harness's own files are thousands and slow to read, and few of their tasks run without a hub. So they are
        # read only if a name needs them.
        manager = TaskManager(include_path=folders, include_defaults=False)
        if not all(fnmatch.filter(manager.all_tasks, name) for name in options.tasks):
            manager = TaskManager(include_path=folders)
    names: dict[str, None] = {}
    for name in options.tasks:
        matches = fnmatch.filter(manager.all_tasks, name)
        if not matches:
            hint = damaged[0] if damaged else _hint(name, manager)
            raise InputError(f"config.evaluation.tasks has {name!r}, which is no task; {hint}")
        names |= dict.fromkeys(matches)
    with _mistakes_as_sentences(f"the tasks {', '.join(options.tasks)} cannot be loaded"):
        loaded = manager.load(_without_members(list(names), manager))
    within = {child for children in loaded.get("group_map", {}).values() for child in children}
    everything = {**loaded.get("groups", {}), **loaded["tasks"]}
    return manager, [each for name, each in everything.items() if name not in within]


@contextlib.contextmanager
def _mistakes_as_sentences(what: str) -> Iterator[None]:
    """Turns any error of a task's file or data, from any library, into an `InputError` of one sentence.

    Errors of this project's own code are not the task's mistake and keep their tracebacks.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if any(Path(file).is_relative_to(_PACKAGE) and file != __file__ for file in code):
            raise
        first: BaseException = error
        # The outermost error of damaged data says only that they could not be loaded.
        while first.__cause__ is not None:
            first = first.__cause__
        words = str(first).strip().partition("\n")[0]
        raise InputError(f"{what}: {type(first).__name__}: {words}") from error


def _without_members(names: list[str], manager: Any) -> list[str]:
    """Drops names that are members of another name's group or tag: the harness refuses to load a task twice."""
    members: set[str] = set()
    waiting = list(names)
    while waiting:
        entry = manager.task_index[waiting.pop()]
        # A group's file lists its members by name or as sections; a tag's entry has the names of its tasks.
        listed = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
        of_group = [listed] if isinstance(listed, str) else listed or []
        of_tag = entry.tags if entry.kind.name == "TAG" else ()
        children = {each if isinstance(each, str) else each.get("task") or each.get("group") for each in of_group}
        found = {child for child in {*children, *of_tag} if child in manager.task_index} - members
        members |= found
        waiting += found
    return [name for name in names if name not in members]


def _hint(name: str, manager: Any) -> str:
    hint = did_you_mean(name, manager.all_tasks)
    return hint if hint.startswith("did you mean") else "tasks are listed by `lm-eval ls tasks`"


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics by name. A filter other than "none" stays part of the name: "exact_match,strict-match"."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and "," in name}
    return {name.removesuffix(",none"): value for name, value in sorted(numbers.items())}


def _documents(samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for task, documents in sorted(samples.items()):
        for document in documents:
            line = {
                "task": task, "document": document["doc_id"], "filter": document["filter"],
                "target": document["target"], "responses": document["resps"],
                **{name: document[name] for name in document["metrics"]},
            }  # fmt: skip
            lines.append(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    return lines


def table_of(scores: dict[str, Any]) -> Table:
    """Returns a table with one row per task and metric."""
    table = Table(f"lm-evaluation-harness {scores['lm_eval_version']}")
    for heading in ("task", "metric", "value", "standard error", "documents", "examples"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for task, metrics in scores["tasks"].items():
        for metric, value in metrics.items():
            name, comma, filtered = metric.partition(",")
            if name.endswith("_stderr"):
                continue
            error = metrics.get(f"{name}_stderr{comma}{filtered}")
            shown = "" if error is None else f"{error:.4f}"
            of_task = (str(scores[part].get(task, "")) for part in ("documents", "num_fewshot"))
            table.add_row(task, metric.replace(",", ", "), f"{value:.4f}", shown, *of_task)
    return table


HARNESS = Evaluation(HarnessOptions, evaluate)
