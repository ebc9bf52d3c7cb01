"""Folded weights compute what the adapter does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aligner_jax as aj
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, init_params
from aligner_jax.model.params import Layers, Params
from aligner_jax.peft.fold import Fold, Unfoldable, make_fold
from aligner_jax.weights.leaves import leaf_specs

CONFIG = LlamaConfig(
    vocab_size=61, d_model=32, d_mlp=48, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, context_length=64
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 12)), jnp.int32)


def trained(method: str, config=CONFIG, **options) -> aj.Adapter:
    """Returns an adapter with random arrays in place of the initial ones."""
    adapter = aj.init_adapter(method, config, key=1, **options)
    rng = np.random.default_rng(2)
    return adapter.replace(
        trainable={
            name: jnp.asarray(0.15 * rng.normal(size=x.shape), jnp.float32) for name, x in adapter.trainable.items()
        }
    )


def folded(fold: Fold, params: Params) -> Params:
    """Returns all parameters of the folded base."""
    base = {**vars(params), **vars(params.layers)}
    leaves = {name: base.get(name) for name in leaf_specs(fold.folded_config)}
    for name, used in fold.needs.items():
        if name not in {field.name for field in dataclasses.fields(Layers)}:
            leaves[name] = jnp.asarray(fold.leaf(name, None, {each: np.asarray(base[each]) for each in used}))
            continue
        layers = [
            fold.leaf(name, layer, {each: np.asarray(base[each][layer]) for each in used})
            for layer in range(fold.config.num_layers)
        ]
        leaves[name] = jnp.stack(layers)
    for name, spec in leaf_specs(fold.folded_config).items():
        leaves[name] = jnp.zeros(spec.shape) if leaves[name] is None else leaves[name]
    layers = Layers(**{field.name: leaves.pop(field.name, None) for field in dataclasses.fields(Layers)})
    return Params(layers=layers, **leaves)


CASES = [
    ([("aligner", {})], "o", {"o_bias_ld": {"v_ldkh", "o_lnhd"}}),
    ([("aligner", {"start_layer": 0, "gates": "global"})], "v", {"v_bias_lkh": {"v_ldkh"}}),
    ([("aligner", {"gates": "kv_head"})], "v", {"v_bias_lkh": {"v_ldkh"}}),
    ([("aligner", {"gates": "shared_heads", "tokens": "head"})], "o", {"o_bias_ld": {"v_ldkh", "o_lnhd"}}),
    ([("aligner", {"num_tokens": 3, "gates": "token"})], "o", {"o_bias_ld": {"v_ldkh", "o_lnhd"}}),
    ([("llama_adapter", {"num_tokens": 1})], "o", {"o_bias_ld": {"v_ldkh", "o_lnhd"}}),
    ([("bias", {"target": "o", "start_layer": 1})], "o", {"o_bias_ld": set()}),
    ([("bias", {"target": "v", "start_layer": 1})], "o", {"v_bias_lkh": set()}),
    (
        [("lora", {"rank": 2, "targets": ("q", "o", "down"), "dropout": 0.0})],
        "o",
        {"q_ldnh": {"q_ldnh"}, "o_lnhd": {"o_lnhd"}, "down_lfd": {"down_lfd"}},
    ),
    (
        [("lora", {"rank": 2, "targets": ("v", "o"), "dropout": 0.0}), ("aligner", {})],
        "o",
        {"v_ldkh": {"v_ldkh"}, "o_lnhd": {"o_lnhd"}, "o_bias_ld": {"v_ldkh", "o_lnhd"}},
    ),
    ([("aligner", {"start_layer": 1}), ("bias", {"target": "o"})], "o", {"o_bias_ld": {"v_ldkh", "o_lnhd"}}),
]


NAMES = [
    f"{' and '.join(str(each) for each in methods)} into {target}".translate({ord(c): "" for c in "{}[]()'"})
    for methods, target, _ in CASES
]


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "with biases"])
@pytest.mark.parametrize(("methods", "target", "needs"), CASES, ids=NAMES)
def test_folded_weights_have_the_adapters_logits(methods, target, needs, biases):
    config = dataclasses.replace(CONFIG, qkv_bias=biases, o_bias=biases)
    params = init_params(config, 3)
    params = jax.tree.map(lambda x: x if x.any() else x + 0.1, params)
    adapters = [trained(method, config, **options) for method, options in methods]
    fold = make_fold(adapters, config, target)
    if not biases:
        assert fold.needs == needs
    after = folded(fold, params)
    expected = aj.apply(params, adapters, TOKENS, config=config)
    base = aj.apply(params, None, TOKENS, config=config)
    found = aj.apply(after, None, TOKENS, config=fold.folded_config)
    assert np.abs(expected - base).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gates_of_tokens_fold_into_the_values_if_the_heads_of_a_kv_head_share_them():
    adapter, params = trained("aligner", num_tokens=3, gates="token", start_layer=1), init_params(CONFIG, 3)
    with pytest.raises(Unfoldable, match=r"gates of their own \(gates='token'\)"):
        make_fold([adapter], CONFIG, "v")
    gates_lpk = adapter.trainable["gates_lpn"][..., : CONFIG.num_kv_heads]
    shared = jnp.repeat(gates_lpk, CONFIG.group_size, axis=-1)
    adapter = adapter.replace(trainable={**adapter.trainable, "gates_lpn": shared})
    fold = make_fold([adapter], CONFIG, "v")
    found = aj.apply(folded(fold, params), None, TOKENS, config=fold.folded_config)
    np.testing.assert_allclose(found, aj.apply(params, adapter, TOKENS, config=CONFIG), atol=2e-5)


def test_full_fine_tuning_changes_every_leaf():
    params, adapter = init_params(CONFIG, 3), trained("full")
    fold = make_fold([adapter], CONFIG)
    assert fold.needs == {name: {name} for name in leaf_specs(CONFIG)}
    found = aj.apply(folded(fold, params), None, TOKENS, config=CONFIG)
    np.testing.assert_allclose(found, aj.apply(params, adapter, TOKENS, config=CONFIG), atol=2e-4)


def test_a_layer_below_the_first_adapted_one_is_left_alone():
    fold = make_fold([trained("aligner", start_layer=2)], CONFIG)
    assert not fold.leaf("o_bias_ld", 1, {name: np.ones((2, 2)) for name in fold.needs["o_bias_ld"]}).any()


@pytest.mark.parametrize(
    ("method", "options", "target", "reason"),
    [
        ("aligner", {"num_tokens": 3}, "o", "has 3 prefix tokens"),
        ("llama_adapter", {"num_tokens": 2}, "o", "has 2 prefix tokens"),
        ("prefix", {"num_tokens": 1}, "o", "shares the text's softmax"),
        ("prompt", {"num_tokens": 1}, "o", "positions of their own"),
        ("aligner", {"gates": "head"}, "v", "gates of their own"),
    ],
)
def test_what_no_weight_can_hold_is_refused(method, options, target, reason):
    with pytest.raises(Unfoldable, match=reason):
        make_fold([trained(method, **options)], CONFIG, target)


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(InputError, match="fits this base"):
        make_fold([trained("aligner", dataclasses.replace(CONFIG, d_model=16))], CONFIG)
