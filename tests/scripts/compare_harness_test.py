"""The comparison with the harness's own model class, without running it: task files, export, arithmetic."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from aligner_jax.weights.base import load_base
from scripts.bench import harness


def test_the_exported_folder_is_the_same_model_with_the_same_tokenizer(tiny_model: Path, tmp_path: Path):
    harness.export(str(tiny_model), tmp_path / "hf")
    ours, exported = load_base(tiny_model), load_base(tmp_path / "hf")
    assert exported.fingerprint == ours.fingerprint
    assert ours.tokenizer is not None
    assert exported.tokenizer is not None
    text = "<|im_start|>user\nIce floats on water.<|im_end|>"
    assert exported.tokenizer.encode(text) == ours.tokenizer.encode(text)
    assert (exported.tokenizer.bos_id, exported.tokenizer.eos_id) == (ours.tokenizer.bos_id, ours.tokenizer.eos_id)


def test_task_files_hold_the_beginnings_of_the_data(tmp_path: Path):
    data, folder = tmp_path / "data", tmp_path / "tasks"
    for name in ("eval/mmlu", "reasoning/gsm8k", "text", "pref/hh_rlhf"):
        (data / name).mkdir(parents=True)
    with zipfile.ZipFile(data / "eval" / "mmlu" / "mmlu.zip", "w") as file:
        for subject in ("anatomy", "global_facts"):
            for split in ("dev", "test"):
                file.writestr(f"data/{split}/{subject}_{split}.csv", "q,1,2,3,4,A\n")
    (data / "reasoning" / "gsm8k" / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n' * 3)
    (data / "text" / "tinystories_197k.txt").write_text("One.\n\nTwo.\n\n\n\nThree.\n")
    dialogues = [
        ("\n\nHuman: Hi\n\nAssistant: Good.", "\n\nHuman: Hi\n\nAssistant: Bad."),
        ("\n\nHuman: Hi\n\nAssistant: Same.", "\n\nHuman: Hi\n\nAssistant: Same."),
        ("\n\nHuman: Hi\n\nAssistant: Good.", "\n\nHuman: Ho\n\nAssistant: Bad."),
        ("\n\nHuman: Hi\n\nAssistant: Good.", "\n\nHuman: Hi\n\nAssistant: " + "Long. " * 200),
    ]
    with gzip.open(data / "pref" / "hh_rlhf" / "helpful-base.test.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in dialogues)
    folder.mkdir()
    harness.write_tasks(data, folder, 2)
    assert {task for task in harness.TASKS if (folder / f"{task}.yaml").exists()} == set(harness.TASKS)
    assert json.loads((folder / "mmlu_global_facts.yaml").read_text())["num_fewshot"] == 5
    records = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("gsm8k_solutions", "tinystories", "hh_helpful")
    }
    assert len(records["gsm8k_solutions"]) == 2
    assert records["tinystories"] == [{"text": "One."}, {"text": "Two."}]
    assert records["hh_helpful"] == [{"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Good.", "rejected": " Bad."}]


def _documents(task: str, *responses, **metrics) -> dict:
    return {(task, i): {"responses": each, **metrics} for i, each in enumerate(responses)}


def test_the_largest_difference_and_the_accuracies_are_found(monkeypatch):
    monkeypatch.setattr(harness, "TASKS", ("choices", "rolling"))
    ours = _documents("choices", [[[-1.0, True]], [[-2.0, False]]], [[[-3.0, False]]], acc=1.0)
    ours |= _documents("rolling", [[-100.0]])
    peers = _documents("choices", [[[-1.0, True]], [[-2.5, False]]], [[[-3.0, False]]], acc=1.0)
    peers |= _documents("rolling", [[-100.25]])
    peers["choices", 1]["acc"] = 0.0
    choices, rolling = harness.compare(ours, peers)
    assert (choices["documents"], choices["requests"], choices["largest_difference"]) == (2, 3, 0.5)
    assert (choices["ours"], choices["hf"], choices["documents_that_differ"]) == (1.0, 0.5, 1)
    assert rolling["largest_difference"] == 0.25
    assert "ours" not in rolling
    del peers["rolling", 0]
    with pytest.raises(SystemExit, match="the two sides have other documents"):
        harness.compare(ours, peers)
