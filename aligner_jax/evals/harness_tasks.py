"""Folders of task files that lm-evaluation-harness reads, for data that are here: no hub is asked for anything.

A folder that is made here serves any model of the harness, in another interpreter too (`lm_eval --include_path`).
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
    """Tasks mmlu_SUBJECT and their group, mmlu, in a folder, from MMLU's own files (see `read_mmlu`).

    The test split is what is asked, and the dev split what examples (`num_fewshot`) are taken from, in its order.

    Returns:
      The names of the tasks, without the group's.

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
    """The task gsm8k in a folder, from the folder that holds train.jsonl and test.jsonl; returns its name in a list.

    Raises:
      InputError: a file is missing or has something in it that is no problem; or the folder cannot be written.
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
    """One task's file: what `template`, a file of the folder, says, with these data files by split and these fields."""
    config = {
        **({} if template is None else {"include": template}),
        "task": name,
        "dataset_kwargs": {
            "data_files": {split: str(file.absolute()) for split, file in files.items()},
            "cache_dir": str((folder / "arrow").absolute()),
        },
        **fields,
    }
    # JSON is YAML too.
    _write(folder / f"{name}.yaml", json.dumps(config, indent=1) + "\n")


def _record(question: MultipleChoice) -> dict[str, Any]:
    return {"question": question.question, "choices": list(question.choices), "answer": question.answer}


def _write_lines(file: Path, records: Any) -> Path:
    _write(file, "".join(json.dumps(record) + "\n" for record in records))
    return file


def _write(file: Path, text: str) -> None:
    # A file that is written anew, if only in its time, is read into the harness's cache anew.
    if not is_file(file) or file.read_text(encoding="utf-8") != text:
        write_atomically(file, text)


def _template(name: str) -> str:
    return (resources.files(TEMPLATES) / f"{name}.yaml").read_text(encoding="utf-8")
