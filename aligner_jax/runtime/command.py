"""Command-line parts that all commands share: flags, config files with overrides, and one-sentence errors."""

import ast
import contextlib
import dataclasses
import os
import re
import runpy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from absl import app, flags
from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file
from aligner_jax.files.fields import shown
from aligner_jax.runtime import distributed, platform, starting
from aligner_jax.runtime.exit import Stopped, at_once, is_held_up
from aligner_jax.runtime.fields import did_you_mean
from aligner_jax.runtime.files import reason
from aligner_jax.runtime.output import OutputEnded, make_plain, replace_stdout

# --help lists a flag that this module defines among the flags of the command itself.
flags.disclaim_key_flags()

_MAX_SECTIONS = 10
_LONGEST_NAME = 100
"""Limits on the depth of a config and the length of a flag's name; real ones stay below."""

Override = tuple[str, str | bool]
"""A dotted field name with its given text; True for --config.x and False for --noconfig.x."""


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


class ConfigFlag:
    """The flag --config=FILE with its overrides --config.section.field=value; `value` is the resulting config."""

    def __init__(self) -> None:
        self.overrides: list[Override] = []
        self._path = flags.DEFINE_string(
            "config", None, "Config file; --config.section.field=value overrides one of its fields."
        )

    @property
    def value(self) -> ConfigDict:
        """The config, loaded anew at every access. Raises InputError as `load` does."""
        return self.load()

    def load(self, *choices: Choice) -> ConfigDict:
        """Loads the config; prints a line on stderr about the options that an overridden choice drops.

        Raises:
          InputError: no --config was given; for other causes see `load_config`.
        """
        if not self._path.value:
            raise InputError("no config file was given: add --config=FILE, for example --config=configs/quickstart.py")
        return load_config(self._path.value, self.overrides, choices=choices, say=_say_once)

    @property
    def name(self) -> str:
        """The config file's name without folder and .py, then the argument after its colon, so that runs differ."""
        file, _, argument = (self._path.value or "").partition(":")
        return "_".join(filter(None, [Path(file).stem, *re.findall(r"[\w.-]+", argument)]))


_config_flags: list[ConfigFlag] = []


def config_flag() -> ConfigFlag:
    """Returns the flag --config, and defines it at the first call; commands imported together share it."""
    if not _config_flags:
        _config_flags.append(ConfigFlag())
    return _config_flags[0]


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
      path: config file. "FILE:text" calls `get_config("text")`.
      overrides: fields to set, in order.
      choices: sections whose options depend on a deciding field. If an override changes that field, the file's options
        that the new value does not have are dropped.
      say: called with a sentence about dropped options.

    Raises:
      InputError: the file is missing, fails, or has no `get_config`; names file, line and reason.
    """
    file, colon, argument = str(path).partition(":")
    if not is_file(file):
        raise InputError(f"config file {file} does not exist")
    try:
        get_config = runpy.run_path(file).get("get_config")
        config = get_config(*([argument] if colon else [])) if get_config else None
    except (InputError, OutputEnded, KeyboardInterrupt):
        raise
    except BaseException as error:
        # SystemExit is caught too: it would end the command with status 0.
        raise InputError(f"config file {file} fails{_line_of(error, file)}: {_describe(error)}") from error
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
        raise InputError(f"{_required(loaded, 'config')} is not set, and config file {file} requires it") from None
    except Exception as error:
        raise InputError(f"config file {file} does not return a config: {_describe(error)}") from error
    return loaded


def run(main: Callable[[], int | None], *, lasting: bool = False, argument: str | None = None) -> None:
    """Parses flags, prepares the platform, calls `main` and exits. Every command's file ends with this call.

    On several hosts, the process joins the others before `main` is called.

    Exit status:

    - 0: `main` returned; or the status that it returned, which is an answer and no error.
    - 1, with one sentence: an `InputError`, a wrong flag, a file that the system refuses, or output that cannot be
      written.
    - 124: the run waited too long (`runtime.watchdog`), or its other processes are gone.
    - 130, with one line: interrupted.
    - 143 or 130: the run was stopped by SIGTERM or SIGINT, and saved its state.
    - 141: the reader of the output has gone (`| head`).

    Any other exception is a bug and keeps its traceback.

    Args:
      lasting: True if the command runs to its end even when its output can no longer be written.
      argument: flag whose value may be given without its name; None refuses such values.
    """
    starting.open_closed_streams()
    make_plain()
    status = None
    shown = sys.stdout
    output = replace_stdout(lasting=lasting)
    try:
        _parse_flags(sys.argv, argument)
        platform.prepare()
        starting.may_raise(lasting=lasting)
        distributed.initialize()
        with _named_files():
            status = main()
        output.flush()
    except InputError as error:
        distributed.end_alone(error)
        if is_held_up():
            at_once(f"error: {error}", 1)
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        _say("\ninterrupted")
        sys.exit(130)
    except OutputEnded:
        pass
    except Exception as error:
        distributed.end_alone(error)
        raise
    finally:
        sys.stdout = shown
        starting.may_not_raise()
    if isinstance(output.failure, BrokenPipeError):
        # No message: its reader has gone.
        sys.exit(141)
    if output.failure is not None:
        sys.exit(f"error: what this command prints cannot be written: {reason(output.failure)}")
    sys.exit(status or 0)


@contextlib.contextmanager
def _named_files() -> Iterator[None]:
    """Turns an OSError about a file (a name that is too long, a broken disk) into an InputError: it is no bug."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise InputError(f"{os.fsdecode(error.filename)} cannot be used: {reason(error)}") from error
        try:
            os.getcwd()
        except OSError as gone:
            raise InputError(f"the current folder cannot be used: {reason(gone)}; go to another first") from error
        raise


