"""Objectives by name. A new objective is a file of its own and one line here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.objectives.loss import Options
from aligner_jax.runtime import config as runtime_config
from aligner_jax.runtime.command import Choice
from aligner_jax.runtime.config import ObjectiveConfig, TrainConfig
from aligner_jax.runtime.fields import did_you_mean, parse_section
from aligner_jax.tasks.preference import DPO, IPO
from aligner_jax.tasks.sft import SFT
from aligner_jax.tasks.task import Objective

OBJECTIVES: dict[str, Objective] = {"sft": SFT, "dpo": DPO, "ipo": IPO}


def objective_choice() -> Choice:
    """Returns the objective section as a `Choice`: `command.load_config` drops options that a new objective lacks."""
    return Choice(
        "objective", "name", ObjectiveConfig.name, {name: tuple(_defaults(x)) for name, x in OBJECTIVES.items()}
    )


def objective_of(config: TrainConfig) -> tuple[Objective, Options]:
    """Returns the objective that the config names, and its options.

    Raises:
      InputError: the objective is unknown, or one of its options or another field of the config does not fit it.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise InputError(f"config.objective.name is {name!r}, but should be one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    options = parse_section(objective.options, _own_options(config), "config.objective")
    if config.sweep.num_adapters and not objective.sweeps:
        others = " and ".join(repr(other) for other, record in OBJECTIVES.items() if record.sweeps)
        raise InputError(f"config.sweep is set, but config.objective.name is {name!r}; only {others} has it")
    objective.check(config)
    return objective, options


def complete(config: TrainConfig) -> TrainConfig:
    """Returns the config with all options of its objective and none of other objectives.

    Raises:
      InputError: see `objective_of`.
    """
    _, options = objective_of(config)
    section = dataclasses.replace(config.objective, options=dataclasses.asdict(options))
    return dataclasses.replace(config, objective=section)


def parse_complete(config: ConfigDict | Mapping[str, Any]) -> TrainConfig:
    """Parses a ConfigDict or dict and completes it; raises as `runtime.config.parse_config` and `complete` do."""
    return complete(runtime_config.parse_config(config))


def _own_options(config: TrainConfig) -> dict[str, object]:
    """Returns the options of the config's objective; those of other objectives may be given only at their defaults."""
    defaults = {name: _defaults(objective) for name, objective in OBJECTIVES.items()}
    chosen, own = config.objective.name, {}
    for key, value in config.objective.options.items():
        having = [name for name, fields in defaults.items() if key in fields]
        if not having:
            known = dict.fromkeys(["name", *(field for fields in defaults.values() for field in fields)])
            known = [f"config.objective.{field}" for field in known]
            raise InputError(f"config.objective.{key} is not a field; {did_you_mean(str(key), known)}")
        if chosen in having:
            own[key] = value
        elif all(value != defaults[name][key] for name in having):
            others, do = " and ".join(map(repr, having)), "do" if len(having) > 1 else "does"
            raise InputError(
                f"config.objective.{key} is {value!r}, but config.objective.name {chosen!r} has no use for it; "
                f"{others} {do}"
            )
    return own


def _defaults(objective: Objective) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(objective.options)}
