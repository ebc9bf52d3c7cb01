"""Quantized weights: their products, gradients, residuals and declarations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.llama import forward, unembed
from aligner_jax.model.params import Params, abstract_params, param_specs
from aligner_jax.model.quantized import Quantization, Quantized, dequantized
from aligner_jax.model.updates import LowRank, LowRankWeight, project
from aligner_jax.peft import apply, bind, init_adapter
from aligner_jax.peft.rows import bind_rows, stack_adapters
from aligner_jax.runtime import sharding
from aligner_jax.weights.quantize import quantizer

KINDS = ("int8", "int4")
PROJECTIONS = ("q_ldnh", "k_ldkh", "v_ldkh", "o_lnhd", "gate_ldf", "up_ldf", "down_lfd")
EQUATIONS = {
    "q_ldnh": "btd,dnh->btnh", "v_ldkh": "btd,dkh->btkh", "o_lnhd": "btnh,nhd->btd", "gate_ldf": "btd,df->btf",
    "down_lfd": "btf,fd->btd", "k_ldkh": "pd,dkh->pkh",
}  # fmt: skip
TOKENS_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
METHODS = ("aligner", "llama_adapter", "lora", "prefix", "prompt", "bias")
apply_jit = jax.jit(apply, static_argnames="config")


@pytest.fixture(scope="module")
def quantized(config: LlamaConfig, params: Params):
    """The shared model with quantized projections, in groups of four, so that every axis has several groups."""

    @functools.cache
    def make(kind: str) -> Params:
        finish = quantizer(config, Quantization(kind, group_size=4))
        held = {name: finish(name, jnp.copy(getattr(params.layers, name))) for name in PROJECTIONS}
        return params.replace(layers=params.layers.replace(**held))

    return make


def plain(params: Params, dtype=jnp.float32) -> Params:
    """Returns the same model with arrays in place of quantized weights."""
    is_quantized = lambda leaf: isinstance(leaf, Quantized)  # noqa: E731
    to_array = lambda leaf: dequantized(leaf, dtype) if is_quantized(leaf) else leaf  # noqa: E731
    return jax.tree.map(to_array, params, is_leaf=is_quantized)


def layer_weight(params: Params, field: str):
    return jax.tree.map(lambda leaf: leaf[1], getattr(params.layers, field))


def operand(equation: str, weight: Quantized, dtype) -> jax.Array:
    of_x, of_weight = equation.split("->")[0].split(",")
    sizes = {"b": 2, "t": 3, "p": 3, **dict(zip(of_weight, weight.values.shape, strict=True))}
    return jax.random.normal(jax.random.key(0), [sizes[axis] for axis in of_x]).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", EQUATIONS)
def test_products_and_gradients_are_those_of_the_dequantized_weight(quantized, kind: str, field: str):
    weight, equation = layer_weight(quantized(kind), field), EQUATIONS[field]
    array, x = dequantized(weight, jnp.float32), operand(EQUATIONS[field], weight, jnp.float32)
    found, pull = jax.vjp(lambda x: project(equation, x, weight), x)
    expected, pull_expected = jax.vjp(lambda x: jnp.einsum(equation, x, array), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    slope = jax.random.normal(jax.random.key(1), expected.shape)
    np.testing.assert_allclose(pull(slope)[0], pull_expected(slope)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2**-7), ("float16", 2**-10)])
@pytest.mark.parametrize("kind", KINDS)
def test_products_keep_their_dtype_and_are_as_exact(quantized, kind: str, dtype: str, bound: float):
    weight, equation = layer_weight(quantized(kind), "gate_ldf"), EQUATIONS["gate_ldf"]
    x = operand(equation, weight, dtype)
    found, pull = jax.vjp(lambda x: project(equation, x, weight), x)
    exact = lambda x: jnp.einsum(equation, x, dequantized(weight, jnp.float32))  # noqa: E731
    expected, pull_expected = jax.vjp(exact, x.astype(jnp.float32))
    assert _error(found, expected) < bound
    assert (found.dtype, pull(found)[0].dtype) == (dtype, dtype)
    assert _error(pull(found)[0], pull_expected(found.astype(jnp.float32))[0]) < bound


def _error(found: jax.Array, expected: jax.Array) -> jax.Array:
    return jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)


def test_products_of_float16_with_integers_neither_overflow_nor_underflow():
    """A row of a 7B model's width: the sum over int8 values exceeds 65,504, and a gradient times a scale 6e-8."""
    weight = Quantized(jnp.full((4096, 2), 127, jnp.int8), jnp.asarray([[4e-4, 1e-4]]))
    x = jnp.full((1, 1, 4096), 1.0, jnp.float16)
    found, pull = jax.vjp(lambda x: project("btd,df->btf", x, weight), x)
    np.testing.assert_allclose(found[0, 0], [4096 * 127 * 4e-4, 4096 * 127 * 1e-4], rtol=1e-3)
    slope = jnp.asarray([[[3e-5, 3e-5]]], jnp.float16)
    np.testing.assert_allclose(pull(slope)[0][0, 0, :2], 127 * 3e-5 * 5e-4, rtol=0.02)