def _say_once(sentence: str) -> None:
    """Prints a sentence on stderr, in process 0 only. Stdout is kept for the command's result."""
    if distributed.is_first():
        _say(sentence)


def _say(sentence: str) -> None:
    # The reader of stderr may have gone.
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _parse_flags(argv: Sequence[str], argument_name: str | None) -> None:
    rest = list(argv)
    if _config_flags:
        rest, _config_flags[0].overrides = _split_overrides(argv)
    app.define_help_flags()
    for argument in rest:
        # absl searches for a similar flag by recursion over the letters of the name.
        if argument.startswith("-") and len(name := argument.lstrip("-").partition("=")[0]) > _LONGEST_NAME:
            raise InputError(f"--{name[:_LONGEST_NAME]}… is not a flag of this command")
    try:
        positional = flags.FLAGS(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        known = [f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
        hint = did_you_mean(f"--{error.flagname}", known)
        raise InputError(f"--{error.flagname} is not a flag of this command; {hint}") from None
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from None
    if argument_name is not None and len(positional) == 1 and not flags.FLAGS[argument_name].present:
        flags.FLAGS[argument_name].parse(positional.pop())
    if positional:
        raise InputError(f"{positional[0]!r} is not a flag; flags are written --name=value")


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    rest, overrides = [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        if argument == "--":
            return [*rest, argument, *waiting], overrides
        if not argument.startswith("-") or not name.startswith(("config.", "noconfig.")):
            rest.append(argument)
        elif name.startswith("noconfig."):
            overrides.append((name.removeprefix("noconfig."), False))
        elif equals:
            overrides.append((name.removeprefix("config."), text))
        elif waiting and not waiting[0].startswith("--"):
            overrides.append((name.removeprefix("config."), waiting.pop(0)))
        else:
            overrides.append((name.removeprefix("config."), True))
    return rest, overrides


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


def _required(section: ConfigDict, name: str) -> str:
    """Returns the dotted name of the first required field that has no value; "" if there is none."""
    for key in section.keys():  # noqa: SIM118
        try:
            value = section[key]
        except RequiredValueError:
            return f"{name}.{key}"
        if isinstance(value, ConfigDict) and (found := _required(value, f"{name}.{key}")):
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
