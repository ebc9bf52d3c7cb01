"""Adapters: one method a file (`methods.METHODS`), and what is done with an adapter of any method."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from aligner_jax.data.token_ids import check_ids
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params, Remat, forward, unembed
from aligner_jax.peft.adapter import Adapter, Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.methods import METHODS
from aligner_jax.peft.rows import bind_rows
from aligner_jax.peft.together import bind_together


def init_adapter(method: str, config: LlamaConfig, key: int | Array = 0, **options: Any) -> Adapter:
    """A fresh adapter for models of this configuration, float32.

    Args:
      method: a key of `METHODS`.
      key: a seed, or a `jax.random.key`.
      **options: of the method, see its DEFAULTS; for "aligner" num_tokens (default 1) and start_layer (default 2).

    Raises:
      InputError: an unknown method or option, or a value that the model cannot have.
    """
    full = complete_options(method, config, options)
    key = jax.random.key(key) if isinstance(key, int) else key
    return Adapter(trainable=METHODS[method].init(full, config, key), method=method, options=full)


def complete_options(method: str, config: LlamaConfig | None, options: dict[str, Any]) -> Options:
    """The options with the method's defaults filled in, checked against the model, where there is one.

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


def bind(
    adapter: Adapter | Sequence[Adapter] | None,
    params: Params,
    config: LlamaConfig,
    *,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns an adapter bound to a base; of None, a `Bound` that changes nothing.

    Args:
      adapter: several are applied together, see `bind_together`.
      dropout_key: a `jax.random.key` of this training step, for methods with dropout; None drops nothing.
    """
    if adapter is None:
        return Bound()
    if not isinstance(adapter, Adapter):
        return bind_together(adapter, params, config, dropout_key=dropout_key)
    return METHODS[adapter.method].bind(adapter.trainable, adapter.options, params, config, dropout_key)


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """The same adapter with its contribution to every layer multiplied: 0 is the base, 1 changes nothing.

    Raises:
      InputError: the method has nothing to multiply, and the strength is not 1.
    """
    if not has_strength(adapter) and strength != 1:
        raise InputError(f"an adapter of method {adapter.method!r} has no strength to change: it is used as it is")
    if adapter.options.as_dict().get("tanh") and strength != 1:
        # What is multiplied is the gate as it weighs.
        gates = {name: jnp.tanh(x) if name.startswith("gates") else x for name, x in adapter.trainable.items()}
        options = Options.of(**{**adapter.options.as_dict(), "tanh": False})
        adapter = adapter.replace(trainable=gates, options=options)
    multiplied = METHODS[adapter.method].STRENGTH
    scale = {name: strength if name.startswith(multiplied) else 1 for name in adapter.trainable}
    return adapter.replace(trainable={name: x * scale[name] for name, x in adapter.trainable.items()})


def has_strength(adapter: Adapter) -> bool:
    """Whether `with_strength` can change it: not for prompt and prefix tuning."""
    return bool(METHODS[adapter.method].STRENGTH)


def hidden_states(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
    remat: Remat = "none",
    dropout_key: Array | None = None,
    adapter_b: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, "b t d"], Params]:
    """Hidden states after the final norm of the adapted model, and the parameters whose head belongs to them.

    The arguments are those of `llama.forward`, `bind` and, where the adapter is a stack of many, `bind_rows`.

    Raises:
      InputError: adapter_b is given with adapters that are applied together.
    """
    if adapter is not None and adapter_b is not None:
        if not isinstance(adapter, Adapter):
            raise InputError("adapter_b chooses from one stack of adapters, not from adapters applied together")
        bound = bind_rows(adapter, params, config, adapter_b, dropout_key=dropout_key)
    else:
        bound = bind(adapter, params, config, dropout_key=dropout_key)
    params = bound.on(params)
    if bound.first_position:
        if positions_bt is None:
            positions_bt = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
        positions_bt = positions_bt + bound.first_position
    hidden_btd = forward(
        params,
        tokens_bt,
        config=config,
        adapted=bound.adapted,
        segment_ids_bt=segment_ids_bt,
        positions_bt=positions_bt,
        remat=remat,
    )
    return hidden_btd, params


def apply(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t v"]:
    """Next-token logits in float32 of the base with an adapter, or with several; with None, of the base alone.

    A pure function of params, adapter.trainable and tokens: `jax.grad`, `jax.vmap` and `jax.jit` work on it.

    Args:
      tokens_bt: token ids. Within `jax.jit` they cannot be checked, and ids beyond the embedding are others' there.
      segment_ids_bt: document numbers of packed rows; give positions_bt with them.
      positions_bt: rotary positions; default 0, 1, … along the row.

    Raises:
      InputError: a token is negative or has no embedding.
    """
    _check_tokens(tokens_bt, config)
    hidden_btd, params = hidden_states(
        params, adapter, tokens_bt, config=config, segment_ids_bt=segment_ids_bt, positions_bt=positions_bt
    )
    return unembed(params, hidden_btd)


def _check_tokens(tokens_bt: Int[Array, "b t"], config: LlamaConfig) -> None:
    known = not isinstance(tokens_bt, Tracer) and getattr(tokens_bt, "is_fully_addressable", True)
    if known and tokens_bt.size:
        ids_bt = jax.device_get(tokens_bt)
        check_ids([int(ids_bt.min()), int(ids_bt.max())], config.vocab_size, what="the array of tokens")


__all__ = [
    "METHODS",
    "Adapter",
    "Bound",
    "Options",
    "apply",
    "bind",
    "bind_together",
    "complete_options",
    "has_strength",
    "hidden_states",
    "init_adapter",
    "with_strength",
]
