"""Checks of options that several methods have: each typed, bounded and finite, wherever it comes from.

The configuration is None where an adapter's file is read without its base: then what depends on the model is not
checked.
"""

from collections.abc import Sequence

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MOST_INTEGER, MOST_NUMBER
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import Options


def check_integer(options: Options, name: str) -> None:
    """Raises InputError unless the option is a whole number of at least one."""
    value = options[name]
    if type(value) is not int or not 1 <= value <= MOST_INTEGER:
        raise InputError(f"{name} is {shown(value)}, but should be a whole number of at least 1")


def check_num_tokens(options: Options) -> None:
    """Raises InputError unless num_tokens is a whole number of at least one."""
    check_integer(options, "num_tokens")


def check_start_layer(options: Options, config: LlamaConfig | None) -> None:
    """Raises InputError unless start_layer is a layer of the model."""
    start_layer, num_layers = options["start_layer"], MOST_INTEGER if config is None else config.num_layers
    if type(start_layer) is not int or not 0 <= start_layer < num_layers:
        raise InputError(f"start_layer is {shown(start_layer)}, but the model has layers 0 to {num_layers - 1}")


def check_choice(options: Options, name: str, choices: Sequence[str]) -> None:
    """Raises InputError unless the option is one of these."""
    if not isinstance(options[name], str) or options[name] not in choices:
        raise InputError(f"{name} is {shown(options[name])}, but should be one of {', '.join(choices)}")


def check_flag(options: Options, name: str) -> None:
    """Raises InputError unless the option is True or False."""
    if type(options[name]) is not bool:
        raise InputError(f"{name} is {shown(options[name])}, but should be True or False")


def check_number(
    options: Options, name: str, *, above: float | None = None, least: float | None = None, below: float | None = None
) -> None:
    """Raises InputError unless the option is a finite number in this range."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {shown(value)}, which is not a number")
    # NaN is in no range, and an int of 400 digits is no float.
    if not -MOST_NUMBER <= value <= MOST_NUMBER:
        raise InputError(f"{name} is {shown(value)}, but should be a number of at most {MOST_NUMBER:g}")
    if above is not None and value <= above:
        raise InputError(f"{name} is {value}, but should be greater than {above}")
    if least is not None and value < least:
        raise InputError(f"{name} is {value}, but should be at least {least}")
    if below is not None and value >= below:
        raise InputError(f"{name} is {value}, but should be less than {below}")


def adapted_layers(options: Options, config: LlamaConfig) -> int:
    """Returns how many layers there are from start_layer on."""
    return config.num_layers - options["start_layer"]


def shown(value: object) -> str:
    """Returns what an error says of a value: `repr` without its middle, and without the digits of a huge number."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value if not isinstance(value, str | tuple) else value[:100])
    return text if len(text) <= 100 else f"{text[:100]}…"
