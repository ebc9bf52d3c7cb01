"""Weighted sums of adapters: what they add is the weighted sum of what each of them adds."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, abstract_params
from aligner_jax.model.quantized import Quantization
from aligner_jax.peft import Adapter, apply, init_adapter, with_strength
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.peft.combine import combine
from aligner_jax.peft.fold import make_fold
from aligner_jax.peft.sum import parts_of

TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
apply_jit = jax.jit(apply, static_argnames=("config",))


class Model(NamedTuple):
    config: LlamaConfig
    params: Params

    def logits(self, adapter) -> np.ndarray:
        return np.asarray(apply_jit(self.params, adapter, TOKENS_BT, config=self.config))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with biases"])
def any_base(request, config: LlamaConfig, random_params) -> Model:
    config = dataclasses.replace(config, qkv_bias=request.param, o_bias=request.param)
    # Their own biases are no part of the adapters.
    return Model(config, jax.tree.map(lambda x: x if x.any() else x + 0.1, random_params(config)))


@pytest.fixture(scope="module")
def base(config: LlamaConfig, params: Params) -> Model:
    return Model(config, params)


@pytest.fixture(scope="module")
def make(config: LlamaConfig, randomized):
    def make(method: str, key: int = 1, **options) -> Adapter:
        return randomized(init_adapter(method, config, **options), key)

    return make


CONSTANTS = {
    "aligners": [("aligner", {"start_layer": 1}), ("aligner", {"start_layer": 0, "gates": "kv_head"})],
    "an aligner and a llama_adapter": [
        ("aligner", {"start_layer": 2}),
        ("llama_adapter", {"num_tokens": 1, "start_layer": 1, "tanh": True}),
    ],
    "an aligner with a gate for each token and a bias": [
        ("aligner", {"num_tokens": 3, "gates": "token", "start_layer": 1}),
        ("bias", {"target": "o", "start_layer": 0}),
    ],
    "an aligner and biases": [
        ("aligner", {"start_layer": 1}),
        ("bias", {"target": "o", "start_layer": 0}),
        ("bias", {"target": "v", "start_layer": 1}),
    ],
}


@pytest.mark.parametrize("methods", CONSTANTS.values(), ids=CONSTANTS)
def test_adapters_of_one_token_become_the_bias_that_adds_both(methods: list, any_base: Model, make):
    adapters = [make(method, key, **options) for key, (method, options) in enumerate(methods)]
    weights = (1, -0.5, 2)
    both = combine(list(zip(adapters, weights, strict=False)), any_base)
    assert both.method == "bias"
    assert both.options.as_dict() == {"start_layer": min(a.options["start_layer"] for a in adapters), "target": "o"}
    scaled = [with_strength(adapter, weight) for adapter, weight in zip(adapters, weights, strict=False)]
    expected = any_base.logits(scaled)
    assert np.abs(expected - any_base.logits(adapters[0])).max() > 1e-2
    np.testing.assert_allclose(any_base.logits(both), expected, atol=2e-5)


def test_the_sum_of_two_aligners_is_what_both_fold_to(base: Model, make):
    adapters = [make("aligner", 1, start_layer=1), make("aligner", 2, start_layer=2)]
    both = combine([(adapter, 1) for adapter in adapters], base)
    fold = make_fold(adapters, base.config)
    for layer, bias_d in enumerate(both.trainable["o_bias_ld"], 1):
        inputs = {name: np.asarray(getattr(base.params.layers, name)[layer]) for name in fold.needs["o_bias_ld"]}
        np.testing.assert_allclose(bias_d, fold.leaf("o_bias_ld", layer, inputs), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_tokens": 3}], ids=["one token", "three tokens"])
def test_the_ends_of_an_interpolation_are_its_adapters(options: dict, base: Model, make):
    one, other = make("aligner", 1, **options), make("aligner", 2, **options)
    for weight, end in ((0, one), (1, other)):
        between = combine([(one, 1 - weight), (other, weight)], base)
        assert (between.method, between.options) == (end.method, end.options)
        jax.tree.map(np.testing.assert_array_equal, between.trainable, end.trainable)
    middle = combine([(one, 0.5), (other, 0.5)], base)
    expected = base.logits([with_strength(one, 0.5), with_strength(other, 0.5)])
    np.testing.assert_allclose(base.logits(middle), expected, atol=2e-5)


def test_one_adapter_is_multiplied(base: Model, make):
    one = make("aligner")
    minus = combine([(one, -1)])
    np.testing.assert_array_equal(minus.trainable["gates_ln"], -one.trainable["gates_ln"])
    np.testing.assert_array_equal(minus.trainable["tokens_pd"], one.trainable["tokens_pd"])
    nothing = combine([(one, 0), (make("lora"), 0.0)])
    np.testing.assert_array_equal(base.logits(nothing), base.logits(None))
    half = combine([(jax.tree.map(lambda x: x.astype("bfloat16"), one), 1 / 3)])
    exact = one.trainable["gates_ln"].astype("bfloat16").astype("float32") / 3
    np.testing.assert_allclose(half.trainable["gates_ln"], exact, rtol=1e-6)


@pytest.mark.parametrize("target", ["o", "v"])
def test_biases_of_one_projection_are_added_without_a_base(target: str, make):
    low, high = make("bias", 1, target=target, start_layer=0), make("bias", 2, target=target, start_layer=2)
    difference = combine([(low, 1), (high, -1)])
    (name,) = difference.trainable
    expected = np.array(low.trainable[name])
    expected[2:] -= np.asarray(high.trainable[name])
    assert difference.options == low.options
    np.testing.assert_array_equal(difference.trainable[name], expected)


def test_loras_become_one_with_all_ranks(base: Model, make):
    one = make("lora", 1, rank=2, alpha=3, targets=("v", "down"), dropout=0.5)
    other = make("lora", 2, rank=3, alpha=5, targets=("o", "v"), rslora=True)
    both = combine([(one, 1), (other, -0.5)])
    assert both.options.as_dict() == {
        "rank": 5, "alpha": 5, "targets": ("v", "o", "down"), "dropout": 0.0, "rslora": False,
    }  # fmt: skip
    products = [
        np.einsum("ldr,lrkh->ldkh", *(np.asarray(each.trainable[name], np.float64) for name in ("a_v_ldr", "b_v_lrkh")))
        for each in (one, other, both)
    ]
    np.testing.assert_allclose(products[2], 3 / 2 * products[0] - 0.5 * 5 / 3**0.5 * products[1], atol=1e-6)
    np.testing.assert_allclose(base.logits(both), base.logits([one, with_strength(other, -0.5)]), atol=1e-4)


def test_differences_of_full_fine_tuning_are_added(make):
    one, other = make("full", 1), make("full", 2)
    both = combine([(one, 2), (other, -1)])
    assert both.method == "full"
    for name, x in both.trainable.items():
        np.testing.assert_allclose(x, 2 * one.trainable[name] - other.trainable[name], atol=1e-6)


MIXED = {
    "prefixes": [("aligner", {"num_tokens": 3}), ("aligner", {"start_layer": 1}), ("llama_adapter", {"num_tokens": 2})],
    "kinds": [("bias", {"target": "v", "start_layer": 1}), ("lora", {"rank": 2}), ("aligner", {"num_tokens": 2})],
}


@pytest.mark.parametrize("methods", MIXED.values(), ids=MIXED)
def test_others_are_side_by_side(methods: list, base: Model, make):
    adapters = [make(method, key, **options) for key, (method, options) in enumerate(methods)]
    weights = (1, -0.5, 2)
    together = combine(list(zip(adapters, weights, strict=True)), base)
    assert together.method == "sum"
    # Aligners come first, so that each projects its tokens with the base's weights.
    scaled = [with_strength(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True)]
    expected = base.logits(sorted(scaled, key=lambda each: each.method in ("bias", "lora")))
    np.testing.assert_allclose(base.logits(together), expected, atol=2e-5)
    kept = next(each for each in parts_of(together) if each.options == adapters[0].options)
    jax.tree.map(np.testing.assert_array_equal, kept.trainable, adapters[0].trainable)


def test_a_sum_is_combined_by_its_parts(base: Model, make):
    one, other, third = make("aligner", 1, num_tokens=2), make("lora", 2), make("aligner", 3, num_tokens=3)
    inner = combine([(one, 1), (other, -1)])
    outer = combine([(inner, 0.5), (third, 1)])
    assert [each.options for each in parts_of(outer)] == [one.options, third.options, other.options]
    np.testing.assert_array_equal(
        parts_of(outer)[2].trainable["b_v_lrkh"], np.float32(-0.5) * other.trainable["b_v_lrkh"]
    )
    assert combine([(inner, 1)]) is inner


def test_a_sum_is_folded_if_all_parts_are(base: Model, make):
    one, lora = make("aligner", 1), make("lora", 2, targets=("v", "o"))
    both = combine([(one, 1), (lora, 1)])
    fold, alone = make_fold([both], base.config), make_fold([one, lora], base.config)
    assert fold.needs == alone.needs
    inputs = {name: np.asarray(getattr(base.params.layers, name)[2]) for name in fold.needs["o_bias_ld"]}
    np.testing.assert_array_equal(fold.leaf("o_bias_ld", 2, inputs), alone.leaf("o_bias_ld", 2, inputs))
    with pytest.raises(InputError, match="has 3 prefix tokens"):
        make_fold([combine([(both, 1), (make("aligner", 3, num_tokens=3), 1)])], base.config)


def test_what_has_no_sum_is_refused(base: Model, config: LlamaConfig, make, randomized):
    one = make("aligner")

    def refused(parts, sentence, base=None):
        with pytest.raises(InputError, match=sentence):
            combine(parts, base)

    refused([], "there are no adapters to combine")
    refused([(one, float("nan"))], "weight of an adapter is nan")
    refused([(one, "1")], "weight of an adapter is '1'")
    refused([(one, 1), (make("aligner", 2), 1)], "computed with the base's projections: give the base")
    for method in ("prompt", "prefix"):
        refused([(one, 1), (make(method), 1)], f"'{method}' shares the text's softmax")
        refused([(make(method), 2)], "has no strength")
    refused([(one, 1), (make("full"), 1)], "'full' is only combined with others of this method")
    quantized = Model(config, abstract_params(config, "float32", Quantization("int8")))
    refused([(one, 1), (make("aligner", 2), 1)], "the base is quantized", quantized)

    for change in ({"d_model": 32}, {"num_layers": 4}):
        larger = dataclasses.replace(config, **change)
        for method in ("bias", "lora", "full"):
            other = randomized(init_adapter(method, larger))
            refused([(make(method), 1), (other, 1)], "models of different shapes")
            refused([(other, 1)], "fits this base", base)
    # The first model's arrays are all there; the second has more.
    other = randomized(init_adapter("full", dataclasses.replace(config, qkv_bias=True)))
    refused([(make("full"), 1), (other, 1)], "models of different shapes")


def test_the_sum_of_fresh_adapters_is_the_base_bit_for_bit(base: Model, config: LlamaConfig):
    fresh = [(init_adapter("aligner", config, key), 1.0) for key in range(2)]
    np.testing.assert_array_equal(base.logits(combine(fresh, base)), base.logits(None))
    assert not jnp.any(combine(fresh, base).trainable["o_bias_ld"])


def test_a_file_without_a_base_is_checked_part_by_part(make, tmp_path: Path):
    parts = make("llama_adapter", 1, num_tokens=2, start_layer=1), make("aligner", 2, num_tokens=3, start_layer=2)
    both = combine([(part, 1) for part in parts])
    save_adapter(both, tmp_path / "sum.safetensors")
    again = load_adapter(tmp_path / "sum.safetensors")
    assert again.options == both.options
    jax.tree.map(np.testing.assert_array_equal, again.trainable, both.trainable)
    # Tokens of two layers, but gates of three.
    gates_ln = jnp.ones((3, 4))
    wrong = both.replace(trainable={**both.trainable, "llama_adapter_0/gates_ln": gates_ln})
    save_adapter(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=r"'llama_adapter_0/(gates_ln|tokens_lpd)' has shape"):
        load_adapter(tmp_path / "wrong.safetensors")
