"""Evaluation from Python: a base by path or in memory, adapters by path, as runs or in memory."""

import json
from pathlib import Path

import pytest
import tiny_runs

import aligner_jax as aj


@pytest.fixture
def config(tmp_path: Path) -> dict:
    problems = [{"question": f"How many are {i} and 1?", "answer": f"#### {i + 1}"} for i in range(3)]
    path = tiny_runs.write_rows(tmp_path / "problems.jsonl", problems)
    section = {"name": "gsm8k", "path": str(path), "max_new_tokens": 4, "template": "chat", "protocol": "template"}
    return {"evaluation": section, "batch_size": 2}


def test_bases_and_adapters_give_the_same_results_in_every_form(config, tiny_model, tmp_path, randomized, capsys):
    base = aj.load_base(tiny_model)
    adapter = randomized(aj.init_adapter("aligner", base.config, start_layer=0))
    path = tmp_path / "adapter.safetensors"
    aj.save_adapter(adapter, path, base=base)
    out = tmp_path / "out"
    results = aj.evaluate({**config, "base": {"path": str(tiny_model)}}, adapter=path, out=out)
    assert f"written: {out / 'results.json'}" in capsys.readouterr().out
    assert results == json.loads((out / "results.json").read_text())
    assert results["evaluation"] == "gsm8k"
    assert results["scores"]["problems"] == 3
    assert set(results) == {"evaluation", "made_from", "scores"}
    in_memory = aj.evaluate(config, base=base, adapter=adapter, quiet=True)
    by_path = aj.evaluate(config, base=tiny_model, adapter=str(path), quiet=True)
    assert results == in_memory == by_path
    assert capsys.readouterr().out == ""
    alone = aj.evaluate(config, base=base, quiet=True)
    assert alone["made_from"]["base"] == results["made_from"]["base"]
    assert alone["made_from"]["adapter"] != results["made_from"]["adapter"]


def test_a_mistake_is_an_input_error(config, tmp_path):
    with pytest.raises(aj.InputError, match=r"^config\.base is not set"):
        aj.evaluate(config)
    with pytest.raises(aj.InputError, match="no base model at nowhere"):
        aj.evaluate(config, base="nowhere")
    with pytest.raises(aj.InputError, match="nowhere"):
        aj.evaluate({**config, "base": "a text"}, base="nowhere")
    with pytest.raises(aj.InputError, match="the base is of type int"):
        aj.evaluate(config, base=5)
    with pytest.raises(aj.InputError, match="does not exist"):
        aj.evaluate({"evaluation": {"name": "gsm8k", "path": "nowhere.jsonl"}}, base=tmp_path)
