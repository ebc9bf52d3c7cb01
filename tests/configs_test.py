"""The config files: each is one, and those of preferences are the paper's two stages."""

from pathlib import Path

import numpy as np
import pytest

from aligner_jax.runtime import optim
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import TrainConfig, parse_config

CONFIGS = Path(__file__).parents[1] / "configs"


def read(name: str) -> TrainConfig:
    return parse_config(load_config(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_is_one(name: str):
    assert read(name).steps > 0


@pytest.mark.parametrize(("first", "second"), [("pku_sft", "pku_dpo"), ("smollm2_pku_sft", "smollm2_pku_dpo")])
def test_the_second_stage_begins_with_the_first_ones_aligner_and_measures_by_it(first: str, second: str):
    sft, dpo = read(first), read(second)
    assert (sft.objective.name, dpo.objective.name) == ("sft", "dpo")
    assert dpo.adapter.init_from == f"runs/{first}/adapter.safetensors"
    assert dpo.objective.reference == "initial"
    assert (dpo.adapter.method, dpo.adapter.options) == (sft.adapter.method, sft.adapter.options)
    assert (dpo.base, dpo.data.template, dpo.data.system) == (sft.base, sft.data.template, sft.data.system)


def test_the_papers_dpo_ran_at_three_quarters_of_its_rate_in_the_end():
    config = read("pku_dpo")
    assert config.steps * config.data.batch_size == 3 * 160_000
    rate = optim.learning_rate(config.optim, config.steps)
    np.testing.assert_allclose(rate(config.steps), 7.5e-5, rtol=1e-6)