@pytest.mark.parametrize("live", [2, 0])
def test_channels_without_weights_do_not_change_gradients_in_float16(live: int):
    """Quantization gives them a scale of 1, thousands of times that of the others."""
    values = jnp.full((64, 3), 127, jnp.int8).at[:, live:].set(0)
    weight = Quantized(values, jnp.asarray([[2e-4, 1e-4][:live] + [1.0] * (3 - live)]))
    _, pull = jax.vjp(lambda x: project("btd,df->btf", x, weight), jnp.ones((1, 1, 64), jnp.float16))
    (dx,) = pull(jnp.full((1, 1, 3), 3e-4, jnp.float16))
    np.testing.assert_allclose(dx, 127 * 3e-4 * (3e-4 if live else 0), rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_low_rank_update_is_added_to_the_quantized_product(quantized, kind: str):
    weight, equation = layer_weight(quantized(kind), "o_lnhd"), EQUATIONS["o_lnhd"]
    x = operand(equation, weight, jnp.float32)
    a, b = jax.random.normal(jax.random.key(1), (4, 6, 2)), jax.random.normal(jax.random.key(2), (2, 16))
    found = project(equation, x, LowRankWeight(weight, LowRank(a, b, scale=3.0)))
    sum_of_both = dequantized(weight, jnp.float32) + 3 * jnp.einsum("nhr,rd->nhd", a, b)
    np.testing.assert_allclose(found, jnp.einsum(equation, x, sum_of_both), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_over_a_quantized_base(quantized, randomized, config: LlamaConfig, kind: str, method: str):
    adapter = randomized(init_adapter(method, config))
    params = quantized(kind)
    logits_btv = apply_jit(params, adapter, TOKENS_BT, config=config)
    expected_btv = apply_jit(plain(params), adapter, TOKENS_BT, config=config)
    np.testing.assert_allclose(logits_btv, expected_btv, rtol=1e-4, atol=1e-4)


def test_adapters_of_one_batch_work_over_a_quantized_base(quantized, trained_adapter, config: LlamaConfig):
    params, stack = quantized("int8"), stack_adapters([trained_adapter(2, key=key) for key in (1, 2)])
    bound = bind_rows(stack, params, config, jnp.asarray([1, 0]))
    expected = bind_rows(stack, plain(params), config, jnp.asarray([1, 0]))
    (prefix,), (expected_prefix,) = ([part.prefix for part in each.adapted] for each in (bound, expected))
    np.testing.assert_allclose(prefix.v_bpkh, expected_prefix.v_bpkh, rtol=1e-4, atol=1e-4)


def test_full_fine_tuning_over_a_quantized_base_is_refused(quantized, config: LlamaConfig):
    adapter = init_adapter("full", config)
    with pytest.raises(InputError, match="the base is quantized, and an adapter of method 'full' cannot change"):
        bind(adapter, quantized("int8"), config)


@pytest.mark.parametrize("kind", KINDS)
def test_at_gate_0_the_model_is_the_quantized_base_bit_for_bit(quantized, config: LlamaConfig, kind: str):
    adapter, params = init_adapter("aligner", config, num_tokens=3), quantized(kind)
    with_adapter = apply_jit(params, adapter, TOKENS_BT, config=config)
    np.testing.assert_array_equal(with_adapter, apply_jit(params, None, TOKENS_BT, config=config))


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def gradient(params: Params, adapter, *, config: LlamaConfig, remat: str):
    def loss(trainable):
        bound = bind(adapter.replace(trainable=trainable), params, config)
        hidden_btd = forward(params, TOKENS_BT, config=config, adapted=bound.adapted, remat=remat)
        return jnp.sum(jnp.sin(unembed(params, hidden_btd)))

    return jax.grad(loss)(adapter.trainable)


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapters_gradient_is_that_over_the_dequantized_base(
    quantized, trained_adapter, config: LlamaConfig, kind: str, remat: str
):
    adapter, params = trained_adapter(2), quantized(kind)
    found = gradient(params, adapter, config=config, remat=remat)
    expected = gradient(plain(params), adapter, config=config, remat="full")
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(leaf))))


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_no_weights(quantized, trained_adapter, config: LlamaConfig, kind: str, remat: str):
    adapter, params = trained_adapter(1, start_layer=1), quantized(kind)

    def residuals(trainable, params):
        def function(trainable):
            adapted = bind(adapter.replace(trainable=trainable), params, config).adapted
            return forward(params, TOKENS_BT, config=config, adapted=adapted, remat=remat)

        return jax.vjp(function, trainable)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, adapter.trainable, params))
    # The stacks are residuals once; no slice of two adapted layers may be a residual.
    shapes = {getattr(params.layers, name).values.shape[1:] for name in PROJECTIONS}
    assert [x for x in kept if x.shape[1:] in shapes and x.shape[0] == 2] == []
    assert [x for x in kept if x.shape[1:] in shapes and x.dtype not in (jnp.int8, jnp.int4)] == []


