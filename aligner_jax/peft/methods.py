"""The table of methods, and functions of adapters of any method."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Adapter, Method, Options
from aligner_jax.peft.aligner import ALIGNER
from aligner_jax.peft.bias import BIAS
from aligner_jax.peft.full import FULL
from aligner_jax.peft.llama_adapter import LLAMA_ADAPTER
from aligner_jax.peft.lora import LORA
from aligner_jax.peft.prefix import PREFIX
from aligner_jax.peft.prompt import PROMPT
from aligner_jax.peft.sum import SUM
from aligner_jax.runtime.fields import parse_section

METHODS: dict[str, Method[Any]] = {
    "aligner": ALIGNER,
    "llama_adapter": LLAMA_ADAPTER,
    "lora": LORA,
    "prompt": PROMPT,
    "prefix": PREFIX,
    "bias": BIAS,
    "full": FULL,
    "sum": SUM,
}


def complete_options(
    method: str, config: LlamaConfig | None, options: Mapping[str, Any], *, section: str = ""
) -> Options:
    """Returns the complete options of a method: fills in defaults, and checks them.

    Args:
      method: a key of `METHODS`.
      config: configuration of the model to check against; may be None.
      options: options by name, from a config or a JSON file.
      section: section of the config that holds the options, such as "config.adapter", for error messages.

    Raises:
      InputError: the method or an option is unknown, or a value is invalid for the method or the model.
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
    """Returns the sorted names of a method's options; the method is a key of `METHODS`."""
    return tuple(sorted(field.name for field in dataclasses.fields(METHODS[method].options)))


def init_adapter(method: str, config: LlamaConfig, key: int | Array = 0, **options: Any) -> Adapter:
    """Initializes an adapter for models of this configuration, in float32.

    Args:
      method: a key of `METHODS`.
      config: configuration of the model.
      key: a seed, or a `jax.random.key`.
      **options: options of the method, for example num_tokens (default 1) and start_layer (default 2) of "aligner".

    Raises:
      InputError: the method or an option is unknown, a value is invalid for the method or the model, or the initial
        values are computed from the base's parameters (`fresh_adapter`).
    """
    full = complete_options(method, config, options)
    if full.needs_base:
        raise InputError(
            "init 'words' begins with embeddings of the base: train with config.adapter.init, or call "
            "aligner_jax.peft.methods.fresh_adapter with params=base.params"
        )
    return fresh_adapter(method, config, key, full)


def fresh_adapter(
    method: str, config: LlamaConfig, key: int | Array, options: Options, params: Params | None = None
) -> Adapter:
    """Initializes an adapter like `init_adapter`, with options from `complete_options`.

    Args:
      method: a key of `METHODS`.
      config: configuration of the model.
      key: a seed, or a `jax.random.key`.
      options: complete options of the method.
      params: parameters of the base, for options with `needs_base`; without them, only the arrays' shapes are those of
        an initial adapter.
    """
    key = jax.random.key(key) if isinstance(key, int) else key
    of_base = (params,) if options.needs_base else ()
    return Adapter(trainable=METHODS[method].init(options, config, key, *of_base), method=method, options=options)


def check_fits(adapter: Adapter, config: LlamaConfig) -> None:
    """Raises InputError if the adapter's options or the shapes of its arrays do not fit the model."""
    adapter.options.check(config)
    fitting = METHODS[adapter.method].shapes(adapter.options, config)
    for name, shape in fitting.items():
        if adapter.trainable[name].shape != shape:
            raise InputError(
                f"{name} of this adapter has shape {adapter.trainable[name].shape}, but {shape} fits this base"
            )


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """Multiplies an adapter's effect on every layer.

    Args:
      adapter: an adapter of any method.
      strength: factor; 0 gives the base, 1 changes nothing.

    Raises:
      InputError: the method has no strength (`has_strength`), and the strength is not 1.
    """
    multiply = METHODS[adapter.method].with_strength
    if multiply is not None:
        return multiply(adapter, strength)
    if strength != 1:
        raise InputError(f"an adapter of method {adapter.method!r} has no strength to change: it is used as it is")
    return adapter


def has_strength(adapter: Adapter) -> bool:
    """Returns True if `with_strength` can change the adapter, which it cannot for prompt and prefix tuning."""
    return METHODS[adapter.method].with_strength is not None
