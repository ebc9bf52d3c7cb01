"""Compares this project's model class with lm-evaluation-harness's own on five tasks and the same weights.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.harness --data=DATA_FOLDER [--limit=100] [--out=DIR]

ENV is an environment of its own, made by
python3.11 -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers accelerate lm-eval
for which the base is exported as a Hugging Face folder, in float32. The data folder holds eval/mmlu/mmlu.zip,
reasoning/gsm8k/test.jsonl, text/tinystories_197k.txt and pref/hh_rlhf/helpful-base.test.jsonl.gz; no hub is asked.
Fails if an accuracy differs, or a log-likelihood by more than 1e-3. Results are kept in DIR. hf's softmax in float32 is
about 1e-5 too high per token, which adds up in long texts; --peer-softmax=float64 avoids it.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aligner_jax.data.tokenizer_transformers import transformers_files
from aligner_jax.errors import InputError
from aligner_jax.evals.harness import DOCUMENTS
from aligner_jax.evals.harness_tasks import write_mmlu, write_task
from aligner_jax.evals.interface import parse_evaluate_config
from aligner_jax.evals.run import evaluate
from aligner_jax.runtime import platform
from aligner_jax.studies.flag_values import MODEL
from aligner_jax.weights.base import load_base
from aligner_jax.weights.hf_write import write_hf_folder
from scripts.bench.protocol import peer_python

TOLERANCE = 1e-3
SUBJECT, FEWSHOT_SUBJECT = "mmlu_anatomy", "mmlu_global_facts"
TASKS = (SUBJECT, FEWSHOT_SUBJECT, "gsm8k_solutions", "tinystories", "hh_helpful")
LONGEST_DIALOGUE = 800
"""Length in characters; a hundred longer dialogues would take most of the time."""
PEER = Path(__file__).with_name("peers") / "harness.py"


def write_tasks(data: Path, folder: Path, limit: int) -> None:
    """Writes the task files of the five tasks: two subjects of MMLU, one with five examples, and three written here.

    gsm8k_solutions scores each solution after its problem, tinystories whole texts, and hh_helpful asks which of two
    answers is likelier, the chosen or the rejected one.
    """
    write_mmlu(str(data / "eval" / "mmlu" / "mmlu.zip"), folder)
    file = folder / f"{FEWSHOT_SUBJECT}.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_fewshot": 5}))
    problems = (data / "reasoning" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    _write(
        folder, "gsm8k_solutions", [json.loads(line) for line in problems[:limit]], output_type="loglikelihood",
        doc_to_text="Question: {{question}}\nAnswer:", doc_to_target="{{answer}}", metric="acc",
    )  # fmt: skip
    texts = (data / "text" / "tinystories_197k.txt").read_text(encoding="utf-8").split("\n\n")
    stories = [{"text": text.strip()} for text in texts if text.strip()][:limit]
    _write(
        folder, "tinystories", stories, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric="bits_per_byte",
    )  # fmt: skip
    with gzip.open(data / "pref" / "hh_rlhf" / "helpful-base.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = [pair for line in lines if (pair := _pair(json.loads(line))) is not None][:limit]
    _write(
        folder, "hh_helpful", pairs, output_type="multiple_choice", doc_to_text="{{prompt}}", doc_to_target=0,
        doc_to_choice="{{[chosen, rejected]}}", target_delimiter="", metric="acc",
    )  # fmt: skip


def _pair(record: dict[str, str]) -> dict[str, str] | None:
    """Returns the two last answers to one dialogue. None if equal, empty, too long, or after different dialogues."""
    (prompt, _, chosen), (other, _, rejected) = (
        record[name].rpartition("\n\nAssistant:") for name in ("chosen", "rejected")
    )
    if prompt != other or chosen == rejected or not chosen.strip() or not rejected.strip():
        return None
    if max(len(prompt) + len(answer) for answer in (chosen, rejected)) > LONGEST_DIALOGUE:
        return None
    return {"prompt": f"{prompt}\n\nAssistant:", "chosen": chosen, "rejected": rejected}


def _write(folder: Path, name: str, records: list[dict], *, metric: str, **fields: Any) -> None:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    aggregation = "mean" if metric == "acc" else metric
    metrics = [{"metric": metric, "aggregation": aggregation, "higher_is_better": metric == "acc"}]
    write_task(
        folder, name, None, {"test": file}, dataset_path="json", test_split="test", metric_list=metrics,
        num_fewshot=0, **fields,
    )  # fmt: skip


def export(base_path: str, folder: Path) -> None:
    """Exports the base as a Hugging Face folder with its tokenizer, which `lm_eval --model hf` reads."""
    base = load_base(base_path, "float32")
    files = {} if base.tokenizer is None else transformers_files(base.tokenizer)
    if not files:
        raise InputError(f"{base_path} has no vocabulary that transformers reads")
    write_hf_folder(folder, base.config, base.params)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read_documents(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the lines of documents.jsonl by task and number."""
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {(line["task"], line["document"]): line for line in lines}


