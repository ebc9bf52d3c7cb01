"""The GPU benchmark: our arms at tiny shapes on a CPU, the arithmetic of the table, and the sentence without a GPU."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import places
import pytest

from aligner_jax.model.attention import attend
from scripts.bench import gpu, gpu_arms, gpu_attention, gpu_peer, gpu_worker, protocol


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": places.PYTHONPATH}
    command = [sys.executable, "-m", "scripts.bench.gpu", *arguments]
    return subprocess.run(command, cwd=places.ROOT, env=environment, capture_output=True, text=True)


def test_without_a_gpu_one_sentence_says_that_nothing_is_measured():
    done = run()
    assert done.returncode == 1
    assert done.stderr == ("error: JAX finds no GPU, so nothing is measured; --smoke runs tiny shapes on a CPU\n")
    assert done.stdout == ""


def test_our_arms_run_at_tiny_shapes(tmp_path: Path):
    done = run("--smoke", f"--json={tmp_path / 'found.json'}", "--part=attention,packed,llama3,decoding,quantized")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    results = found["results"]
    assert found["smoke"]
    assert "a smoke test, not a measurement" in done.stdout
    assert results["attention"]["errors"]["xla"] < gpu_attention.TOLERANCE
    assert results["attention"]["errors"]["auto"] < gpu_attention.TOLERANCE
    ours = {arm.name for arm in gpu_arms.arms((), smoke=True) if arm.side == "ours" and arm.part != "training"}
    assert results.keys() == ours
    assert not [name for name, figures in results.items() if "error" in figures]
    assert "target" not in done.stdout


@pytest.mark.parametrize("smoke", [False, True])
def test_every_target_names_arms_that_run(smoke: bool):
    names = {arm.name: arm for arm in gpu_arms.arms(("xla", "triton"), smoke=smoke)}
    assert len(names) == len(gpu_arms.arms(("xla", "triton"), smoke=smoke))
    for target in gpu_arms.TARGETS:
        assert names[target.ours].side == "ours"
        assert {names[peer].side for peer in target.peers} <= {"peer"}
    assert {arm.part for arm in names.values()} == set(gpu_arms.PARTS)
    if smoke:
        assert {arm.arguments["model"] for arm in names.values() if "model" in arm.arguments} == {"tiny"}


def test_ratios_stand_beside_their_targets():
    results = {
        "8 x 512 aligner_1": {"tokens_per_second": 300.0, "peak_bytes": 80},
        "8 x 512 peft_lora_8, eager": {"tokens_per_second": 100.0, "peak_bytes": 100},
        "8 x 512 peft_lora_8, sdpa": {"tokens_per_second": 200.0, "peak_bytes": 120},
        "2 x 4096 aligner_1": {"tokens_per_second": 15_000.0},
        "decode 8": {"tokens_per_second": 1.0},
        "transformers decode 8": {"error": "not at hand"},
    }
    lines = gpu.ratios(results).splitlines()[2:]
    ends = [re.split(r"\s{2,}", line)[1:] for line in lines]
    assert ends[0] == ["1.50", "at least 1.35", "met"]
    assert ends[1] == ["0.80", "at most 0.75", "missed"]
    assert ends[6] == ["15,000.00", "at least 14,000", "met"]
    assert ends[7] == ["not measured", "at least 2.0"]


def test_documents_have_alpacas_lengths_and_fill_rows():
    lengths = gpu_arms.documents(20_000)
    assert (min(lengths), max(lengths)) == (32, 512)
    assert abs(np.median(lengths) - 110) < 3
    assert abs(np.mean(lengths) - 128) < 3
    rows = gpu_arms.packed_rows(8, 512)
    assert all(sum(row) <= 512 for row in rows)
    assert sum(map(sum, rows)) > 0.9 * 8 * 512


def test_wrong_attention_is_not_timed():
    parts = ("kernels", "packed", "llama3")
    found = {"errors": {"auto": 1e-3, "cudnn": None, "triton": 2e-3}, "failed": {"cudnn": "unsupported: here"}}
    arms = gpu.to_time(found, parts, smoke=False)
    assert {arm.part for arm in arms} == set(parts)
    assert {arm.arguments.get("implementation") for arm in arms} == {None, "triton"}
    assert "cudnn: unsupported: here" in gpu.checked(found)
    assert "triton: correct, largest relative error 2.0e-03" in gpu.checked(found)

    found["failed"]["auto"] = "differs by 1.0e+00 from the reference"
    arms = gpu.to_time(found, parts, smoke=False)
    assert {arm.arguments.get("implementation") for arm in arms if arm.side == "ours"} == {"triton"}
    assert "packed peft_lora_8, sdpa" in {arm.name for arm in arms}
    assert gpu.checked(found).splitlines()[-1].endswith("are not timed")


def test_a_check_that_fails_says_why():
    assert gpu.checked({"error": "the card fell off"}) == "attention was not checked: the card fell off"
    arms = gpu.to_time({"error": "the card fell off"}, ("kernels", "llama3"), smoke=False)
    assert {arm.part for arm in arms} == {"llama3"}


def test_a_peer_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(protocol.PEER_VARIABLE, "no/such/python")
    arm = next(arm for arm in gpu_arms.arms(()) if arm.side == "peer")
    error = gpu.measure(arm, gpu_worker.about)["error"]
    assert error == "not at hand: PEER_PYTHON names no interpreter"


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_one_document_are_timed_without_segments(packed: bool):
    batch = gpu_worker.batch_of(gpu_worker.model_config("tiny"), rows=2, length=512, packed=packed)
    assert batch.packed == packed
    assert (batch.segment_ids_bt.max() > 1) == packed


def across_documents(q, k, v, prefix, *, segment_ids_bt):
    return attend(q, k, v, prefix)


def wrong_without_segments(q, k, v, prefix, *, segment_ids_bt):
    return attend(q, k, v, prefix, segment_ids_bt=segment_ids_bt) * (1.1 if segment_ids_bt is None else 1)


def not_a_number(q, k, v, prefix, *, segment_ids_bt):
    return attend(q, k, v, prefix, segment_ids_bt=segment_ids_bt).at[0, 0, 0, 0].set(np.nan)


def test_a_decode_step_is_timed_without_the_first_call():
    # A call of 4 steps takes 2 seconds; the first ends at 10, after the prefill. The last calls have one step each.
    times = [7.0, 10.0, 10.1, 10.1, 10.1, 12.0, 12.1, 12.1, 12.1, 14.0, 14.1, 14.1, 14.1, 15.0, 15.9]
    for count in (9, 12, 13, 15):
        assert gpu_worker.seconds_per_step(times[:count], 4) == 0.5
    with pytest.raises(ValueError, match="8 tokens are a prefill and one call"):
        gpu_worker.seconds_per_step(times[:8], 4)


@pytest.mark.parametrize("by_length", [False, True])
def test_padded_rows_of_the_peer_fit_the_card(by_length: bool):
    asked: list[dict] = []

    class Peer:
        def ask(self, command: str, **arguments) -> dict:
            asked.append({"command": command, **arguments})
            return {"tokens": 10, "seconds": 2.0, "bytes": 3, "parameters": 4}

    packed = {"rows": 8, "length": 512, "packed": True, "by_length": by_length}
    found = gpu_peer.train(
        cast(protocol.Worker, Peer()), "7b", lora={}, attention="sdpa", checkpointing=False, **packed
    )  # fmt: skip
    assert found == {"tokens_per_second": 5.0, "peak_bytes": 3, "parameters": 4}
    train = next(request for request in asked if request["command"] == "train")
    lengths, size = [len(document["tokens"]) for document in train["documents"]], train["batch_size"]
    longest = [max(lengths[i : i + size]) for i in range(0, len(lengths), size)]
    assert max(longest) * size <= 16 * 512
    # Every turn is a pass over the documents.
    assert {request["count"] for request in asked if request["command"] == "steps"} == {len(longest)}
    assert (sum(lengths) / sum(longest) / size > 0.8) == by_length


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [(across_documents, "differs by"), (wrong_without_segments, "differs by"), (not_a_number, "not finite")],
)
def test_a_wrong_implementation_is_reported(monkeypatch: pytest.MonkeyPatch, wrong: Callable, sentence: str):
    monkeypatch.setattr(gpu_attention, "candidates", lambda: ("xla", "auto"))
    monkeypatch.setattr(gpu_attention, "TOKENS", (0,))

    def one_is_wrong(*inputs, segment_ids_bt, implementation: str):
        function = wrong if implementation == "auto" else attend
        return function(*inputs, segment_ids_bt=segment_ids_bt)

    monkeypatch.setattr(gpu_attention, "attend", one_is_wrong)
    found = gpu_attention.check(32)
    assert found["failed"].keys() == {"auto"}
    assert sentence in found["failed"]["auto"]
    assert found["errors"]["xla"] <= gpu_attention.TOLERANCE


def test_an_implementation_that_does_not_run_is_reported(monkeypatch: pytest.MonkeyPatch):
    def silent(*inputs, **options):
        raise RuntimeError

    monkeypatch.setattr(gpu_attention, "attend", silent)
    found = gpu_attention.check(32)
    assert found["failed"] == dict.fromkeys(gpu_attention.candidates(), "RuntimeError: ")