@pytest.mark.parametrize(
    ("size", "shape", "summed", "scales"),
    [
        (32, (64, 2, 8), 1, (2, 2, 8)),
        (32, (8, 8, 64), 2, (2, 1, 64)),  # four heads of eight
        (32, (4, 64, 16), 2, (4, 2, 16)),
        (32, (9, 12, 16), 2, (9, 3, 16)),  # 4 divides a head of 12, and a group ends with its head
        (32, (172, 64), 1, (43, 64)),
    ],
)
def test_groups_run_along_the_axes_that_are_summed(size: int, shape, summed: int, scales):
    assert Quantization("int4", size).scales_shape(shape, summed) == scales
    assert Quantization("int8").scales_shape(shape, summed) == (1,) * summed + shape[summed:]


@pytest.mark.parametrize(("kind", "held"), [("int8", 6.53), ("int4", 4.26)])
def test_7b_is_as_large_as_its_numbers(kind: str, held: float):
    leaves = jax.tree.leaves(abstract_params(llama_config("llama2_7b"), "bfloat16", Quantization(kind)))
    bits = {"int4": 4, "int8": 8, "bfloat16": 16, "float32": 32}
    assert sum(math.prod(x.shape) * bits[x.dtype.name] for x in leaves) / 2**33 == pytest.approx(held, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_the_declaration_is_what_quantizing_makes(quantized, config: LlamaConfig, kind: str):
    expected = abstract_params(config, "float32", Quantization(kind, group_size=4))
    found = jax.tree.map(lambda x: (x.shape, x.dtype), quantized(kind))
    assert found == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_scales_are_split_as_their_values_are_or_whole():
    config = LlamaConfig(
        vocab_size=64, d_model=64, d_mlp=96, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=64, context_length=128
    )
    shardings = {
        size: sharding.param_shardings(config, AbstractMesh((1, size, 1), sharding.AXES), quantization=quantization)
        for quantization in [Quantization("int4")]
        for size in (2, 4)
    }
    assert shardings[2].layers.q_ldnh.values.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings[2].layers.q_ldnh.scales.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings[2].layers.down_lfd.scales.spec == PartitionSpec(None, "tensor", "fsdp")
    # Two groups of 32 cannot be split over four devices.
    assert shardings[4].layers.q_ldnh.values.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings[4].layers.q_ldnh.scales.spec == PartitionSpec()
    for split in shardings.values():
        assert split.layers.q_ldnh.offsets == split.layers.q_ldnh.scales
    per_channel = param_specs(config, Quantization("int8")).layers.q_ldnh.scales
    assert (per_channel.shape, per_channel.axes[1]) == ((3, 1, 2, 64), None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("int3",), "quantization 'int3' is not one of none, int8, int4"),
        (("int4", 1), "group_size is 1, but should be a whole number of at least 2"),
        (("int4", True), "group_size is True, but should be a whole number of at least 2"),
    ],
)
def test_what_cannot_be_had_is_refused(values, sentence: str):
    with pytest.raises(InputError, match=sentence):
        Quantization(*values)
