"""The adapter that a run begins with: refusals of its method, and a method that overrides the config file's."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from places import ROOT

from aligner_jax import compile as command_compile
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.runtime.command import config_flag, load_config
from aligner_jax.runtime.config import TrainConfig, parse_config
from aligner_jax.tasks.first_adapter import check_adapter, first_adapter, method_choice
from aligner_jax.weights.base import load_base

QUICKSTART = str(ROOT / "configs" / "quickstart.py")
LEFT_OUT = (
    f"config.adapter.method is 'lora', so these options of 'aligner' in {QUICKSTART} are left out: "
    "config.adapter.num_tokens, config.adapter.start_layer"
)


def config_of(**sections) -> TrainConfig:
    return parse_config({"base": {"path": ""}, "data": {"path": ""}, "steps": 1, **sections})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"base": {"path": "", "quantization": "int8"}, "adapter": {"method": "full"}},
            "config.base.quantization is 'int8', but an adapter of method 'full' changes all weights: it needs 'none'",
        ),
        (
            {"sweep": {"lr": [1e-3, 1e-2]}, "adapter": {"method": "full"}},
            "config.sweep is set, but adapters of method 'full' cannot share a batch",
        ),
        ({"adapter": {"num_tokens": 0}}, "config.adapter.num_tokens is 0, but should be 1 or more"),
        (
            {"adapter": {"method": "lora", "targets": ["q", "w"]}},
            "config.adapter.targets[1] is 'w', but should be one of q, k, v, o, gate, up, down",
        ),
        (
            {"adapter": {"method": "lora", "num_tokens": 1}},
            "adapter method 'lora' has no option 'num_tokens'; it has alpha, dropout, rank, rslora, targets",
        ),
        (
            {"adapter": {"method": "dora"}},
            "adapter method 'dora' is not one of aligner, llama_adapter, lora, prompt, prefix, bias, full, sum",
        ),
    ],
)
def test_a_config_whose_method_cannot_be_is_refused(sections: dict, message: str):
    config = config_of(**sections)
    for refuse in (check_adapter, lambda config: first_adapter(config, llama_config("stories_260k"))):
        with pytest.raises(InputError) as caught:
            refuse(config)
        assert str(caught.value) == message


def test_a_saved_adapter_is_begun_with_where_there_is_a_base(tiny_model: Path, tmp_path: Path, randomized):
    base, path = load_base(tiny_model), str(tmp_path / "a.safetensors")
    saved = randomized(init_adapter("aligner", base.config, num_tokens=2, start_layer=1))
    save_adapter(saved, path, base)
    settings = {"num_tokens": 2, "start_layer": 1}
    config = config_of(adapter={**settings, "init_from": path}, sweep={"lr": [1e-3, 1e-2]})
    stacked, planned = first_adapter(config, base.config, base), first_adapter(config, base.config)
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, planned)
    for name, leaf in saved.trainable.items():
        np.testing.assert_array_equal(stacked.trainable[name], np.stack([leaf, leaf]))
    fresh = first_adapter(config_of(adapter=settings, seed=3), base.config, base)
    jax.tree.map(
        np.testing.assert_array_equal, fresh, init_adapter("aligner", base.config, 3, num_tokens=2, start_layer=1)
    )


def test_adapters_of_a_sweep_begin_as_words_of_the_base(tiny_model: Path):
    base = load_base(tiny_model)
    config = config_of(adapter={"num_tokens": 2, "start_layer": 1, "init": "words"}, sweep={"seed": [1, 2]})
    tokens_apd = np.asarray(first_adapter(config, base.config, base).trainable["tokens_pd"])
    embed_vd = np.asarray(base.params.embed_vd)
    assert all(any(np.array_equal(token_d, row_d) for row_d in embed_vd) for token_d in tokens_apd.reshape(4, -1))
    assert not np.array_equal(*tokens_apd)
    assert first_adapter(config, base.config).trainable["tokens_pd"].shape == tokens_apd.shape


def load(*overrides: tuple[str, str]) -> tuple[dict, list[str]]:
    said: list[str] = []
    config = parse_config(load_config(QUICKSTART, overrides, choices=[method_choice()], say=said.append))
    check_adapter(config)
    return {"method": config.adapter.method, **config.adapter.options}, said


def test_the_files_options_of_its_method_go_with_it():
    assert load(("adapter.method", "lora")) == ({"method": "lora"}, [LEFT_OUT])
    assert load(("adapter.rank", "4"), ("adapter.method", "lora"))[0] == {"method": "lora", "rank": 4}
    aligner = {"method": "aligner", "num_tokens": 1, "start_layer": 2}
    assert load(("adapter.method", "aligner")) == load() == (aligner, [])


def test_what_both_methods_have_stays():
    kept = {"method": "llama_adapter", "num_tokens": 1, "start_layer": 2}
    assert load(("adapter.method", "llama_adapter")) == (kept, [])
    options, (line,) = load(("adapter.method", "bias"))
    assert options == {"method": "bias", "start_layer": 2}
    assert line.endswith("left out: config.adapter.num_tokens")


def test_what_is_given_beside_the_new_method_must_be_its_own():
    with pytest.raises(InputError, match="adapter method 'lora' has no option 'num_tokens'"):
        load(("adapter.method", "lora"), ("adapter.num_tokens", "3"))
    with pytest.raises(InputError, match=r"config\.adapter\.rank is 0, but should be 1 or more"):
        load(("adapter.method", "lora"), ("adapter.rank", "0"))


def test_the_planner_takes_the_method_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    planned: list[TrainConfig] = []
    monkeypatch.setattr(command_compile, "make_plans", lambda config, *_: planned.append(config) or iter(()))
    monkeypatch.setattr(config_flag(), "overrides", [("adapter.method", "lora"), ("base.path", "")])
    with flagsaver.flagsaver():
        flags.FLAGS(["compile", f"--config={QUICKSTART}"])
        command_compile.main()
    assert (planned[0].adapter.method, planned[0].adapter.options) == ("lora", {})
    assert LEFT_OUT in capsys.readouterr().err.splitlines()


def test_lora_is_trained_by_a_config_of_the_aligner(tiny_model: Path, tmp_path: Path):
    overrides = {
        "adapter.method": "lora", "base.path": str(tiny_model), "base.model": None, "base.dtype": "float32",
        "data.overlong": "truncate", "data.heldout_path": None, "steps": 1, "report.form": None,
    }  # fmt: skip
    command = [sys.executable, "-m", "aligner_jax.train", f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert LEFT_OUT in done.stderr.splitlines()
    adapter = load_adapter(tmp_path / "run" / "adapter.safetensors")
    assert str(adapter) == "lora(alpha=16, dropout=0.05, rank=8, rslora=False, targets=('q', 'v'))"
