"""The table of methods, and what is done with an adapter of any of them."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import Adapter, Method, Options
from aligner_jax.peft.aligner import ALIGNER
from aligner_jax.peft.bias import BIAS
from aligner_jax.peft.full import FULL
from aligner_jax.peft.llama_adapter import LLAMA_ADAPTER
from aligner_jax.peft.lora import LORA
from aligner_jax.peft.prefix import PREFIX
from aligner_jax.peft.prompt import PROMPT
from aligner_jax.runtime.fields import parse_section

METHODS: dict[str, Method[Any]] = {
    "aligner": ALIGNER,
    "llama_adapter": LLAMA_ADAPTER,
    "lora": LORA,
    "prompt": PROMPT,
    "prefix": PREFIX,
    "bias": BIAS,
    "full": FULL,
}


def complete_options(
    method: str, config: LlamaConfig | None, options: Mapping[str, Any], *, section: str = ""
) -> Options:
    """Returns the method's options with its defaults filled in, checked against the model where there is one.

    Args:
      options: by name, as a config or a JSON file has them.
      section: of a config that holds them, such as "config.adapter", for errors.

    Raises:
      InputError: an unknown method or option, or a value that the method or the model cannot have.
    """
    if method not in METHODS:
        raise InputError(f"adapter method {method!r} is not one of {', '.join(METHODS)}")
    known = option_names(method)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise InputError(f"adapter method {method!r} has no option {name!r}; {hint}")
    full = parse_section(METHODS[method].options, options, section)
    full.check(config)
    return full


def option_names(method: str) -> tuple[str, ...]:
    """Returns the names of a method's options; the method is a key of `METHODS`."""
    return tuple(sorted(field.name for field in dataclasses.fields(METHODS[method].options)))


def init_adapter(method: str, config: LlamaConfig, key: int | Array = 0, **options: Any) -> Adapter:
    """Returns a fresh adapter for models of this configuration, float32.

    Args:
      method: a key of `METHODS`.
      key: a seed, or a `jax.random.key`.
      **options: of the method; for "aligner" num_tokens (default 1) and start_layer (default 2).

    Raises:
      InputError: an unknown method or option, or a value that the method or the model cannot have.
    """
    return fresh_adapter(method, config, key, complete_options(method, config, options))


def fresh_adapter(method: str, config: LlamaConfig, key: int | Array, options: Options) -> Adapter:
    """Returns what `init_adapter` does, of options that `complete_options` made."""
    key = jax.random.key(key) if isinstance(key, int) else key
    return Adapter(trainable=METHODS[method].init(options, config, key), method=method, options=options)


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """Returns the adapter with its contribution to every layer multiplied: 0 is the base, 1 changes nothing.

    Raises:
      InputError: the method has nothing to multiply, and the strength is not 1.
    """
    multiply = METHODS[adapter.method].with_strength
    if multiply is not None:
        return multiply(adapter, strength)
    if strength != 1:
        raise InputError(f"an adapter of method {adapter.method!r} has no strength to change: it is used as it is")
    return adapter


def has_strength(adapter: Adapter) -> bool:
    """Returns True if `with_strength` can change it: not for prompt and prefix tuning."""
    return METHODS[adapter.method].with_strength is not None
