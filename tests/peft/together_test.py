"""Several adapters at once, each over the weights that the ones before it changed."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.llama import abstract_params, forward
from aligner_jax.model.params import Params
from aligner_jax.peft import apply, bind, hidden_states, init_adapter
from aligner_jax.peft.lora import TARGETS

TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
apply_jit = jax.jit(apply, static_argnames=("config",))


@pytest.fixture(scope="module")
def lora(config: LlamaConfig, randomized):
    return randomized(init_adapter("lora", config, rank=2, alpha=4, targets=tuple(TARGETS)))


@pytest.fixture(scope="module")
def aligner(config: LlamaConfig, randomized):
    return randomized(init_adapter("aligner", config, num_tokens=3, start_layer=2), 1)


def merged(params: Params, lora) -> Params:
    weights = {}
    for target, field in TARGETS.items():
        a, b = (next(x for name, x in lora.trainable.items() if name.startswith(f"{side}_{target}_")) for side in "ab")
        product = np.einsum("lir,lro->lio", a.reshape(len(a), -1, 2), b.reshape(len(b), 2, -1))
        weight = getattr(params.layers, field)
        weights[field] = weight + 2 * product.reshape(weight.shape)
    return params.replace(layers=params.layers.replace(**weights))


def test_an_aligner_after_a_lora_is_the_aligner_over_the_merged_weights(config, params, lora, aligner):
    both = apply_jit(params, (lora, aligner), TOKENS_BT, config=config)
    np.testing.assert_allclose(both, apply_jit(merged(params, lora), aligner, TOKENS_BT, config=config), atol=1e-4)
    for one in (lora, aligner, (aligner, lora)):
        assert np.abs(both - apply_jit(params, one, TOKENS_BT, config=config)).max() > 1e-3


def test_an_aligner_before_a_lora_has_the_prefix_of_the_base(config, params, lora, aligner):
    (prefix_of_base,) = bind(aligner, params, config).adapted
    hidden_btd = forward(merged(params, lora), TOKENS_BT, config=config, adapted=(prefix_of_base,))
    both_btd, _ = hidden_states(params, (aligner, lora), TOKENS_BT, config=config)
    np.testing.assert_allclose(both_btd, hidden_btd, atol=2e-5)


def test_at_gate_0_the_aligner_adds_nothing_bit_for_bit(config, params, lora):
    fresh = init_adapter("aligner", config, num_tokens=3, start_layer=2)
    both = apply_jit(params, (lora, fresh), TOKENS_BT, config=config)
    np.testing.assert_array_equal(both, apply_jit(params, lora, TOKENS_BT, config=config))


def test_two_loras_are_the_sum_of_their_products(config, params, lora, randomized):
    other = randomized(init_adapter("lora", config, rank=2, alpha=4, targets=tuple(TARGETS)), 5)
    expected = apply_jit(merged(merged(params, lora), other), None, TOKENS_BT, config=config)
    np.testing.assert_allclose(apply_jit(params, (lora, other), TOKENS_BT, config=config), expected, atol=1e-4)


@pytest.mark.parametrize("order", [("bias", "lora", "aligner"), ("lora", "bias", "aligner"), ("full", "lora", "bias")])
def test_ranges_that_differ_run_in_segments(config, params, lora, aligner, randomized, order):
    bias = randomized(init_adapter("bias", config, target="v", start_layer=1), 2)
    full = randomized(init_adapter("full", config), 3)
    adapters = {"bias": bias, "lora": lora, "aligner": aligner, "full": full}
    base = params
    if "full" in order:
        base = jax.tree_util.tree_map_with_path(lambda p, x: x + full.trainable[".".join(k.name for k in p)], base)
    base = merged(base, lora)
    shift_lkh = jnp.pad(bias.trainable["v_bias_lkh"], ((1, 0), (0, 0), (0, 0)))
    base = base.replace(layers=base.layers.replace(v_bias_lkh=shift_lkh))
    expected = apply_jit(base, aligner if "aligner" in order else None, TOKENS_BT, config=config)
    together = apply_jit(params, tuple(adapters[name] for name in order), TOKENS_BT, config=config)
    np.testing.assert_allclose(together, expected, atol=1e-4)


def test_the_gradient_of_each_is_that_of_the_formula(config, params, aligner, randomized):
    lora = randomized(init_adapter("lora", config, rank=2, alpha=2, targets=("v",)))

    def loss(trainables, adapters_of):
        base, adapters = adapters_of(*trainables)
        return jnp.sum(jnp.sin(apply(base, adapters, TOKENS_BT, config=config)))

    def together(lora_arrays, aligner_arrays):
        return params, (lora.replace(trainable=lora_arrays), aligner.replace(trainable=aligner_arrays))

    def formula(lora_arrays, aligner_arrays):
        change = jnp.einsum("ldr,lrkh->ldkh", lora_arrays["a_v_ldr"], lora_arrays["b_v_lrkh"])
        layers = params.layers.replace(v_ldkh=params.layers.v_ldkh + change)
        return params.replace(layers=layers), aligner.replace(trainable=aligner_arrays)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    arrays = lora.trainable, aligner.trainable
    actual, expected = gradient(arrays, together), gradient(arrays, formula)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)


def test_the_backward_pass_ends_at_the_first_layer_that_any_of_them_adapts(config: LlamaConfig):
    def numbers_kept(num_layers: int, starts: tuple[int, int]) -> int:
        deep = dataclasses.replace(config, num_layers=num_layers)
        methods = zip(("bias", "aligner"), starts, strict=True)
        adapters = [init_adapter(method, deep, start_layer=start) for method, start in methods]

        def kept(trainables, params):
            def function(trainables):
                pairs = zip(adapters, trainables, strict=True)
                bound = bind([adapter.replace(trainable=x) for adapter, x in pairs], params, deep)
                return forward(params, TOKENS_BT, config=deep, adapted=bound.adapted, remat="full")

            return jax.vjp(function, trainables)[1]

        params = abstract_params(deep)
        weights = {x.shape for x in jax.tree.leaves(params)}
        shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(kept, [a.trainable for a in adapters], params))]
        return sum(math.prod(shape) for shape in shapes if shape not in weights)

    assert numbers_kept(4, (2, 3)) == numbers_kept(7, (5, 6)) > 0
    assert numbers_kept(7, (5, 6)) < numbers_kept(7, (4, 6))


def test_two_aligners_add_two_softmaxes(config, params, aligner, randomized):
    other = randomized(init_adapter("aligner", config, num_tokens=2, start_layer=1), 6)
    parts = [bind(each, params, config).adapted[0] for each in (aligner, other)]
    expected = forward(params, TOKENS_BT, config=config, adapted=parts, implementation="xla")
    both, _ = hidden_states(params, (aligner, other), TOKENS_BT, config=config)
    np.testing.assert_allclose(both, expected, atol=2e-5)
    # A sum, so the order does not matter.
    swapped, _ = hidden_states(params, (other, aligner), TOKENS_BT, config=config)
    np.testing.assert_allclose(both, swapped, atol=2e-5)
    for one in (aligner, other):
        alone, _ = hidden_states(params, one, TOKENS_BT, config=config)
        assert np.abs(both - alone).max() > 1e-3


def test_what_cannot_be_together_is_refused(config, params, aligner, randomized):
    soft, joint = init_adapter("prompt", config, num_tokens=2), init_adapter("prefix", config, num_tokens=2)
    with pytest.raises(InputError, match=r"^2 adapters have prefixes .* apply one of them only"):
        apply(params, (aligner, soft, joint), TOKENS_BT, config=config)
    with pytest.raises(InputError, match="not from adapters applied together"):
        hidden_states(params, (aligner,), TOKENS_BT, config=config, adapter_b=np.zeros(2, np.int32))


def test_none_of_them_and_one_of_them(config, params, aligner):
    base, alone = (apply_jit(params, a, TOKENS_BT, config=config) for a in (None, aligner))
    np.testing.assert_array_equal(apply_jit(params, (), TOKENS_BT, config=config), base)
    np.testing.assert_array_equal(apply_jit(params, (aligner,), TOKENS_BT, config=config), alone)
