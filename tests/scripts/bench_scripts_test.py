"""The benchmarks without measurements: the protocol, the arithmetic, the messages."""

import dataclasses
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import aligner_jax as aj
from scripts.bench import adapter_bytes, export_memory, generate, protocol, quantization, report, same_model, train


@pytest.mark.parametrize("script", [train, generate], ids=["train", "generate"])
@pytest.mark.parametrize("python", [None, "no/such/python"])
def test_without_a_peer_the_message_says_how_to_make_one(
    script: types.ModuleType, python: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PEER_PYTHON", raising=False)
    if python:
        monkeypatch.setenv("PEER_PYTHON", python)
    monkeypatch.setattr(sys, "argv", [str(script.__file__)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    # Python prints a text and ends with status 1.
    assert isinstance(ended.value.code, str)
    assert "pip install torch==2.13.0 peft transformers" in ended.value.code
    assert "PEER_PYTHON=ENV/bin/python" in ended.value.code


def test_a_worker_answers_and_its_prints_do_not_disturb(tmp_path: Path):
    child = tmp_path / "child.py"
    child.write_text(
        "from scripts.bench import protocol\n"
        "def add(a, b):\n    print('noise')\n    return {'sum': a + b}\n"
        "protocol.serve({'add': add, 'peak_memory': protocol.peak_memory})\n"
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
    assert report.ratio(300.0, [100.0, 200.0], max) == 1.5
    assert report.ratio(300.0, [100.0, 200.0], min) == 3.0
    assert report.ratio(300.0, [], max) is None
    assert [report.ratio_text(value) for value in (1.5, None)] == ["1.50×", ""]


def test_the_table_compares_ours_alone():
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
    alternating = train.alternating
    arms = ["aligner_1", "aligner_10", "peft_lora_8"]
    assert alternating(arms) == ["aligner_1", "peft_lora_8", "aligner_10"]
    assert alternating(arms[:2]) == arms[:2]


def test_rows_of_the_workloads():
    documents = [{"tokens": list(range(i, i + 300)), "loss_mask": [0] * 300} for i in range(10)]
    fixed = train.documents_of("fixed", documents)
    assert len(fixed) == 8
    assert {len(row["tokens"]) for row in fixed} == {len(row["loss_mask"]) for row in fixed} == {256}
    assert fixed[1]["tokens"][:44] == documents[0]["tokens"][256:]
    assert train.documents_of("mixed", documents) is documents
    assert train.packed_rows(documents) == 9


def test_agreement_counts_equal_tokens():
    agreement = generate.agreement
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75
    with pytest.raises(SystemExit, match="different numbers"):
        agreement([[1]], [[1, 2]])


def test_a_line_for_each_batch_of_generation():
    sides = {"ours": [{"tokens": 64, "seconds": 1.0, "others": 0.0}]}
    sides["peer"] = [{"tokens": 64, "seconds": 2.0, "others": 0.3}]
    found = {"dtype": "float32", "batch": 8, "agreement": 0.995, "turns": sides}
    lines = generate.as_table([{**found, "peak_bytes": {"ours": 1e9, "peer": 2e9}}]).splitlines()
    assert len(lines) == 3
    assert lines[2].split()[-8:] == ["0.50×", "99.5%", "1", "of", "1,", "0", "of", "1"]


def test_another_model_is_noticed():
    check_logits = same_model.check_logits
    logits = np.zeros((1, 2, 3), np.float32)
    assert check_logits(logits, logits + np.float32(1e-4)) == pytest.approx(1e-4)
    for wrong in (logits + 1e-2, logits * np.nan):
        with pytest.raises(SystemExit, match="another model"):
            check_logits(logits, wrong)


def test_quantized_bases_are_compared_with_the_first():
    bench = quantization
    rows = [bench.Row("bfloat16", 1000, 2.0, 10.0), bench.Row("int8", 500, 2.01, 9.0)]
    lines = bench.table(rows)
    assert lines[1].split() == ["bfloat16", "1,000", "2.0000", "0.00%", "10"]
    assert lines[2].split() == ["int8", "500", "2.0100", "0.50%", "9"]


def test_two_int4_are_a_byte():
    bench = quantization
    params = {"a": np.zeros((4, 8), ml_dtypes.int4), "b": np.zeros(3, ml_dtypes.bfloat16)}
    assert bench.nbytes(types.SimpleNamespace(params=params)) == 16 + 6


def test_an_export_of_7b_is_planned_within_three_times_its_largest_tensor():
    config = aj.llama_config("llama2_7b")
    largest = export_memory.largest_tensor(config)
    assert largest == 2 * 32_000 * 4096
    assert largest < export_memory.plan(config, aj.init_adapter("aligner", config)) < 3 * largest
    # Without a large MLP, what the fold reads in float32 counts most.
    narrow = dataclasses.replace(config, vocab_size=64, d_mlp=64)
    assert export_memory.plan(narrow, aj.init_adapter("aligner", narrow)) == 8 * 2 * 4096**2


def test_bytes_of_an_adapter_are_shown_beside_its_loss():
    numbers = np.asarray([3.0, -4.0], np.float32)
    assert adapter_bytes.relative_error(numbers, numbers + np.float32(0.5)) == pytest.approx(0.5 / 12.5**0.5)
    assert adapter_bytes.relative_error(numbers * 0, numbers * 0) == 0
    row = adapter_bytes.Row("coded", 450, 1250, {"tokens_pd": 0.0728}, 1.5602)
    line = adapter_bytes.line(row, 828, 1.549)
    assert line.split() == ["coded", "450", "4.35", "1,250", "1.5602", "+0.0112", "tokens_pd", "7.28%"]
    assert line.index("tokens_pd") == adapter_bytes.HEAD.index("relative error")
    without = adapter_bytes.line(row._replace(loss=None), 828, None)
    assert without.split() == ["coded", "450", "4.35", "1,250", "tokens_pd", "7.28%"]
