"""Command-line parts that all commands share: flags, config files with overrides, and one-sentence errors."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.runtime import distributed, platform, starting
from aligner_jax.runtime.exit import Stopped, at_once, is_held_up
from aligner_jax.runtime.files import named_files, reason
from aligner_jax.runtime.load_config import Choice, config_name, load_config
from aligner_jax.runtime.output import OutputEnded, make_plain, replace_stdout
from aligner_jax.usage.commands import define_config
from aligner_jax.usage.config_fields import config_paragraphs
from aligner_jax.usage.page import page
from aligner_jax.usage.parse import Override, asks_for_help, parse_flags

# --help lists a flag that this module defines among the flags of the command itself.
flags.disclaim_key_flags()


class ConfigFlag:
    """The flag --config=FILE with its overrides --config.section.field=value; `value` is the resulting config."""

    def __init__(self) -> None:
        self.overrides: list[Override] = []
        self._path = define_config(flags.FLAGS)

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
        return load_config(self._path.value, self.overrides, choices=choices, say=say_once)

    @property
    def name(self) -> str:
        """The config file's name without folder and .py, then the argument after its colon, so that runs differ."""
        return config_name(self._path.value or "")


_config_flags: list[ConfigFlag] = []


def config_flag() -> ConfigFlag:
    """Returns the flag --config, and defines it at the first call; commands imported together share it."""
    if not _config_flags:
        _config_flags.append(ConfigFlag())
    return _config_flags[0]


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
    starting.imported()
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
        with named_files():
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


def say_once(sentence: str) -> None:
    """Prints a sentence on stderr, in process 0 only. Stdout is kept for the command's result."""
    if distributed.is_first():
        _say(sentence)


def _say(sentence: str) -> None:
    # The reader of stderr may have gone.
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _parse_flags(argv: Sequence[str], argument_name: str | None) -> None:
    app.define_help_flags()
    own = flags.FLAGS.get_key_flags_for_module(argv[0])
    if asks_for_help(argv[1:]) or "--helpfull" in argv:
        more = config_paragraphs(Path(argv[0]).stem) + ([flags.FLAGS.get_help()] if "--helpfull" in argv else [])
        print(page(sys.modules["__main__"].__doc__ or "", own, more=more), end="")
        sys.exit(0)
    overrides = parse_flags(flags.FLAGS, argv, [flag.name for flag in own], argument_name)
    for config in _config_flags:
        config.overrides = overrides
