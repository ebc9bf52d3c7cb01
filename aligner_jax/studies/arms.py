"""Arms of the studies: methods with their options, from 828 trained parameters to all of the base."""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter, complete_options
from aligner_jax.peft.methods import METHODS, fresh_adapter
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.fields import parse_section
from aligner_jax.runtime.recipes import RECIPES
from aligner_jax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method with its options.

    Attributes:
      name: name in tables and files.
      method: key of `peft.METHODS`.
      options: options of the method.
      rate: learning rate with which the search begins.
      cost: time of a step, relative to an Aligner's of one token.
      optim: fields of the optimizer that differ from those of all arms.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    rate: float
    cost: float = 1.0
    optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name without sizes: arms of one kind differ in trained parameters alone."""
        return re.sub(r"_\d+", "", self.name)

    def init(self, base: Base, seed: int) -> Adapter:
        """Returns the initial adapter."""
        options = complete_options(self.method, base.config, self.options)
        return fresh_adapter(self.method, base.config, seed, options, base.params)


_LORA = {"dropout": 0.0}
"""A dropout's masks depend on a row's place among all, and runs that are trained at once are to be as if alone."""


def parse_arm(text: str) -> Arm:
    """Parses an arm, such as "own_10=aligner,num_tokens=10,gates=token,rate=0.02,optim.gate_rate=3".

    Raises:
      ValueError: the text has another form, the method is unknown, or the name is taken.
      argparse.ArgumentTypeError: an option or a field of the optimizer is unknown or invalid; names it.
    """
    (name, method), *fields = (part.split("=", 1) for part in text.split(","))
    if not re.fullmatch(r"\w+", name) or name in (*ARMS, "base") or method not in METHODS:
        raise ValueError(text)
    values = {field: _value(value) for field, value in fields}
    rate = float(values.pop("rate", 1e-2))
    if not 0 < rate < math.inf:
        raise ValueError(text)
    optim = {field.removeprefix("optim."): values.pop(field) for field in list(values) if field.startswith("optim.")}
    if unused := {"lr", "schedule", "warmup_steps", "accumulate"} & set(optim):
        raise argparse.ArgumentTypeError(f"optim.{unused.pop()} is the study's own; rate=… begins an arm's search")
    try:
        parse_section(METHODS[method].options, values, name)
        parse_section(OptimConfig, optim, f"{name}.optim")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if method == "lora":
        values = {**_LORA, **values}
    return Arm(name, method, values, rate, optim=optim)


parse_arm.__name__ = "arm, such as own_10=aligner,num_tokens=10,gates=token,rate=0.02 (with a name of its own)"


def _value(text: str) -> Any:
    """Returns a number or a truth value; other texts as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _arms(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


def _recipe(name: str, num_tokens: int, cost: float) -> Arm:
    recipe = RECIPES[name]
    optim = {field: value for field, value in recipe.optim.items() if field not in ("lr", "weight_decay")}
    options = {"num_tokens": num_tokens, **recipe.adapter}
    return Arm(f"aligner_{num_tokens}_{name}", "aligner", options, recipe.optim["lr"], cost, optim)


ARMS = _arms(
    Arm("aligner_1", "aligner", {"num_tokens": 1}, 2e-2),
    Arm("aligner_3", "aligner", {"num_tokens": 3}, 2e-2),
    Arm("aligner_10", "aligner", {"num_tokens": 10}, 2e-2),
    Arm("aligner_30", "aligner", {"num_tokens": 30}, 2e-2, 1.1),
    Arm("aligner_100", "aligner", {"num_tokens": 100}, 2e-2, 1.2),
    *(_recipe("sums", tokens, cost) for tokens, cost in ((1, 1.0), (7, 1.0), (30, 1.1), (100, 1.2))),
    Arm("bias", "bias", {"target": "o"}, 1e-2),
    Arm("llama_adapter_10", "llama_adapter", {"num_tokens": 10}, 1e-2),
    Arm("prompt_20", "prompt", {"num_tokens": 20}, 3e-2, 1.2),
    Arm("prefix_10", "prefix", {"num_tokens": 10}, 1e-1),
    Arm("lora_1", "lora", {"rank": 1, **_LORA}, 6e-3, 1.2),
    Arm("lora_8", "lora", {"rank": 8, **_LORA}, 4e-3, 1.2),
    Arm("lora_64", "lora", {"rank": 64, **_LORA}, 2e-3, 1.4),
    Arm("full", "full", {}, 1.5e-4, 4.0),
)
"""Arms by name. The rates of a recipe's arms are searched as those of all others."""
