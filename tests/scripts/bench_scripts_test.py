"""The benchmarks' parts that are not measurements: the export, the protocol, the arithmetic, the messages."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import bench_export
import bench_generate
import bench_model
import bench_protocol
import bench_quantization
import bench_report
import bench_train
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from aligner_jax.weights.hf import load_hf

SCRIPTS = Path(__file__).parents[1] / "scripts"
MODELS = Path(__file__).parent / "goldens" / "models"


def _stored(file: Path) -> dict[str, tuple[str, bytes]]:
    """What a safetensors file holds: dtype and bytes by name."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    body = raw[8 + size :]
    return {name: (x["dtype"], body[slice(*x["data_offsets"])]) for name, x in header.items()}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "F32"), ("wide_head", "F32"), ("bfloat16", "BF16")])
def test_the_export_is_the_folder_that_was_loaded(tmp_path: Path, name: str, dtype: str):
    """The goldens' tensors have transformers' names and layout, so an export must give back every one's bytes."""
    config, params = load_hf(MODELS / name, {"F32": "float32", "BF16": "bfloat16"}[dtype])
    bench_export.write_hf_folder(tmp_path, config, params)
    exported, original = _stored(tmp_path / "model.safetensors"), _stored(MODELS / name / "model.safetensors")
    assert {stored[0] for stored in exported.values()} == {dtype}
    assert exported == original
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    again, _ = load_hf(tmp_path)
    assert again == config


def test_the_export_keeps_rotary_scaling(tmp_path: Path):
    config, params = load_hf(MODELS / "llama3")
    assert config.rope_scaling is not None
    bench_export.write_hf_folder(tmp_path, config, params)
    assert load_hf(tmp_path)[0] == config


def test_queries_keep_their_heads_in_halves():
    """Row n · h + i of q_proj is dimension i of head n, as rotate_half has it: nothing is interleaved."""
    config, params = load_hf(MODELS / "llama")
    tensors = bench_export.hf_tensors(params)
    q_dnh = np.asarray(params.layers.q_ldnh[1])
    row = tensors["model.layers.1.self_attn.q_proj.weight"][1 * config.head_dim + 3]
    np.testing.assert_array_equal(row, q_dnh[:, 1, 3])


def test_bfloat16_is_stored_as_such():
    _, params = load_hf(MODELS / "bfloat16", "bfloat16")
    assert {x.dtype for x in bench_export.hf_tensors(params).values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("name", ["bench_train.py", "bench_generate.py"])
@pytest.mark.parametrize("python", [None, "no/such/python"])
def test_without_a_peer_the_message_says_how_to_make_one(name: str, python: str | None):
    environment = {key: value for key, value in os.environ.items() if key != "PEER_PYTHON"}
    environment |= {"PEER_PYTHON": python} if python else {}
    command = [sys.executable, str(SCRIPTS / name)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "pip install torch==2.13.0 peft transformers" in result.stderr
    assert "PEER_PYTHON=ENV/bin/python" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_answers_and_its_prints_do_not_disturb(tmp_path: Path):
    protocol = bench_protocol
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPTS)!r})\nimport bench_protocol\n"
        "def add(a, b):\n    print('noise')\n    return {'sum': a + b}\n"
        "bench_protocol.serve({'add': add, 'peak_memory': bench_protocol.peak_memory})\n"
    )
    with protocol.Worker(sys.executable, str(child)) as worker:
        assert worker.ask("add", a=1, b=2)["sum"] == 3
        assert worker.turn("add", a=1, b=2)["others"] >= 0
        assert 10**6 < worker.ask("peak_memory")["bytes"] < 10**9
        with pytest.raises(SystemExit, match=r"child.py failed at 'add':(.|\n)*TypeError"):
            worker.ask("add", a=1, b="two")
    child.write_text("raise SystemExit('no such library')")
    with (
        protocol.Worker(sys.executable, str(child)) as worker,
        pytest.raises(SystemExit, match="no such library"),
    ):
        worker.ask("add", a=1, b=2)


def test_rates_are_medians_of_quiet_turns(capsys: pytest.CaptureFixture[str]):
    report = bench_report
    turns = [
        {"tokens": 100, "seconds": 2.0, "others": 0.0},
        {"tokens": 100, "seconds": 1.0, "others": 0.02},
        {"tokens": 300, "seconds": 1.0, "others": 0.0},
    ]
    disturbed = {"tokens": 10, "seconds": 1.0, "others": 0.5}
    assert report.rates(turns) == (100.0, 50.0, 300.0)
    assert report.rates(turns[:2]).median == 75.0
    assert str(report.rates([*turns, disturbed])) == "100 (50..300)"
    assert report.quiet_text([*turns, disturbed]) == "3 of 4"
    report.warn([turns])
    assert capsys.readouterr().out == ""
    assert report.rates([disturbed]).median == 10.0
    report.warn([turns, [disturbed]])
    assert "Not a result" in capsys.readouterr().out


