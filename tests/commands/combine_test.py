"""The command that adds adapters."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import Ended, run_command
from model_folders import CONFIG, draw, write_hf

from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.combine import combine
from aligner_jax.weights.base import load_base

ALPACA, CHAT = {"template": "alpaca", "system": None}, {"template": "chat", "system": "Be brief."}


def _made(randomized: Callable[..., Adapter], key: int, method: str = "aligner", **options) -> Adapter:
    return randomized(init_adapter(method, CONFIG, start_layer=0, **options), key)


@pytest.fixture
def saved(hf_base: Path, tmp_path: Path, randomized) -> Callable[..., str]:
    base = load_base(hf_base)

    def save(name: str, adapter: Adapter, prompt_format=ALPACA, base=base) -> str:
        save_adapter(adapter, tmp_path / name, base, prompt_format=prompt_format)
        return str(tmp_path / name)

    return save


def _run(tmp_path: Path, *arguments: str) -> Ended:
    return run_command("combine", *arguments, f"--out={tmp_path / 'sum.safetensors'}")


def _refused(tmp_path: Path, *arguments: str) -> str:
    ended = _run(tmp_path, *arguments)
    assert ended.status == 1
    assert not (tmp_path / "sum.safetensors").exists()
    (line,) = ended.err.splitlines()
    return line


def test_it_writes_what_the_function_returns(saved, hf_base: Path, tmp_path: Path, randomized):
    one, other = _made(randomized, 1), _made(randomized, 2)
    paths = saved("a:1.safetensors", one), saved("b.safetensors", other)
    ended = _run(tmp_path, f"--adapter={paths[0]}:1", f"--adapter={paths[1]}:-0.5", f"--base={hf_base}")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("bias(start_layer=0, target=o): ")
    artifact, base = read_artifact(tmp_path / "sum.safetensors"), load_base(hf_base)
    expected = combine([(one, 1), (other, -0.5)], base)
    jax.tree.map(np.testing.assert_array_equal, artifact.adapter.trainable, expected.trainable)
    assert artifact.base is not None
    assert artifact.base.fingerprint == base.fingerprint
    assert artifact.metadata["prompt_format"] == '{"system": null, "template": "alpaca"}'


def test_the_base_may_be_an_orbax_folder(saved, hf_base: Path, orbax_base: Path, tmp_path: Path, randomized):
    one, other = _made(randomized, 1), _made(randomized, 2)
    paths = saved("a.safetensors", one), saved("b.safetensors", other)
    ended = _run(tmp_path, f"--adapter={paths[0]}:1", f"--adapter={paths[1]}:-0.5", f"--base={orbax_base}")
    assert (ended.status, ended.err) == (0, "")
    expected = combine([(one, 1), (other, -0.5)], load_base(hf_base))
    written = read_artifact(tmp_path / "sum.safetensors").adapter
    jax.tree.map(np.testing.assert_array_equal, written.trainable, expected.trainable)


def test_a_sum_without_a_base_keeps_what_all_files_record(saved, hf_base: Path, tmp_path: Path, randomized):
    wide = [_made(randomized, key, num_tokens=key) for key in (2, 3)]
    paths = saved("a.safetensors", wide[0]), saved("b.safetensors", wide[1], CHAT)
    ended = _run(tmp_path, f"--adapter={paths[0]}:1", f"--adapter={paths[1]}:1")
    assert (ended.status, ended.err) == (0, "")
    assert "record different prompt formats, so the sum records none" in ended.out
    artifact = read_artifact(tmp_path / "sum.safetensors", load_base(hf_base))
    assert artifact.adapter.method == "sum"
    assert artifact.prompt_format is None


def test_adapters_of_other_bases_are_refused(saved, hf_base: Path, tmp_path: Path, randomized):
    one, other = _made(randomized, 1, num_tokens=2), _made(randomized, 2, num_tokens=2)
    elsewhere = write_hf(tmp_path / "other", CONFIG, draw(seed=7))
    path = saved("a.safetensors", one)
    foreign = saved("b.safetensors", other, base=load_base(elsewhere))
    line = _refused(tmp_path, f"--adapter={path}:1", f"--adapter={foreign}:1")
    assert "b.safetensors was trained on another base than" in line
    line = _refused(tmp_path, f"--adapter={path}:1", f"--adapter={foreign}:1", f"--base={hf_base}")
    assert "b.safetensors was trained on a base of the same shape with other weights" in line
    nameless = saved("c.safetensors", other, base=None)
    line = _refused(tmp_path, f"--adapter={path}:1", f"--adapter={nameless}:1")
    assert line.endswith("c.safetensors does not record its base: add --base=PATH")


def test_wrong_arguments_are_refused_in_one_sentence(saved, tmp_path: Path, randomized):
    path = saved("a.safetensors", _made(randomized, 1))
    assert "give adapters with weights" in _refused(tmp_path)
    assert "does not end in a weight after a colon" in _refused(tmp_path, f"--adapter={path}")
    assert "does not end in a weight" in _refused(tmp_path, f"--adapter={path}:half")
    assert "names no adapter before the weight" in _refused(tmp_path, "--adapter=:1.0")
    assert "should be a finite number" in _refused(tmp_path, f"--adapter={path}:inf")
    assert "give the base (base=…, or --base=PATH)" in _refused(tmp_path, f"--adapter={path}:1", f"--adapter={path}:2")
    ended = run_command("combine", f"--adapter={path}:1", f"--out={path}")
    assert "would be overwritten" in ended.err
    # The folder of a run stands for the file in it.
    (tmp_path / "run").mkdir()
    file = Path(saved("run/adapter.safetensors", _made(randomized, 1)))
    ended = run_command("combine", f"--adapter={file.parent}:2", f"--out={file}")
    assert "would be overwritten" in ended.err
    ended = run_command("combine", f"--adapter={path}:1", f"--out={tmp_path / 'sum'}")
    assert "name ends in .safetensors" in ended.err


def test_a_sum_that_exists_is_replaced_only_if_asked(saved, tmp_path: Path, randomized):
    path, target = saved("a.safetensors", _made(randomized, 1, "bias")), tmp_path / "sum.safetensors"
    assert _run(tmp_path, f"--adapter={path}:1").status == 0
    before = target.read_bytes()
    ended = _run(tmp_path, f"--adapter={path}:2")
    assert (ended.status, target.read_bytes()) == (1, before)
    assert ended.err == f"error: {target} exists already: give another name, or add --overwrite to replace it\n"
    assert _run(tmp_path, f"--adapter={path}:2", "--overwrite").status == 0
    assert target.read_bytes() != before
