"""Export from Python: what the command writes, for runs, files and adapters in memory."""

from pathlib import Path

import numpy as np
import places
import pytest
from command_runs import run_command

import aligner_jax as aj

LLAMA = places.GOLDENS / "models" / "llama"


@pytest.fixture
def adapter(randomized) -> aj.Adapter:
    return randomized(aj.init_adapter("aligner", aj.load_base(LLAMA).config, start_layer=1))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_function_writes_what_the_command_writes(adapter, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    aj.save_adapter(adapter, path, base=aj.load_base(LLAMA))
    ended = run_command("export", f"--base={LLAMA}", f"--adapter={path}", "--to=hf", f"--out={tmp_path / 'one' / 'x'}")
    assert ended.status == 0, ended.err
    assert aj.export(path, tmp_path / "two" / "x", to="hf", base=LLAMA) == tmp_path / "two" / "x"
    assert capsys.readouterr().out == ended.out.replace("/one/", "/two/")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_run_knows_its_base_and_its_folder_loads_again(tiny_run, tmp_path, capsys):
    tiny_run |= {"adapter": {"num_tokens": 1, "start_layer": 1}, "steps": 2}
    run = aj.train(tiny_run, tmp_path / "run", quiet=True)
    folded = aj.load_base(aj.export(run, tmp_path / "hf", to="hf", quiet=True))
    tokens_bt = np.arange(12)[None]
    expected = aj.apply(run.base.params, run.adapter, tokens_bt, config=run.base.config)
    np.testing.assert_allclose(aj.apply(folded.params, None, tokens_bt, config=folded.config), expected, atol=2e-5)
    published = aj.export(run, tmp_path / "published", quiet=True)
    again = aj.load_adapter(published, base=run.base)
    assert np.array_equal(again.trainable["tokens_pd"], run.adapter.trainable["tokens_pd"])
    assert capsys.readouterr().out == ""


def test_an_adapter_in_memory_is_written_against_its_base(adapter, tmp_path):
    folder = aj.export(adapter, tmp_path / "out", base=LLAMA, quiet=True)
    assert np.array_equal(aj.load_adapter(folder).trainable["gates_ln"], adapter.trainable["gates_ln"])
    two = aj.export([adapter, adapter], tmp_path / "two", to="hf", base=str(LLAMA), quiet=True)
    assert (two / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "onnx", "base": LLAMA}, "to is 'onnx', but should be one of adapter, hf, gguf, orbax, peft"),
        ({"to": "hf"}, "give the base, as --base=PATH does"),
        ({"to": "hf", "base": aj.LlamaConfig}, "an export reads the base's files"),
        ({"to": "adapter"}, "does not name its base"),
        ({"to": "hf", "base": "nowhere"}, "no base model at nowhere"),
    ],
)
def test_a_mistake_is_an_input_error_and_writes_nothing(adapter, tmp_path, options, sentence):
    with pytest.raises(aj.InputError, match=sentence):
        aj.export(adapter, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_things_are_no_adapters(tmp_path):
    with pytest.raises(aj.InputError, match="an adapter is of type int"):
        aj.export(5, tmp_path / "out")
    with pytest.raises(aj.InputError, match="no adapter to export"):
        aj.export([], tmp_path / "out")