def test_ratios_are_to_the_peers_best():
    report = bench_report
    assert report.ratio(300.0, [100.0, 200.0], max) == 1.5
    assert report.ratio(300.0, [100.0, 200.0], min) == 3.0
    assert report.ratio(300.0, [], max) is None
    assert [report.ratio_text(value) for value in (1.5, None)] == ["1.50×", ""]


def test_the_table_compares_ours_alone():
    train = bench_train
    figures = {"parameters": 828, "peak_bytes": 3e9, "first_step_cold": 9.0, "first_step_warm": 6.0}
    peer = {**figures, "peak_bytes": 2e9, "first_step_cold": 3.0, "first_step_warm": 3.0}
    arms = {
        "aligner_1": {**figures, "turns": [{"tokens": 900, "seconds": 1.0, "others": 0.0}]},
        "peft_lora_8": {**peer, "turns": [{"tokens": 300, "seconds": 1.0, "others": 0.0}]},
        "peft_adaption_prompt_10": {
            **peer,
            "peak_bytes": 4e9,
            "turns": [{"tokens": 200, "seconds": 1.0, "others": 0.0}],
        },
    }
    lines = train.as_table(arms).splitlines()
    assert [len(line.split("×")) - 1 for line in lines] == [0, 0, 4, 0, 0]
    assert [word for word in lines[2].split() if word.endswith("×")] == ["3.00×", "1.50×", "3.00×", "2.00×"]


def test_arms_take_turns():
    alternating = bench_train.alternating
    arms = ["aligner_1", "aligner_10", "peft_lora_8"]
    assert alternating(arms) == ["aligner_1", "peft_lora_8", "aligner_10"]
    assert alternating(arms[:2]) == arms[:2]


def test_rows_of_the_workloads():
    train = bench_train
    documents = [{"tokens": list(range(i, i + 300)), "loss_mask": [0] * 300} for i in range(10)]
    fixed = train.documents_of("fixed", documents)
    assert len(fixed) == 8
    assert {len(row["tokens"]) for row in fixed} == {len(row["loss_mask"]) for row in fixed} == {256}
    assert fixed[1]["tokens"][:44] == documents[0]["tokens"][256:]
    assert train.documents_of("mixed", documents) is documents
    assert train.packed_rows(documents) == 9


def test_agreement_counts_equal_tokens():
    agreement = bench_generate.agreement
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75
    with pytest.raises(SystemExit, match="different numbers"):
        agreement([[1]], [[1, 2]])


def test_a_line_for_each_batch_of_generation():
    sides = {"ours": [{"tokens": 64, "seconds": 1.0, "others": 0.0}]}
    sides["peer"] = [{"tokens": 64, "seconds": 2.0, "others": 0.3}]
    found = {"dtype": "float32", "batch": 8, "agreement": 0.995, "turns": sides}
    lines = bench_generate.as_table([{**found, "peak_bytes": {"ours": 1e9, "peer": 2e9}}]).splitlines()
    assert len(lines) == 3
    assert lines[2].split()[-8:] == ["0.50×", "99.5%", "1", "of", "1,", "0", "of", "1"]


def test_another_model_is_noticed():
    check_logits = bench_model.check_logits
    logits = np.zeros((1, 2, 3), np.float32)
    assert check_logits(logits, logits + np.float32(1e-4)) == pytest.approx(1e-4)
    for wrong in (logits + 1e-2, logits * np.nan):
        with pytest.raises(SystemExit, match="another model"):
            check_logits(logits, wrong)


def test_quantized_bases_are_compared_with_the_first():
    bench = bench_quantization
    rows = [bench.Row("bfloat16", 1000, 2.0, 10.0), bench.Row("int8", 500, 2.01, 9.0)]
    lines = bench.table(rows)
    assert lines[1].split() == ["bfloat16", "1,000", "2.0000", "0.00%", "10"]
    assert lines[2].split() == ["int8", "500", "2.0100", "0.50%", "9"]


def test_two_int4_are_a_byte():
    bench = bench_quantization
    params = {"a": np.zeros((4, 8), ml_dtypes.int4), "b": np.zeros(3, ml_dtypes.bfloat16)}
    assert bench.nbytes(types.SimpleNamespace(params=params)) == 16 + 6
