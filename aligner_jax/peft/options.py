"""Checks of options that several methods have."""

from collections.abc import Sequence

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import Options


def check_num_tokens(options: Options) -> None:
    """Raises InputError unless num_tokens is a whole number of at least one."""
    num_tokens = options["num_tokens"]
    if not isinstance(num_tokens, int) or num_tokens < 1:
        raise InputError(f"num_tokens is {num_tokens!r}, but there is at least one token")


def check_start_layer(options: Options, config: LlamaConfig) -> None:
    """Raises InputError unless start_layer is a layer of the model."""
    start_layer = options["start_layer"]
    if not isinstance(start_layer, int) or not 0 <= start_layer < config.num_layers:
        raise InputError(f"start_layer is {start_layer!r}, but the model has layers 0 to {config.num_layers - 1}")


def check_choice(options: Options, name: str, choices: Sequence[object]) -> None:
    """Raises InputError unless the option is one of these."""
    if options[name] not in choices:
        raise InputError(f"{name} is {options[name]!r}, but should be one of {', '.join(map(str, choices))}")


def check_number(options: Options, name: str, *, above: float | None = None, least: float | None = None, below=None):
    """Raises InputError unless the option is a number in this range."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}, which is not a number")
    if above is not None and value <= above:
        raise InputError(f"{name} is {value}, but should be greater than {above}")
    if least is not None and value < least:
        raise InputError(f"{name} is {value}, but should be at least {least}")
    if below is not None and value >= below:
        raise InputError(f"{name} is {value}, but should be less than {below}")


def adapted_layers(options: Options, config: LlamaConfig) -> int:
    """How many layers there are from start_layer on."""
    return config.num_layers - options["start_layer"]
