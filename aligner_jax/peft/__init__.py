"""Adapters: one method a file, each with DEFAULTS, STRENGTH and the same four functions (check, shapes, init, bind)."""

import difflib
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix
from aligner_jax.model.llama import LlamaConfig, Params, Remat, forward, unembed
from aligner_jax.peft import aligner
from aligner_jax.peft.adapter import Adapter, Options

METHODS: dict[str, ModuleType] = {"aligner": aligner}


def init_adapter(method: str, config: LlamaConfig, key: int | Array = 0, **options: Any) -> Adapter:
    """A fresh adapter for models of this configuration, float32.

    Args:
      method: a key of `METHODS`.
      key: a seed, or a `jax.random.key`.
      **options: of the method; for "aligner" num_tokens (default 1) and start_layer (default 2).

    Raises:
      InputError: an unknown method or option, or a value that the model cannot have.
    """
    full = complete_options(method, config, options)
    key = jax.random.key(key) if isinstance(key, int) else key
    return Adapter(trainable=METHODS[method].init(full, config, key), method=method, options=full)


def complete_options(method: str, config: LlamaConfig, options: dict[str, Any]) -> Options:
    """The options with the method's defaults filled in, checked against the model.

    Raises:
      InputError: an unknown method or option, or a value that the model cannot have.
    """
    if method not in METHODS:
        raise InputError(f"adapter method {method!r} is not one of {', '.join(METHODS)}")
    defaults = METHODS[method].DEFAULTS
    for name in options:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(defaults)}"
            raise InputError(f"adapter method {method!r} has no option {name!r}{hint}")
    full = Options.of(**{**defaults, **options})
    METHODS[method].check(full, config)
    return full


def bind(adapter: Adapter | None, params: Params, config: LlamaConfig) -> Prefix | None:
    """What the model needs to know of an adapter: its prefix, through this base's projections. None stays None."""
    if adapter is None:
        return None
    return METHODS[adapter.method].bind(adapter.trainable, adapter.options, params, config)


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """The same adapter with its contribution to every layer multiplied: 0 is the base, 1 changes nothing."""
    name = METHODS[adapter.method].STRENGTH
    return adapter.replace(trainable={**adapter.trainable, name: adapter.trainable[name] * strength})


def hidden_states(
    params: Params,
    adapter: Adapter | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
    remat: Remat = "none",
) -> Float[Array, "b t d"]:
    """Hidden states after the final norm of the adapted model; the arguments are those of `llama.forward`."""
    return forward(
        params,
        tokens_bt,
        config=config,
        prefix=bind(adapter, params, config),
        segment_ids_bt=segment_ids_bt,
        positions_bt=positions_bt,
        remat=remat,
    )


def apply(
    params: Params,
    adapter: Adapter | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t v"]:
    """Next-token logits in float32 of the base with an adapter; with None, of the base alone.

    A pure function of params, adapter.trainable and tokens: `jax.grad`, `jax.vmap` and `jax.jit` work on it.

    Args:
      tokens_bt: token ids.
      segment_ids_bt: document numbers of packed rows; give positions_bt with them.
      positions_bt: rotary positions; default 0, 1, … along the row.
    """
    hidden_btd = hidden_states(
        params, adapter, tokens_bt, config=config, segment_ids_bt=segment_ids_bt, positions_bt=positions_bt
    )
    return unembed(params, hidden_btd)


__all__ = [
    "METHODS",
    "Adapter",
    "Options",
    "apply",
    "bind",
    "complete_options",
    "hidden_states",
    "init_adapter",
    "with_strength",
]
