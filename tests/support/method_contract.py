"""The contract of every method. Each function takes a method with random arrays and a folder for files."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.sampler import continue_ids
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.llama import forward
from aligner_jax.model.params import Params
from aligner_jax.objectives import sft
from aligner_jax.peft import (
    METHODS,
    Adapter,
    apply,
    bind,
    complete_options,
    has_strength,
    hidden_states,
    init_adapter,
    with_strength,
)
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.peft.rows import bind_rows, stack_adapters, unstack_adapter
from aligner_jax.peft.together import first_position
from aligner_jax.runtime.roofline import train_step

TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
ADAPTER_B = np.array([2, 0, 0, 1])
apply_jit = jax.jit(apply, static_argnames=("config",))
hidden_jit = jax.jit(hidden_states, static_argnames=("config",))


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with random arrays, a model that supports it, and fixtures of `conftest`."""

    config: LlamaConfig
    params: Params
    adapter: Adapter
    randomized: Callable[..., Adapter]
    pack: Callable


def options_are_what_a_file_says(case: Case, folder: Path) -> None:
    method, options = case.adapter.method, case.adapter.options
    text = json.dumps(options.as_dict(), sort_keys=True)
    assert complete_options(method, None, json.loads(text)) == options
    assert complete_options(method, case.config, {}) == METHODS[method].options()
    assert isinstance(hash(options), int)
    assert str(case.adapter).startswith(f"{method}(")
    with pytest.raises(InputError, match=f"adapter method '{method}' has no option 'nothing'"):
        complete_options(method, None, {"nothing": 1})
    for name, value in options.as_dict().items():
        assert options[name] == value
        with pytest.raises(InputError, match=f"^{name} is an object, but should be "):
            complete_options(method, None, {name: {}})


def shapes_are_those_of_the_arrays(case: Case, folder: Path) -> None:
    fresh = init_adapter(case.adapter.method, case.config, **case.adapter.options.as_dict())
    shapes = METHODS[case.adapter.method].shapes(case.adapter.options, case.config)
    assert {name: x.shape for name, x in fresh.trainable.items()} == shapes
    assert {x.dtype for x in fresh.trainable.values()} == {jnp.dtype("float32")}
    assert all(np.isfinite(x).all() for x in fresh.trainable.values())


def fresh_or_without_strength_it_is_the_base_bit_for_bit(case: Case, folder: Path) -> None:
    config, params, adapter = case.config, case.params, case.adapter
    base = apply_jit(params, None, TOKENS_BT, config=config)
    changed = apply_jit(params, adapter, TOKENS_BT, config=config)
    assert float(jnp.max(jnp.abs(changed - base))) > 1e-3
    if not has_strength(adapter):
        with pytest.raises(InputError, match=f"method '{adapter.method}' has no strength to change"):
            with_strength(adapter, 0.0)
        jax.tree.map(np.testing.assert_array_equal, with_strength(adapter, 1.0).trainable, adapter.trainable)
        return
    fresh = init_adapter(adapter.method, config, **adapter.options.as_dict())
    for same in (fresh, with_strength(adapter, 0.0)):
        np.testing.assert_array_equal(apply_jit(params, same, TOKENS_BT, config=config), base)
    np.testing.assert_array_equal(apply_jit(params, with_strength(adapter, 1.0), TOKENS_BT, config=config), changed)


def decoding_from_a_cache_says_what_the_whole_model_says(case: Case, folder: Path) -> None:
    prompt, new = [int(x) for x in TOKENS_BT[0, :5]], 4
    ids = [
        tokens[0]
        for tokens in continue_ids(
            case.params, case.adapter, [prompt], config=case.config, max_new_tokens=new, sampling=Sampling(),
            tokens_per_call=new,
        )
    ]  # fmt: skip
    logits_btv = apply_jit(case.params, case.adapter, np.asarray([prompt + ids]), config=case.config)
    assert np.asarray(logits_btv[0, len(prompt) - 1 : -1]).argmax(-1).tolist() == ids


def a_packed_document_is_what_it_is_alone(case: Case, folder: Path) -> None:
    documents = [(TOKENS_BT[0, :5].tolist(), [1] * 5), (TOKENS_BT[1, :7].tolist(), [1] * 7)]
    losses = jax.jit(sft.losses, static_argnames=("config",))
    packed, _ = losses(case.params, case.adapter, case.pack([documents], 12), config=case.config)
    alone, _ = losses(case.params, case.adapter, case.pack([[d] for d in documents], 12), config=case.config)
    np.testing.assert_allclose(packed[0, :5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:], alone[1, :7], atol=1e-5)


