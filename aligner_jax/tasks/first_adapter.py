"""Initial adapter of a run: fresh or from a file; a stack of adapters for a sweep."""

import functools

import jax

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, Adapter, Options, complete_options
from aligner_jax.peft.artifact import load_adapter, read_shapes
from aligner_jax.peft.methods import fresh_adapter, option_names
from aligner_jax.peft.rows import stack_adapters
from aligner_jax.runtime import optim
from aligner_jax.runtime.command import Choice
from aligner_jax.runtime.config import AdapterConfig, TrainConfig
from aligner_jax.weights.base import Base

_SECTION = "config.adapter"


def method_choice() -> Choice:
    """Returns the adapter section as a `Choice`: `command.load_config` drops options that a new method lacks."""
    return Choice("adapter", "method", AdapterConfig.method, {name: option_names(name) for name in METHODS})


def first_adapter(config: TrainConfig, model: LlamaConfig, base: Base | None = None) -> Adapter:
    """Returns the initial adapter, or the sweep's stack of adapters, in the dtype of the optimizer state.

    Args:
      model: architecture of the base.
      base: the base that the saved adapter of `config.adapter.init_from` is checked against. If None, a fresh adapter
        of the same shapes is returned in its place, which is enough for planning.

    Raises:
      InputError: the model does not support the options, or the saved adapter has a different method or options; for
        other causes see `check_adapter`.
    """
    check_adapter(config)
    one = functools.partial(_one, config, model, base)
    num_adapters = config.sweep.num_adapters
    seeds = config.sweep.seed or (config.seed,) * (num_adapters or 1)
    adapter = one(config.seed) if num_adapters is None else stack_adapters([one(seed) for seed in seeds])
    return adapter.replace(trainable=optim.to_state_dtype(adapter.trainable, config.optim))


def first_adapter_shapes(config: TrainConfig, model: LlamaConfig) -> Adapter:
    """Returns the initial adapter of a run, with `jax.ShapeDtypeStruct`s in place of arrays."""
    return jax.eval_shape(lambda: first_adapter(config, model))


def check_adapter(config: TrainConfig) -> None:
    """Refuses an invalid adapter method or options, before anything is loaded.

    Raises:
      InputError: the method or an option is unknown, or the method supports no quantized base or no sweep.
    """
    name = config.adapter.method
    complete_options(name, None, config.adapter.options, section=_SECTION)
    if METHODS[name].trains_base and config.base.quantization != "none":
        raise InputError(
            f"config.base.quantization is {config.base.quantization!r}, but an adapter of method {name!r} changes all "
            "weights: it needs 'none'"
        )
    if not METHODS[name].per_row and config.sweep.num_adapters:
        raise InputError(f"config.sweep is set, but adapters of method {name!r} cannot share a batch")


def _one(config: TrainConfig, model: LlamaConfig, base: Base | None, seed: int) -> Adapter:
    method, path = config.adapter.method, config.adapter.init_from
    wanted = complete_options(method, model, config.adapter.options, section=_SECTION)
    if base is None or path is None:
        return fresh_adapter(method, model, seed, wanted, None if base is None else base.params)
    adapter = load_adapter(path, base)
    _check_configured(adapter, path, method, wanted)
    return adapter


def check_saved(config: TrainConfig, model: LlamaConfig) -> None:
    """Refuses a saved adapter that the run cannot begin with; reads its header only.

    Args:
      model: architecture of the base.

    Raises:
      InputError: see `first_adapter`; the base's fingerprint is not checked.
    """
    method, path = config.adapter.method, config.adapter.init_from
    wanted = complete_options(method, model, config.adapter.options, section=_SECTION)
    if path is not None:
        _check_configured(read_shapes(path, model), path, method, wanted)


def _check_configured(adapter: Adapter, path: str, method: str, wanted: Options) -> None:
    if (adapter.method, adapter.options) != (method, wanted):
        configured = adapter.replace(method=method, options=wanted)
        raise InputError(f"config.adapter.init_from, {path}, is {adapter}, but config.adapter is {configured}")
