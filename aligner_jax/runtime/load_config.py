"""Loads config files: Python files with a function `get_config()`, whose fields a command line may override."""

import ast
import dataclasses
import re
import runpy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from aligner_jax.errors import InputError
from aligner_jax.files.config_files import find_config
from aligner_jax.files.fields import shown
from aligner_jax.runtime.output import OutputEnded
from aligner_jax.usage.parse import Override

_MAX_SECTIONS = 10
"""Limit on the depth of a config; real ones stay below."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A config section in which the value of one field determines the other fields, its options.

    Attributes:
      section: name of the section, such as "adapter".
      field: name of the deciding field, such as "method".
      default: value of the field in a config that leaves it out.
      options: names of the options, by value of the field.
    """

    section: str
    field: str
    default: str
    options: Mapping[str, Collection[str]]


def config_name(path: str | Path) -> str:
    """Returns the config file's name without folder and .py, then the argument after its colon, so that runs differ."""
    file, _, argument = str(path).partition(":")
    return "_".join(filter(None, [Path(file).stem, *re.findall(r"[\w.-]+", argument)]))


def load_config(
    path: str | Path,
    overrides: Sequence[Override] = (),
    *,
    choices: Sequence[Choice] = (),
    say: Callable[[str], None] = lambda _: None,
) -> ConfigDict:
    """Returns the config that a Python file's `get_config()` makes, with overrides applied.

    Overrides are Python literals, or else text. A text field takes an override as it is. Overrides may set fields that
    the file leaves out: `parse_config` checks names, types and ranges.

    Args:
      path: config file, or the name of one of the package's (see `find_config`). "FILE:text" calls
        `get_config("text")`.
      overrides: fields to set, in order.
      choices: sections whose options depend on a deciding field. If an override changes that field, the file's options
        that the new value does not have are dropped.
      say: called with a sentence about dropped options.

    Raises:
      InputError: the file is missing, fails, or has no `get_config`; names file, line and reason.
    """
    given, colon, argument = str(path).partition(":")
    file = str(find_config(given))
    try:
        get_config = runpy.run_path(file).get("get_config")
        config = get_config(*([argument] if colon else [])) if get_config else None
    except (InputError, OutputEnded, KeyboardInterrupt):
        raise
    except BaseException as error:
        # SystemExit is caught too: it would end the command with status 0.
        kind = "" if file.endswith(".py") else "; a config file is a Python file (.py) with a function get_config()"
        raise InputError(f"config file {file} fails{_line_of(error, file)}: {_describe(error)}{kind}") from error
    if get_config is None:
        raise InputError(f"config file {file} has no function get_config()")
    if not isinstance(config, dict | ConfigDict):
        raise InputError(f"config file {file} does not return a ConfigDict from get_config() but {shown(config)}")
    loaded = config if type(config) is ConfigDict else ConfigDict()
    try:
        if loaded is not config:
            loaded = ConfigDict(cast(Any, config))
        loaded.unlock()
        before = [_chosen(loaded, choice) for choice in choices]
        for name, text in overrides:
            _override(loaded, name, text)
        for choice, value in zip(choices, before, strict=True):
            if dropped := _drop_options(loaded, choice, value, {name for name, _ in overrides}):
                names = ", ".join(f"config.{choice.section}.{name}" for name in dropped)
                what = f"config.{choice.section}.{choice.field} is {_chosen(loaded, choice)!r}"
                say(f"{what}, so these options of {value!r} in {file} are left out: {names}")
        loaded.to_dict()
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"config file {file} returns sections that are nested too deeply") from None
    except RequiredValueError:
        field = unset_field(loaded, "config")
        raise InputError(
            f"{field} is not set, and config file {file} requires it: set it, as --{field}=VALUE does"
        ) from None
    except Exception as error:
        raise InputError(f"config file {file} does not return a config: {_describe(error)}") from error
    return loaded


def _override(config: ConfigDict, name: str, text: str | bool) -> None:
    *sections, field = name.split(".")
    if len(sections) > _MAX_SECTIONS:
        raise InputError(f"config.{name} is no field: none is as many sections deep")
    section = config
    for depth, key in enumerate(sections, 1):
        if section.get(key) is None:
            section[key] = ConfigDict()
        section = section[key]
        if not isinstance(section, ConfigDict):
            raise InputError(f"config.{'.'.join(sections[:depth])} is not a section, so config.{name} cannot be set")
    with section.ignore_type():
        try:
            section[field] = text if _holds_text(section, field) and text != "None" else _literal(text)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"config.{name} cannot be set: {_describe(error)}") from error


def _chosen(config: ConfigDict, choice: Choice) -> str:
    """Returns the deciding field's value; "" if it is not text, or required and not set."""
    section = config.get(choice.section)
    if not isinstance(section, ConfigDict):
        return choice.default
    try:
        value = section.get(choice.field, choice.default)
    except RequiredValueError:
        return ""
    return value if isinstance(value, str) else ""


def _drop_options(config: ConfigDict, choice: Choice, before: str, given: Collection[str]) -> list[str]:
    """Drops options of the previous value that the new value does not have; returns their names.

    Args:
      before: previous value of the deciding field.
      given: dotted names of the overridden fields, which are kept.
    """
    now = _chosen(config, choice)
    if before == now or not {before, now} <= choice.options.keys() or choice.section in given:
        return []
    section, kept = cast(ConfigDict, config[choice.section]), {*choice.options[now]}
    dropped = [name for name in choice.options[before] if name in section and name not in kept]
    dropped = [name for name in dropped if f"{choice.section}.{name}" not in given]
    for name in dropped:
        del section[name]
    return dropped


def _holds_text(section: ConfigDict, field: str) -> bool:
    try:
        return isinstance(section.get(field), str)
    except RequiredValueError:
        return section.get_ref(field).get_type() is str


def unset_field(section: ConfigDict, name: str) -> str:
    """Returns the dotted name of the first required field that has no value; "" if there is none."""
    for key in section.keys():  # noqa: SIM118
        try:
            value = section[key]
        except RequiredValueError:
            return f"{name}.{key}"
        if isinstance(value, ConfigDict) and (found := unset_field(value, f"{name}.{key}")):
            return found
    return ""


def _literal(text: str | bool) -> Any:
    if isinstance(text, bool) or text in ("true", "false"):
        return text in (True, "true")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _line_of(error: BaseException, file: str) -> str:
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    lines, frame = [], error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == file:
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    return f" at line {lines[-1]}" if lines else ""


def _describe(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