def the_file_gives_it_back(case: Case, folder: Path) -> None:
    class Base:
        config = case.config
        fingerprint = "f" * 64

    save_adapter(case.adapter, folder / "a.safetensors", base=Base())
    for base in (Base(), None):
        again = load_adapter(folder / "a.safetensors", base)
        assert (again.method, again.options) == (case.adapter.method, case.adapter.options)
        jax.tree.map(np.testing.assert_array_equal, again.trainable, case.adapter.trainable)


def a_row_is_what_it_is_with_its_adapter_alone(case: Case, folder: Path) -> None:
    config, params = case.config, case.params
    adapters = [case.randomized(case.adapter, key) for key in range(3)]
    stacked = stack_adapters(adapters)
    if not METHODS[case.adapter.method].per_row:
        with pytest.raises(InputError, match=f"'{case.adapter.method}' cannot share a batch"):
            bind_rows(stacked, params, config, ADAPTER_B)
        return
    tokens_bt = np.concatenate([TOKENS_BT[:, :10]] * 2)

    @jax.jit
    def together(trainable, adapter_b):
        bound = bind_rows(stacked.replace(trainable=trainable), params, config, adapter_b)
        positions_bt = jnp.arange(10, dtype=jnp.int32)[None] + bound.first_position
        return forward(params, tokens_bt, config=config, adapted=bound.adapted, positions_bt=positions_bt)

    hidden_btd = together(stacked.trainable, ADAPTER_B)
    for row, index in enumerate(ADAPTER_B):
        alone, _ = hidden_jit(params, adapters[index], tokens_bt[row : row + 1], config=config)
        np.testing.assert_allclose(hidden_btd[row], alone[0], atol=1e-5)
        jax.tree.map(
            np.testing.assert_array_equal, unstack_adapter(stacked, index).trainable, adapters[index].trainable
        )
    others = together(jax.tree.map(lambda x: x.at[1].add(1.0), stacked.trainable), ADAPTER_B)
    np.testing.assert_array_equal(others[:3], hidden_btd[:3])
    assert np.abs(others[3] - hidden_btd[3]).max() > 1e-3


def the_cost_counts_the_layers_that_it_adapts(case: Case, folder: Path) -> None:
    method, config = METHODS[case.adapter.method], case.config
    cost = method.cost(case.adapter.options, config)
    bound = jax.eval_shape(lambda: bind(case.adapter, case.params, config))
    # A sum has several parts, and its backward pass ends at the first layer that any of them adapts.
    layers = max((part.layers for part in bound.adapted), key=len)
    adapted = len(layers)
    assert layers == range(cost.start_layer, config.num_layers)
    assert {part.layers.stop for part in bound.adapted} == {config.num_layers}
    tokens = [part.prefix.k_bpkh.shape[2] for part in bound.adapted if part.prefix is not None]
    # Prefixes of one token are constants, so they add no key to those of other prefixes.
    assert cost.num_tokens == (sum(p for p in tokens if p > 1) or max(tokens, default=0))
    assert first_position(case.adapter, case.params, config) == bound.first_position
    step = train_step(config, batch_size=2, sequence_length=12, adapter=cost, trains_base=method.trains_base)
    backward = config.num_layers + adapted * (2 if method.trains_base else 1)
    names = ("layers", "trained base") if method.trains_base else ("layers",)
    head = 2 * 24 * config.vocab_size * config.d_model if method.trains_base else 0
    weights = sum(leaf.size for leaf in jax.tree.leaves(case.params.layers) if leaf.ndim > 2) / config.num_layers
    assert sum(step[name].model_flops for name in names) - head == 2 * 24 * weights * backward


CONTRACT = (
    options_are_what_a_file_says,
    shapes_are_those_of_the_arrays,
    fresh_or_without_strength_it_is_the_base_bit_for_bit,
    decoding_from_a_cache_says_what_the_whole_model_says,
    a_packed_document_is_what_it_is_alone,
    the_file_gives_it_back,
    a_row_is_what_it_is_with_its_adapter_alone,
    the_cost_counts_the_layers_that_it_adapts,
)
