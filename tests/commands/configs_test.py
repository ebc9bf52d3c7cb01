"""The config files: all are valid, and those for preferences are the paper's two stages."""

import functools

import jax
import numpy as np
import pytest
from places import CONFIGS

from aligner_jax.errors import InputError
from aligner_jax.model.config import PRESETS, llama_config
from aligner_jax.peft import Adapter
from aligner_jax.runtime import optim
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.first_adapter import first_adapter
from aligner_jax.tasks.objectives import objective_of, parse_complete


def read(name: str) -> TrainConfig:
    # Some configs leave both paths to the command line.
    needed = [("base.path", "model"), ("data.path", "file.json")] if name.startswith("any_model") else []
    return parse_complete(load_config(CONFIGS / f"{name}.py", needed))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_is_one(name: str):
    assert read(name).steps > 0


@pytest.mark.parametrize(("first", "second"), [("pku_sft", "pku_dpo"), ("smollm2_pku_sft", "smollm2_pku_dpo")])
def test_the_second_stage_begins_with_the_first_ones_aligner_and_measures_by_it(first: str, second: str):
    sft, dpo = read(first), read(second)
    assert (sft.objective.name, dpo.objective.name) == ("sft", "dpo")
    assert dpo.adapter.init_from == f"runs/{first}/adapter.safetensors"
    assert objective_of(dpo)[1].reference == "initial"
    assert (dpo.adapter.method, dpo.adapter.options) == (sft.adapter.method, sft.adapter.options)
    assert (dpo.base, dpo.data.template, dpo.data.system) == (sft.base, sft.data.template, sft.data.system)


def test_the_papers_dpo_ran_at_three_quarters_of_its_rate_in_the_end():
    config = read("pku_dpo")
    assert config.steps * config.data.batch_size == 3 * 160_000
    rate = optim.learning_rate(config.optim, config.steps)
    np.testing.assert_allclose(rate(config.steps), 7.5e-5, rtol=1e-6)


@pytest.mark.parametrize("task", ["", ",metamath"])
def test_the_baselines_differ_from_the_aligners_run_by_method_and_rate(task: str):
    of = "llama7b_metamath" if task else "llama7b_alpaca"
    aligner = read(of)
    lora, adapter = (
        parse_complete(load_config(f"{CONFIGS / 'llama7b_baselines.py'}:{method}{task}"))
        for method in ("lora", "llama_adapter")
    )
    assert lora.data == adapter.data == aligner.data
    assert (adapter.steps, adapter.optim.lr) == (aligner.steps, 9e-3)
    assert (lora.optim.lr, lora.optim.schedule) == (3e-4, "constant")
    if not task:
        assert lora.steps == 5 * 50_000 // lora.data.batch_size
    counts = [init.num_params for init in map(_abstract, (lora, adapter))]
    assert counts == [4_194_304, 1_229_760]
    with pytest.raises(InputError, match=r"'dora' is not one of lora, llama_adapter"):
        load_config(f"{CONFIGS / 'llama7b_baselines.py'}:dora")


def _abstract(config: TrainConfig) -> Adapter:
    assert config.base.model is not None
    return jax.eval_shape(functools.partial(first_adapter, config, llama_config(config.base.model)))


def test_the_config_for_any_model_names_every_published_architecture():
    text = (CONFIGS / "any_model_alpaca.py").read_text()
    assert [name for name in PRESETS if name not in text] == ["stories_260k"]
    assert read("any_model_alpaca").base.model is None
