"""Aligner: the paper's formulas, by float64 goldens and by the properties that it guarantees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_check import check_golden
from jax.sharding import NamedSharding, PartitionSpec
from places import GOLDENS, SHARED

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params, forward, init_params
from aligner_jax.peft import Adapter, apply, bind, init_adapter, with_strength
from aligner_jax.peft.aligner import AlignerOptions
from aligner_jax.peft.methods import fresh_adapter
from aligner_jax.peft.sum import SumOptions, sum_of
from aligner_jax.weights.hf import load_hf

TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
apply_jit = jax.jit(apply, static_argnames=("config",))


def _check_golden(golden, config: LlamaConfig, params: Params):
    options = AlignerOptions(num_tokens=len(golden["tokens"]), start_layer=int(golden["start_layer"]))
    trained = {name: jnp.asarray(golden[name[:-3]], jnp.float32) for name in ("tokens_pd", "gates_ln")}
    adapter = Adapter(trained, method="aligner", options=options)
    gradients = {"tokens_pd": golden["grad_tokens"], "gates_ln": golden["grad_gates"]}
    check_golden(golden, adapter, gradients, config, params)


@pytest.mark.parametrize("name", ["aligner_p1", "aligner_p3"])
def test_golden(name: str):
    _check_golden(np.load(GOLDENS / f"{name}.npz"), *load_hf(GOLDENS / "models" / "llama3", "float32"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder `shared` is not beside the repository")
def test_golden_on_a_real_model():
    golden = np.load(SHARED / "goldens" / "stories260k_aligner_n3_start2.npz")
    _check_golden(golden, *load_hf(SHARED / "data" / "models" / "stories260K" / "hf", "float32"))


def test_a_fresh_aligner_has_normal_tokens_and_closed_gates(config: LlamaConfig):
    adapter = init_adapter("aligner", dataclasses.replace(config, d_model=4096), key=0, num_tokens=2, start_layer=1)
    assert adapter.trainable["tokens_pd"].shape == (2, 4096)
    assert adapter.trainable["gates_ln"].shape == (2, 4)
    assert adapter.num_params == 2 * 4096 + 2 * 4
    assert {x.dtype for x in adapter.trainable.values()} == {jnp.dtype("float32")}
    assert not adapter.trainable["gates_ln"].any()
    tokens = np.asarray(adapter.trainable["tokens_pd"])
    np.testing.assert_allclose((tokens.mean(), tokens.std()), (0, 1), atol=0.03)


def test_the_key_decides_the_tokens(config: LlamaConfig):
    def tokens(key) -> np.ndarray:
        return np.asarray(init_adapter("aligner", config, key).trainable["tokens_pd"])

    np.testing.assert_array_equal(tokens(5), tokens(jax.random.key(5)))
    assert not np.array_equal(tokens(5), tokens(6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gate_zero_is_the_base_bit_for_bit(dtype: str, config: LlamaConfig, params: Params, trained_adapter, optimized):
    typed = jax.tree.map(lambda x: x.astype(dtype), params)
    run = optimized(apply, static_argnames=("config",))
    base_btv = run(typed, None, TOKENS_BT, config=config)
    for adapter in map(trained_adapter, (1, 3) if dtype == "float32" else (3,)):
        np.testing.assert_array_equal(run(typed, with_strength(adapter, 0.0), TOKENS_BT, config=config), base_btv)
        assert not np.array_equal(run(typed, adapter, TOKENS_BT, config=config), base_btv)


def test_gate_zero_is_the_base_bit_for_bit_without_jit(config: LlamaConfig, params: Params, trained_adapter):
    adapter = with_strength(trained_adapter(3, start_layer=0), 0.0)
    with_adapter, base = (apply(params, a, TOKENS_BT[:, :5], config=config) for a in (adapter, None))
    np.testing.assert_array_equal(with_adapter, base)


def test_one_token_is_a_constant_bias_of_the_output_projection(config: LlamaConfig, params: Params, trained_adapter):
    adapter = trained_adapter(1, start_layer=1)
    tokens_pd, gates_ln = (np.asarray(adapter.trainable[name], np.float64) for name in ("tokens_pd", "gates_ln"))
    bias_ld = np.zeros((3, 16))
    for layer in (1, 2):
        value_kh = np.einsum("d,dkh->kh", tokens_pd[0], np.asarray(params.layers.v_ldkh[layer], np.float64))
        value_nh = gates_ln[layer - 1][:, None] * np.repeat(value_kh, 2, axis=0)
        bias_ld[layer] = np.einsum("nh,nhd->d", value_nh, np.asarray(params.layers.o_lnhd[layer], np.float64))
    folded = params.replace(layers=params.layers.replace(o_bias_ld=jnp.asarray(bias_ld, jnp.float32)))
    folded_btv = apply_jit(folded, None, TOKENS_BT, config=dataclasses.replace(config, o_bias=True))
    adapted_btv = apply_jit(params, adapter, TOKENS_BT, config=config)
    np.testing.assert_allclose(adapted_btv, folded_btv, atol=2e-5, rtol=0)
    assert np.abs(adapted_btv - apply_jit(params, None, TOKENS_BT, config=config)).max() > 0.1


def test_one_token_equals_two_equal_tokens_through_the_softmax(config: LlamaConfig, params: Params, trained_adapter):
    one = trained_adapter(1, start_layer=0)
    doubled = {**one.trainable, "tokens_pd": jnp.repeat(one.trainable["tokens_pd"], 2, axis=0)}
    two = one.replace(trainable=doubled, options=AlignerOptions(num_tokens=2, start_layer=0))
    one_btv, two_btv = (apply_jit(params, adapter, TOKENS_BT, config=config) for adapter in (one, two))
    np.testing.assert_allclose(one_btv, two_btv, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("start_layer", [0, 2])
def test_bind_projects_the_bare_tokens_by_each_adapted_layer(num_tokens: int, start_layer: int, config: LlamaConfig):
    config = dataclasses.replace(config, qkv_bias=True)
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(functools.partial(init_params, config)),
    )
    adapter = init_adapter("aligner", config, 0, num_tokens=num_tokens, start_layer=start_layer)
    (part,) = bind(adapter, params, config).adapted
    assert part.layers == range(start_layer, 3)
    prefix = part.prefix
    for name, weight_ldkh, bias_lkh in (
        ("k_bpkh", params.layers.k_ldkh, params.layers.k_bias_lkh),
        ("v_bpkh", params.layers.v_ldkh, params.layers.v_bias_lkh),
    ):
        projected = np.einsum("pd,ldkh->lpkh", adapter.trainable["tokens_pd"], weight_ldkh) + bias_lkh[:, None]
        if name == "k_bpkh" and num_tokens == 1:
            projected = np.zeros_like(projected)
        np.testing.assert_allclose(getattr(prefix, name), projected[start_layer:, None], atol=2e-5)
    assert prefix.gate_bn.shape == (3 - start_layer, 1, 4)
    assert not prefix.joint


def _with_token_gates(config: LlamaConfig, num_tokens: int, start_layer: int, key: int = 5) -> Adapter:
    fresh = init_adapter("aligner", config, key, num_tokens=num_tokens, start_layer=start_layer, gates="token")
    gates_lpn = np.random.default_rng(key).standard_normal(fresh.trainable["gates_lpn"].shape)
    return fresh.replace(trainable={**fresh.trainable, "gates_lpn": jnp.asarray(gates_lpn, jnp.float32)})


def _of_one_token_each(adapter: Adapter) -> list[Adapter]:
    """Returns the tokens of an Aligner with a gate for each, as Aligners of one token."""
    tokens_pd, gates_lpn = adapter.trainable["tokens_pd"], adapter.trainable["gates_lpn"]
    options = AlignerOptions(start_layer=adapter.options["start_layer"])
    return [
        Adapter({"tokens_pd": tokens_pd[p : p + 1], "gates_ln": gates_lpn[:, p]}, method="aligner", options=options)
        for p in range(len(tokens_pd))
    ]


@pytest.mark.parametrize(("num_tokens", "start_layer"), [(1, 0), (3, 1)])
def test_a_gate_for_each_token_is_the_sum_of_aligners_of_one_token(
    num_tokens: int, start_layer: int, config: LlamaConfig, params: Params
):
    adapter = _with_token_gates(config, num_tokens, start_layer)
    parts = _of_one_token_each(adapter)
    assert adapter.num_params == sum(part.num_params for part in parts) == num_tokens * (16 + (3 - start_layer) * 4)
    found, wanted, base = (apply_jit(params, each, TOKENS_BT, config=config) for each in (adapter, sum_of(parts), None))
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)
    assert np.abs(found - base).max() > 0.1
    slopes = jax.grad(lambda t: apply(params, adapter.replace(trainable=t), TOKENS_BT, config=config).sum())
    of_parts = jax.grad(lambda t: apply(params, sum_of(parts).replace(trainable=t), TOKENS_BT, config=config).sum())
    found, wanted = slopes(adapter.trainable), of_parts(sum_of(parts).trainable)
    for p in range(num_tokens):
        np.testing.assert_allclose(found["tokens_pd"][p], wanted[f"aligner_{p}/tokens_pd"][0], atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(found["gates_lpn"][:, p], wanted[f"aligner_{p}/gates_ln"], atol=2e-4, rtol=1e-4)


def test_tokens_have_the_standard_deviation_that_is_asked_for(config: LlamaConfig):
    def tokens(**options) -> np.ndarray:
        return np.asarray(init_adapter("aligner", config, 1, num_tokens=3, **options).trainable["tokens_pd"])

    np.testing.assert_array_equal(tokens(init_std=0.25), tokens() * np.float32(0.25))
    np.testing.assert_array_equal(tokens(init_std=1.0), tokens())


@pytest.mark.parametrize("init_std", [None, 0.5])
def test_tokens_begin_as_embeddings_of_words(init_std: float | None, config: LlamaConfig, params: Params):
    options = AlignerOptions(num_tokens=3, init="words", init_std=init_std)
    first, again, other = (
        np.asarray(fresh_adapter("aligner", config, key, options, params).trainable["tokens_pd"]) for key in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # Up to a factor, every token is the embedding of a different id of the upper half: the vocabulary is small.
    embed_vd = np.asarray(params.embed_vd)
    unit, units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, embed_vd))
    ids = (unit @ units.T).argmax(1)
    assert len(set(ids)) == 3
    assert min(ids) >= 20
    scale = 1 if init_std is None else init_std / embed_vd[ids].std()
    np.testing.assert_allclose(first, embed_vd[ids] * scale, rtol=1e-5)
    assert fresh_adapter("aligner", config, 1, options).trainable["tokens_pd"].shape == (3, 16)


def test_parts_of_a_sum_begin_as_words_of_a_table_on_a_mesh(config: LlamaConfig, params: Params):
    options = SumOptions(aligner=(AlignerOptions(num_tokens=2, init="words"), AlignerOptions()))
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("tensor",))
    split = NamedSharding(mesh, PartitionSpec("tensor"))
    placed = params.replace(embed_vd=jax.device_put(params.embed_vd, split))
    one, two = (fresh_adapter("sum", config, 3, options, each).trainable for each in (params, placed))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    np.testing.assert_array_equal(
        one["aligner_1/tokens_pd"], fresh_adapter("sum", config, 3, options).trainable["aligner_1/tokens_pd"]
    )
    assert any(np.array_equal(one["aligner_0/tokens_pd"][0], row) for row in params.embed_vd)


def test_layers_below_the_first_adapted_one_are_the_base(config: LlamaConfig, params: Params, trained_adapter):
    adapter = trained_adapter(1, start_layer=2)
    silent = params.layers.o_lnhd.at[2].set(0)
    muted = params.replace(layers=params.layers.replace(o_lnhd=silent))
    adapted, base = (apply_jit(muted, a, TOKENS_BT, config=config) for a in (adapter, None))
    np.testing.assert_array_equal(adapted, base)
    assert not np.array_equal(apply_jit(muted, trained_adapter(1, start_layer=1), TOKENS_BT, config=config), base)


def test_rows_with_adapters_of_their_own_are_as_alone(config: LlamaConfig, params: Params, trained_adapter):
    alone = [bind(trained_adapter(3, start_layer=0, key=key), params, config).adapted for key in (7, 8)]
    together = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=1), *alone)
    run = jax.jit(forward, static_argnames=("config",))
    batch_btd = run(params, TOKENS_BT, config=config, adapted=together)
    for row, adapted in enumerate(alone):
        alone_btd = run(params, TOKENS_BT, config=config, adapted=adapted)
        np.testing.assert_allclose(batch_btd[row], alone_btd[row], atol=1e-5)


def test_apply_works_under_vmap_over_adapters(config: LlamaConfig, params: Params, trained_adapter):
    adapters = [trained_adapter(1, start_layer=0, key=key) for key in (7, 8)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(adapter.trainable for adapter in adapters))
    run = jax.jit(jax.vmap(lambda t: apply(params, adapters[0].replace(trainable=t), TOKENS_BT, config=config)))
    for logits_btv, adapter in zip(run(stacked), adapters, strict=True):
        np.testing.assert_allclose(logits_btv, apply_jit(params, adapter, TOKENS_BT, config=config), atol=2e-5)


def test_strength_multiplies_what_each_layer_adds(config: LlamaConfig, params: Params, trained_adapter):
    adapter = trained_adapter(1, start_layer=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, with_strength(adapter, 1.0), adapter))
    prefix, half = (bind(a, params, config).adapted[0].prefix for a in (adapter, with_strength(adapter, 0.5)))
    np.testing.assert_array_equal(half.gate_bn, prefix.gate_bn / 2)
    np.testing.assert_array_equal(half.v_bpkh, prefix.v_bpkh)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("alinger", {}, "adapter method 'alinger' is not one of"),
        ("aligner", {"num_token": 2}, "no option 'num_token'; did you mean 'num_tokens'?"),
        ("aligner", {"rank": 2}, "no option 'rank'; it has gates, init, init_std, num_tokens, start_layer, tokens"),
        ("aligner", {"num_tokens": 0}, "num_tokens is 0"),
        ("aligner", {"num_tokens": 1.5}, "num_tokens is 1.5"),
        ("aligner", {"start_layer": 3}, "start_layer is 3, but the model has layers 0 to 2"),
        ("aligner", {"start_layer": -1}, "start_layer is -1"),
        ("aligner", {"init_std": 0}, "init_std is 0"),
        ("aligner", {"init": "words"}, "init 'words' begins with embeddings of the base: train with"),
        ("aligner", {"init": "words", "tokens": "head"}, "tokens is 'head', but init is 'words'"),
    ],
)
def test_impossible_adapters_are_refused(method: str, options: dict, sentence: str, config: LlamaConfig):
    with pytest.raises(InputError) as caught:
        init_adapter(method, config, **options)
    assert sentence in str(caught.value)
