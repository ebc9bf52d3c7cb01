"""Named recipes of Aligners: options of the adapter and fields of the optimizer that were tuned together."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from ml_collections import ConfigDict

from aligner_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
      adapter: options of the method "aligner" that differ from the paper's.
      optim: fields of the optimizer.
      num_tokens: number of tokens if none is asked for.
    """

    adapter: Mapping[str, Any]
    optim: Mapping[str, Any]
    num_tokens: int = 1


RECIPES = {
    "paper": Recipe({}, {"lr": 9e-3, "weight_decay": 0.02}),
    "sums": Recipe({"gates": "token", "init_std": 0.1}, {"lr": 1e-2, "weight_decay": 0.0}, num_tokens=7),
}
"""Recipes by name; docs/recipes.md has what they bring.

"sums" has a gate for each token, layer and head and no softmax, so that a layer adds a weighted sum of its tokens'
values, and tokens that begin small, so that a rate of 1e-2 turns them quickly.
"""


def with_recipe(config: ConfigDict | Mapping[str, Any], text: str) -> ConfigDict:
    """Returns a copy of a training config that follows a recipe.

    Fields of the recipe replace those of the config, and so do the adapter's method and number of tokens. All others
    stay, but for the options of another method.

    Args:
      config: config as a config file returns it.
      text: "NAME" or "NAME,TOKENS", such as "sums,7".

    Raises:
      InputError: there is no recipe of that name, or TOKENS is not a number above 0.
    """
    name, comma, tokens = text.partition(",")
    if name not in RECIPES:
        raise InputError(f"the recipe {name!r} is unknown; there are {', '.join(RECIPES)}")
    if comma and not (tokens.isascii() and tokens.isdecimal() and int(tokens) > 0):
        raise InputError(f"the recipe {text!r} should end in a number of tokens above 0, as in '{name},10'")
    recipe, made = RECIPES[name], copy.deepcopy(ConfigDict(cast(Any, config)))
    number = int(tokens) if comma else recipe.num_tokens
    before = cast(Mapping[str, Any], made.get("adapter", {}))
    kept = before if before.get("method", "aligner") == "aligner" else {}
    made.adapter = {**kept, "method": "aligner", "num_tokens": number, **recipe.adapter}
    made.optim = {**cast(Mapping[str, Any], made.get("optim", {})), **recipe.optim}
    return made