def log_likelihoods(document: dict[str, Any]) -> list[float]:
    """Returns the log-likelihood of each of a document's requests."""
    flat = [repeat for request in document["responses"] for repeat in request]
    return [float(each[0] if isinstance(each, list) else each) for each in flat]


def compare(ours: dict, peers: dict) -> list[dict[str, Any]]:
    """Returns one row per task: documents, both accuracies if there are any, and the largest difference."""
    if ours.keys() != peers.keys():
        sys.exit(f"error: the two sides have other documents: {len(ours)} of ours and {len(peers)} of the peer's")
    rows = []
    for task in TASKS:
        keys = [key for key in ours if key[0] == task]
        both = [(log_likelihoods(ours[key]), log_likelihoods(peers[key])) for key in keys]
        if any(len(a) != len(b) for a, b in both):
            sys.exit(f"error: the two sides make other requests of a document of {task}")
        row: dict[str, Any] = {
            "task": task,
            "documents": len(keys),
            "requests": sum(len(a) for a, _ in both),
            "largest_difference": max(abs(x - y) for a, b in both for x, y in zip(a, b, strict=True)),
            "mean_log_likelihood": sum(sum(a) for a, _ in both) / sum(len(a) for a, _ in both),
        }
        if "acc" in ours[keys[0]]:
            row |= {
                name: sum(side[k]["acc"] for k in keys) / len(keys) for name, side in (("ours", ours), ("hf", peers))
            }
            row["documents_that_differ"] = sum(ours[k]["acc"] != peers[k]["acc"] for k in keys)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data, see above")
    parser.add_argument("--base", default=MODEL, help="anything that aj.load_base reads (default %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="documents a task (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows at once, on both sides (default %(default)s)")
    parser.add_argument(
        "--peer-softmax", choices=("float32", "float64"), default="float32",
        help="in what hf computes log-probabilities of its float32 logits (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/compare_harness"), help="default %(default)s")
    options = parser.parse_args()
    python, console = peer_python(), Console(highlight=False)
    try:
        platform.prepare()
        tasks, folder = options.out / "task_files", options.out / "hf_folder"
        tasks.mkdir(parents=True, exist_ok=True)
        write_tasks(options.data, tasks, options.limit)
        if not (folder / "tokenizer_config.json").exists():
            export(options.base, folder)
        config = {
            "base": {"path": options.base, "dtype": "float32"},
            "evaluation": {"name": "harness", "tasks": TASKS, "include": str(tasks), "bootstrap_iters": 0},
            "limit": options.limit,
            "batch_size": options.batch_size,
        }
        evaluate(parse_evaluate_config(config), None, options.out / "ours", console)
    except (InputError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    peers = options.out / ("peer" if options.peer_softmax == "float32" else "peer_float64") / DOCUMENTS
    if not peers.exists():
        arguments = [f"--{name}={value}" for name, value in (("model", folder), ("tasks", tasks), ("to", peers))]
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TQDM_DISABLE": "1",
            "DISABLE_MULTIPROC": "1",
        }
        command = [
            python,
            str(PEER),
            *arguments,
            f"--limit={options.limit}",
            f"--batch-size={options.batch_size}",
            f"--softmax={options.peer_softmax}",
            *TASKS,
        ]
        if (status := subprocess.run(command, env={**os.environ, **quiet}).returncode) != 0:
            sys.exit(f"error: the peer failed with status {status}")
    rows = compare(read_documents(options.out / "ours" / DOCUMENTS), read_documents(peers))
    name = "comparison" if options.peer_softmax == "float32" else "comparison_float64"
    (options.out / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    _print(rows, console)
    if any(row["largest_difference"] > TOLERANCE or row.get("documents_that_differ") for row in rows):
        sys.exit("error: the two sides differ")


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="The same tasks with this project's model class and with hf, float32", title_justify="left")
    for heading in ("task", "documents", "requests", "accuracy", "hf", "largest difference (nats)"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in rows:
        accuracies = [f"{row[side]:.2f}" if side in row else "" for side in ("ours", "hf")]
        counts = [str(row[name]) for name in ("documents", "requests")]
        table.add_row(row["task"], *counts, *accuracies, f"{row['largest_difference']:.1e}")
    console.print(table)


if __name__ == "__main__":
    main()
