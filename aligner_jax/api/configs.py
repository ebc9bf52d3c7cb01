"""Configs as Python values: files with overrides, ConfigDicts and dicts."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.runtime.load_config import config_name, unset_field
from aligner_jax.runtime.load_config import load_config as load_file

Config = ConfigDict | Mapping[str, Any] | str | Path
"""A config, or the name of its file."""


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the config of a Python file with a function `get_config()`, as --config=FILE reads it.

    ```python
    config = aj.load_config("configs/quickstart.py", {"optim.lr": 1e-3, "steps": 20})
    ```

    Args:
      path: the file. "FILE:text" calls `get_config("text")`.
      overrides: values by dotted names of fields, as --config.optim.lr=1e-3 sets them on the command line; fields that
        the file leaves out may be set too. If `adapter.method` or `objective.name` changes, options of the file that
        the new one does not have are dropped.

    Raises:
      InputError: the file does not exist, fails, or returns no config, or an override names no field of a section.
    """
    from aligner_jax.tasks.first_adapter import method_choice
    from aligner_jax.tasks.objectives import objective_choice

    values = dict(overrides or {})
    for name in values:
        if not isinstance(name, str) or not all(name.split(".")):
            raise InputError(f"an override is named {name!r}, but should be a field's dotted name, such as 'optim.lr'")
    # The command's rules apply first (sections, options that are dropped), then the values as they are: as text, "5"
    # would be a number.
    as_text = [(name, value if isinstance(value, str) else repr(value)) for name, value in values.items()]
    config = load_file(path, as_text, choices=[method_choice(), objective_choice()])
    for name, value in values.items():
        *sections, field = name.split(".")
        section: Any = config
        for each in sections:
            section = section[each]
        with section.ignore_type():
            section[field] = copy.deepcopy(value)
    return config


def as_config(config: Config) -> dict[str, Any]:
    """Returns a config as nested dicts of its own, which may be changed. Raises InputError as `load_config` does."""
    if isinstance(config, str | Path):
        config = load_file(config)
    if isinstance(config, ConfigDict):
        if name := unset_field(config, "config"):
            raise InputError(f"{name} is not set, and the config requires it")
        return config.copy_and_resolve_references().to_dict()
    if not isinstance(config, Mapping):
        raise InputError(
            f"the config is of type {type(config).__name__}, but should be a ConfigDict, a dict or a file's name"
        )
    return copy.deepcopy(dict(config))


def name_of(config: Config) -> str | None:
    """Returns the name that the commands give a config file's folders ("quickstart"); None if it has no file."""
    if not isinstance(config, str | Path):
        return None
    return config_name(config)
