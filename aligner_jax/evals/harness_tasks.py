"""Writes folders of task files for lm-evaluation-harness, with local data: nothing is loaded from a hub.

The folders serve any model of the harness, also from the command line (`lm_eval --include_path`).
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from aligner_jax.data.sources.records import read_records
from aligner_jax.errors import InputError
from aligner_jax.evals.mmlu_questions import MultipleChoice, read_mmlu
from aligner_jax.files.content import is_file
from aligner_jax.runtime.files import write_atomically

TEMPLATES = "aligner_jax.evals.tasks"


def write_mmlu(path: str, folder: Path) -> list[str]:
    """Writes the tasks mmlu_SUBJECT and their group, mmlu, to a folder.

    Questions are those of the test split. Few-shot examples (`num_fewshot`) are the first of the dev split.

    Args:
      path: MMLU's zip or folder; see `read_mmlu`.
      folder: folder of the task files.

    Returns:
      The names of the tasks, without the group.

    Raises:
      InputError: MMLU cannot be read, or the folder cannot be written.
    """
    test, dev = read_mmlu(path, "test"), read_mmlu(path, "dev")
    for subject in test.keys() - dev.keys():
        raise InputError(f"{path} has questions on {subject} in the split test, but none in the split dev")
    names = [f"mmlu_{subject}" for subject in test]
    _write(folder / "_mmlu.yaml", _template("mmlu"))
    for subject, name in zip(test, names, strict=True):
        files = {
            split: _write_lines(folder / f"{name}.{split}.jsonl", map(_record, questions[subject]))
            for split, questions in (("test", test), ("dev", dev))
        }
        about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        write_task(folder, name, "_mmlu.yaml", files, description=about)
    group = {
        "group": "mmlu",
        "task": names,
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    _write(folder / "mmlu.yaml", json.dumps(group, indent=1) + "\n")
    return names


def write_gsm8k(path: str, folder: Path) -> list[str]:
    """Writes the task gsm8k to a folder, and returns a list of its name.

    Args:
      path: folder of train.jsonl and test.jsonl.
      folder: folder of the task files.

    Raises:
      InputError: a file is missing, a record is not a problem, or the folder cannot be written.
    """
    files = {}
    for split in ("train", "test"):
        records = []
        for record, where in read_records(Path(path) / f"{split}.jsonl"):
            if not isinstance(record.get("question"), str) or not isinstance(record.get("answer"), str):
                raise InputError(f"{where}: the record has no texts 'question' and 'answer'")
            records.append({"question": record["question"], "answer": record["answer"]})
        files[split] = _write_lines(folder / f"gsm8k.{split}.jsonl", records)
    _write(folder / "_gsm8k.yaml", _template("gsm8k"))
    write_task(folder, "gsm8k", "_gsm8k.yaml", files)
    return ["gsm8k"]


def write_task(folder: Path, name: str, template: str | None, files: dict[str, Path], **fields: Any) -> None:
    """Writes the file of one task.

    Args:
      folder: folder of the task files.
      name: name of the task.
      template: file of the folder that the task includes; None for none.
      files: data files by split.
      fields: further fields of the task.
    """
    config = {
        **({} if template is None else {"include": template}),
        "task": name,
        "dataset_kwargs": {
            "data_files": {split: str(file.absolute()) for split, file in files.items()},
            "cache_dir": str((folder / "arrow").absolute()),
        },
        **fields,
    }
    # The harness reads YAML, of which JSON is a subset.
    _write(folder / f"{name}.yaml", json.dumps(config, indent=1) + "\n")


def _record(question: MultipleChoice) -> dict[str, Any]:
    return {"question": question.question, "choices": list(question.choices), "answer": question.answer}


def _write_lines(file: Path, records: Any) -> Path:
    _write(file, "".join(json.dumps(record) + "\n" for record in records))
    return file


def _write(file: Path, text: str) -> None:
    # A new modification time would make the harness read an unchanged file into its cache again.
    if not is_file(file) or file.read_text(encoding="utf-8") != text:
        write_atomically(file, text)


def _template(name: str) -> str:
    return (resources.files(TEMPLATES) / f"{name}.yaml").read_text(encoding="utf-8")
