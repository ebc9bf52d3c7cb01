"""Named recipes of Aligners: their configs, and the names that are refused."""

import pytest
from ml_collections import ConfigDict
from places import CONFIGS

from aligner_jax.errors import InputError
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.recipes import RECIPES, with_recipe
from aligner_jax.tasks.objectives import parse_complete

PATHS = [("base.path", "model"), ("data.path", "file.json")]


def read(name: str, *overrides: tuple[str, str]) -> TrainConfig:
    return parse_complete(load_config(f"{CONFIGS}/{name}", [*PATHS, *overrides]))


def test_a_recipe_replaces_the_adapter_and_its_own_fields_of_the_optimizer():
    given = ConfigDict(
        {"adapter": {"method": "lora", "rank": 8}, "optim": {"lr": 1.0, "schedule": "cosine"}, "steps": 3}
    )
    made = with_recipe(given, "sums,3")
    assert made.adapter.to_dict() == {"method": "aligner", "num_tokens": 3, "gates": "token", "init_std": 0.1}
    assert made.optim.to_dict() == {**RECIPES["sums"].optim, "schedule": "cosine"}
    assert made.steps == 3
    assert given.adapter.method == "lora"
    given.adapter = {"method": "aligner", "start_layer": 4, "num_tokens": 2}
    assert with_recipe(given, "paper").adapter.to_dict() == {"method": "aligner", "start_layer": 4, "num_tokens": 1}
    assert with_recipe(given, "sums").adapter.num_tokens == RECIPES["sums"].num_tokens


def test_the_papers_recipe_is_the_default():
    default = read("any_model_alpaca.py")
    assert default == read("any_model_alpaca.py:paper,1")
    assert default.adapter.options == {"num_tokens": 1}
    assert (default.optim.lr, default.optim.weight_decay) == (9e-3, 0.02)


def test_every_recipe_is_a_config_and_overrides_still_count():
    for name in RECIPES:
        assert read(f"any_model_alpaca.py:{name},2").adapter.options["num_tokens"] == 2
    assert read("any_model_alpaca.py:sums", ("optim.lr", "0.5")).optim.lr == 0.5
    assert read("quickstart.py:sums,4").adapter.options["gates"] == "token"
    assert "gates" not in read("quickstart.py").adapter.options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "the recipe 'best' is unknown; there are paper, sums"),
        ("sums,0", r"the recipe 'sums,0' should end in a number of tokens above 0, as in 'sums,10'"),
        ("sums,²", "should end in a number of tokens"),
        ("sums,", "should end in a number of tokens"),
    ],
)
def test_unknown_recipes_are_named(text: str, message: str):
    with pytest.raises(InputError, match=message):
        with_recipe({}, text)


def test_a_path_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"config\.base\.path is not set, and config file .*any_model_alpaca\.py"):
        load_config(CONFIGS / "any_model_alpaca.py")
