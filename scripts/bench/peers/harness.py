"""Runs the harness's own model class, `hf`, on task files: the other interpreter's part of scripts.bench.harness.

Needs torch, transformers and lm-eval, and nothing of this project.
"""

import argparse
import json
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help="the tasks' names")
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--tasks", required=True, help="the folder of task files")
    parser.add_argument("--to", type=Path, required=True, help="the file of documents that is written")
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--softmax", default="float32", help="in what log-probabilities are computed of logits")
    options = parser.parse_args()
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": options.model, "dtype": "float32", "softmax_dtype": options.softmax},
        device="cpu",
        batch_size=options.batch_size,
        tasks=options.names,
        task_manager=TaskManager(include_path=options.tasks, include_defaults=False),
        limit=options.limit,
        bootstrap_iters=0,
    )
    lines = []
    for task, documents in sorted(found["samples"].items()):
        for document in documents:
            metrics = {name: document[name] for name in document["metrics"]}
            lines.append({"task": task, "document": document["doc_id"], "responses": document["resps"], **metrics})
    options.to.parent.mkdir(parents=True, exist_ok=True)
    # The comparison takes a file that exists for a finished one.
    temporary = options.to.with_suffix(".part")
    temporary.write_text("".join(json.dumps(line, default=float) + "\n" for line in lines))
    temporary.replace(options.to)


if __name__ == "__main__":
    main()
