"""Tasks of lm-evaluation-harness: its own, a folder's of yours, and MMLU and GSM8K from local files."""

import contextlib
import dataclasses
import fnmatch
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from aligner_jax.errors import InputError
from aligner_jax.evals.harness_model import harness_model, import_lm_eval
from aligner_jax.evals.harness_tasks import write_gsm8k, write_mmlu
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.task_files import damaged_files
from aligner_jax.files.content import is_folder
from aligner_jax.runtime.fields import did_you_mean, number
from aligner_jax.runtime.files import write_atomically

DOCUMENTS = "documents.jsonl"
_PACKAGE = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Which tasks, and where their data are.

    Attributes:
      tasks: names of tasks, groups or tags, perhaps with `*`. Names that are in none of the local folders are the
        harness's own, whose data come from a hub.
      include: a folder of task files (YAML) of yours; see the harness's task guide. Its paths of data are relative to
        where the command is run.
      mmlu: MMLU's zip or folder, for the tasks mmlu (a group) and mmlu_SUBJECT.
      gsm8k: the folder of GSM8K's train.jsonl and test.jsonl, for the task gsm8k.
      num_fewshot: examples in a prompt, in place of the tasks' own number.
      chat_template: whether prompts are put in the tokenizer's chat template.
      bootstrap_iters: for the standard errors of metrics that have no formula for it; 0: no standard errors.
    """

    tasks: tuple[str, ...]
    include: str | None = None
    mmlu: str | None = None
    gsm8k: str | None = None
    num_fewshot: int | None = number(None, least=0)
    chat_template: bool = False
    bootstrap_iters: int = number(1000, least=0)


def evaluate(run: Run, options: HarnessOptions) -> Outcome:
    """The tasks' metrics. documents.jsonl gets a line a document: its task, number, target, responses and metrics.

    Raises:
      InputError: a task is unknown or cannot be loaded, or the model cannot do what one asks.
    """
    import_lm_eval()
    from datasets import disable_progress_bars
    from lm_eval.evaluator import simple_evaluate

    disable_progress_bars()
    # What it would say of its defaults is in results.json; a task's mistakes come as exceptions.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, tasks = load_tasks(options, run.folder / "tasks")
    model = harness_model(run.model, run.kept("requests"), run.console, seed=run.config.seed)
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
    return Outcome(scores, _table(scores))


def load_tasks(options: HarnessOptions, folder: Path) -> tuple[Any, list[Any]]:
    """A `lm_eval.tasks.TaskManager` that knows the options' tasks, and these with their data, as it takes them.

    Args:
      folder: where task files for MMLU and GSM8K are made.

    Raises:
      InputError: no task of a name is known, one cannot be loaded, or files cannot be read or written.
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
        # Reading the harness's thousands of files takes a while, and without a hub few of their tasks can be run.
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
    """Makes one sentence of whatever a task's file or data fail with: any library's errors.

    An error within this project's own code is no task's mistake, and keeps its traceback.
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
        # The outermost error of damaged data says no more than that they could not be loaded.
        while first.__cause__ is not None:
            first = first.__cause__
        words = str(first).strip().partition("\n")[0]
        raise InputError(f"{what}: {type(first).__name__}: {words}") from error


def _without_members(names: list[str], manager: Any) -> list[str]:
    """The names without those of tasks and groups that another's group or tag has too: the harness refuses both."""
    members: set[str] = set()
    waiting = list(names)
    while waiting:
        entry = manager.task_index[waiting.pop()]
        # A group's file lists its members, each by its name or as a section; a tag knows the tasks that bear it.
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
    """Numbers by the names of their metrics; a filter that is not "none" follows its metric's name."""
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


def _table(scores: dict[str, Any]) -> Table:
    table = Table(title=f"lm-evaluation-harness {scores['lm_eval_version']}", title_justify="left")
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
            table.add_row(escape(task), escape(metric.replace(",", ", ")), f"{value:.4f}", shown, *of_task)
    return table


HARNESS = Evaluation(HarnessOptions, evaluate)
