"""FLOPs against XLA's own count; bytes and the published sizes of LLaMA-7B against arithmetic by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from aligner_jax.errors import InputError
from aligner_jax.model.cache import empty_cache, forward_cached
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.llama import abstract_params, forward, unembed
from aligner_jax.objectives.cross_entropy import token_losses
from aligner_jax.peft import METHODS, Adapter, bind, init_adapter
from aligner_jax.peft.aligner import AlignerOptions
from aligner_jax.runtime import chips
from aligner_jax.runtime.chips import CHIPS
from aligner_jax.runtime.roofline import (
    AdapterCost,
    Cost,
    Part,
    decode_step,
    layer_weights,
    roofline_seconds,
    train_step,
)

L7B = llama_config("llama_7b")
N7B = 6_607_077_376
"""Parameters in matrix products: all 6,738,415,616 but the embedding and the norms."""

# Grouped queries, n · h unequal to d, and wide enough that norms and softmaxes are a few percent of the FLOPs.
SMALL = LlamaConfig(
    vocab_size=512, d_model=128, d_mlp=384, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32, context_length=512
)
B, T = 2, 128
TOKENS = jax.ShapeDtypeStruct((B, T), jnp.int32)
SQUARE = 2 * B * T * T * SMALL.num_heads * SMALL.head_dim
"""FLOPs of one product of all queries with all keys in one layer. The reference computes all and then masks half."""


def xla_flops(function, *arguments) -> float:
    """Returns XLA's count. It counts the body of a loop once: one layer, for any number of layers."""
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def aligner_step(config: LlamaConfig, *, num_tokens: int = 1, start_layer: int = 2, **rest) -> Cost:
    options = AlignerOptions(num_tokens=num_tokens, start_layer=start_layer)
    return train_step(config, adapter=METHODS["aligner"].cost(options, config), **rest)


def train_7b(**changes) -> Cost:
    return aligner_step(L7B, **{"batch_size": 64, "sequence_length": 256, "start_layer": 0, **changes})


def test_weights_of_7b_are_the_published_ones():
    embedding, norms = 32_000 * 4096, (2 * 32 + 1) * 4096
    assert 32 * layer_weights(L7B) + 32_000 * 4096 == N7B == 6_738_415_616 - embedding - norms


@pytest.mark.parametrize("name", ["llama3_8b", "smollm2_135m", "llama3_2_1b"])
def test_weights_are_those_of_the_parameters(name):
    """The config has grouped queries and tied embeddings."""
    config = llama_config(name)
    layers = abstract_params(config).layers
    matrices = [leaf.size for leaf in jax.tree.leaves(layers) if leaf.ndim > 2]
    assert config.num_layers * layer_weights(config) == sum(matrices)
    cost = decode_step(config, batch_size=1, length=1)
    assert cost["head"].model_flops == 2 * config.vocab_size * config.d_model


def test_forward_is_what_xla_counts():
    one = dataclasses.replace(SMALL, num_layers=1)
    forward_flops = xla_flops(lambda params, tokens: forward(params, tokens, config=one), abstract_params(one), TOKENS)
    assert forward_flops - 2 * SQUARE == pytest.approx(2 * B * T * layer_weights(one), rel=0.03)
    hidden = jax.ShapeDtypeStruct((B, T, one.d_model), jnp.float32)
    cost = aligner_step(one, batch_size=B, sequence_length=T, start_layer=0)
    assert 2 * xla_flops(unembed, abstract_params(one), hidden) == cost["head"].model_flops


def test_layers_that_keep_their_products_cost_as_under_dots_and_the_others_as_under_full():
    full, dots = (train_7b(remat=remat, start_layer=2) for remat in ("full", "dots"))
    for kept in (1, 20, 29):
        mixed = train_7b(remat=f"dots:{kept}", start_layer=2)
        for figure in ("model_flops", "hardware_flops", "hbm_bytes"):
            a, b, c = (getattr(cost, figure) for cost in (full, dots, mixed))
            assert c == pytest.approx(a + (b - a) * kept / 30, rel=1e-12), figure
    assert train_7b(remat="dots:30", start_layer=2) == train_7b(remat="dots:32", start_layer=2) == dots
    with pytest.raises(InputError, match=r"^remat 'dots:33' keeps results of 33 layers, but there are 32: give fewer$"):
        train_7b(remat="dots:33")


# JAX's derivative of attention has two products over all pairs forward and four backward, and one more here. It repeats
# the scores under "dots" and both products under "full". The cost is that of the kernels, which keep all residuals of
# their backward pass under "dots".
@pytest.mark.parametrize(("remat", "reference_products"), [("none", 7), ("dots", 8), ("full", 9)])
def test_a_training_step_is_what_xla_counts(remat, reference_products):
    adapter = init_adapter("aligner", SMALL, num_tokens=1, start_layer=0)

    def loss(trainable, params, tokens):
        adapted = bind(adapter.replace(trainable=trainable), params, SMALL).adapted
        return jnp.sum(forward(params, tokens, config=SMALL, adapted=adapted, remat=remat, implementation="xla"))

    flops = xla_flops(jax.grad(loss), adapter.trainable, abstract_params(SMALL), TOKENS)
    cost = aligner_step(SMALL, batch_size=B, sequence_length=T, num_tokens=1, start_layer=0, remat=remat)
    expected = cost["layers"].hardware_flops / SMALL.num_layers
    assert flops - reference_products * SQUARE == pytest.approx(expected, rel=0.05)
    assert cost["layers"].model_flops / SMALL.num_layers == 4 * B * T * layer_weights(SMALL)


def test_layers_below_the_first_adapted_one_have_a_forward_pass_only():
    adapter = init_adapter("aligner", SMALL, start_layer=2)

    def loss(trainable, params, tokens):
        adapted = bind(adapter.replace(trainable=trainable), params, SMALL).adapted
        return jnp.sum(forward(params, tokens, config=SMALL, adapted=adapted, remat="dots", implementation="xla"))

    flops = xla_flops(jax.grad(loss), adapter.trainable, abstract_params(SMALL), TOKENS)
    # One loop below and one above, of two layers each, are counted once each.
    cost = aligner_step(SMALL, batch_size=B, sequence_length=T, start_layer=2, remat="dots")
    assert flops - 9 * SQUARE == pytest.approx(cost["layers"].hardware_flops / 2, rel=0.05)


def test_the_head_is_computed_where_there_is_a_target():
    """Two products per target: only the hidden states have a gradient."""
    params, tokens = abstract_params(SMALL), 64
    hidden = jax.ShapeDtypeStruct((1, tokens, SMALL.d_model), jnp.float32)

    def loss(hidden, params):
        zeros = jnp.zeros((1, tokens), jnp.int32)
        return jnp.sum(token_losses(params, hidden, zeros, jnp.ones((1, tokens), bool)))

    cost = aligner_step(SMALL, batch_size=1, sequence_length=tokens)
    assert xla_flops(jax.grad(loss), hidden, params) == pytest.approx(cost["head"].hardware_flops, rel=0.03)
    some = aligner_step(SMALL, batch_size=1, sequence_length=tokens, targets=0.25)
    assert some["head"].model_flops == cost["head"].model_flops / 4
    assert some["logits"].hbm_bytes == cost["logits"].hbm_bytes / 4


def test_a_decode_step_is_what_xla_counts():
    one, slots = dataclasses.replace(SMALL, num_layers=1), 64
    cache = jax.eval_shape(lambda: empty_cache(one, B, slots, jnp.dtype("float32")))
    token = jax.ShapeDtypeStruct((B, 1), jnp.int32)

    def decode(params, token, cache):
        hidden, cache = forward_cached(params, token, cache, config=one)
        return unembed(params, hidden[:, -1]), cache

    flops = xla_flops(decode, abstract_params(one), token, cache)
    assert flops == pytest.approx(decode_step(one, batch_size=B, length=slots, start_layer=0).model_flops, rel=0.05)


def test_training_over_a_frozen_base_costs_four_flops_a_weight_and_token():
    cost, tokens = train_7b(), 64 * 256
    assert cost["layers"].model_flops + cost["head"].model_flops == 4 * N7B * tokens
    assert cost.model_flops == pytest.approx(4 * N7B * tokens, rel=0.01)
    assert cost.model_flops > 4 * N7B * tokens
    # 30 of 32 layers have a backward pass; the head always has one.
    fewer = train_7b(start_layer=2)["layers"].model_flops
    assert fewer == (32 + 30) / 64 * cost["layers"].model_flops


def test_a_trained_base_costs_six_flops_a_weight_and_token():
    tokens, frozen = 64 * 256, train_7b()
    cost = train_step(L7B, batch_size=64, sequence_length=256, adapter=AdapterCost(), trains_base=True)
    weights = sum(cost[name].model_flops for name in ("layers", "head", "trained base"))
    assert weights == 6 * N7B * tokens
    assert cost.model_flops == weights + cost["attention"].model_flops
    # In float32, cotangents are read three times (twice for the last product, which runs twice), the head's once;
    # gradients are written; AdamW reads four arrays and writes three.
    down, parameters = 32 * 4096 * 11_008, N7B + 32_000 * 4096
    activations = frozen["layers"].hbm_bytes / 3
    moved = cost["trained base"].hbm_bytes - 4 * (3 * 32 * layer_weights(L7B) - down + 32_000 * 4096)
    assert moved - 4 * 8 * parameters == pytest.approx(activations, rel=0.1)
    more = train_step(L7B, batch_size=64, sequence_length=256, adapter=AdapterCost(), trains_base=True, accumulate=2)[
        "trained base"
    ]
    assert more.model_flops == cost["trained base"].model_flops
    assert more.hbm_bytes > cost["trained base"].hbm_bytes + 4 * 3 * parameters


def step_flops(adapter: Adapter) -> float:
    """Returns XLA's count of the gradient of the layers of SMALL with an adapter."""

    def loss(trainable, params, tokens):
        bound = bind(adapter.replace(trainable=trainable), params, SMALL)
        hidden = forward(
            bound.on(params), tokens, config=SMALL, adapted=bound.adapted, remat="dots", implementation="xla"
        )
        return jnp.sum(hidden)

    return xla_flops(jax.grad(loss), adapter.trainable, abstract_params(SMALL), TOKENS)


@pytest.mark.parametrize(
    ("method", "options"), [("full", {}), ("lora", {"rank": 64, "targets": ("q", "o", "gate", "down")})]
)
def test_trained_weights_are_what_xla_counts(method: str, options: dict):
    adapter = init_adapter(method, SMALL, **options)
    record = METHODS[method]
    cost = train_step(
        SMALL, batch_size=B, sequence_length=T, remat="dots",
        adapter=record.cost(adapter.options, SMALL), trains_base=record.trains_base,
    )  # fmt: skip
    parts = [part for part in cost.parts if part.name in ("layers", "trained weights", "trained base")]
    expected = sum(part.hardware_flops for part in parts)
    if record.trains_base:
        # The head is left out: its recomputed logits, and the gradient of its weights.
        expected -= 4 * B * T * SMALL.d_model * SMALL.vocab_size
    assert step_flops(adapter) - 8 * SQUARE == pytest.approx(expected / SMALL.num_layers, rel=0.05)


def test_a_trained_head_makes_its_logits_again():
    params, tokens = abstract_params(SMALL), 64
    hidden = jax.ShapeDtypeStruct((1, tokens, SMALL.d_model), jnp.float32)

    def loss(hidden, params):
        zeros = jnp.zeros((1, tokens), jnp.int32)
        return jnp.sum(token_losses(params, hidden, zeros, jnp.ones((1, tokens), bool)))

    frozen, trained = (
        train_step(SMALL, batch_size=1, sequence_length=tokens, adapter=AdapterCost(), trains_base=trains_base)
        for trains_base in (False, True)
    )
    layers = 2 * tokens * SMALL.num_layers * layer_weights(SMALL)
    expected = frozen["head"].hardware_flops + trained["trained base"].hardware_flops - layers
    assert xla_flops(jax.value_and_grad(loss, (0, 1)), hidden, params) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("remat", "again", "products"), [("none", 0, 7), ("dots", 0, 7), ("full", 1, 9)])
def test_only_hardware_flops_know_of_rematerialization(remat, again, products):
    cost, tokens, down = train_7b(remat=remat), 64 * 256, 4096 * 11_008
    assert cost.model_flops == train_7b().model_flops
    recomputed = cost["layers"].hardware_flops - cost["layers"].model_flops
    assert recomputed == again * 2 * tokens * 32 * (layer_weights(L7B) - down)
    causal = 2 * 64 * (256 * 256 // 2) * 4096 * 32
    assert cost["attention"].model_flops == 6 * causal
    assert cost["attention"].hardware_flops == products * causal


def test_attention_counts_query_heads_and_caches_key_heads():
    grouped, full = llama_config("llama3_8b"), dataclasses.replace(llama_config("llama3_8b"), num_kv_heads=32)
    costs = [aligner_step(config, batch_size=1, sequence_length=128) for config in (grouped, full)]
    assert costs[0]["attention"].model_flops == costs[1]["attention"].model_flops
    assert costs[0]["attention"].hbm_bytes < costs[1]["attention"].hbm_bytes
    caches = [decode_step(config, batch_size=3, length=99)["cache"].hbm_bytes for config in (grouped, full)]
    assert caches == [3 * 100 * 2 * 8 * 128 * 32 * 2, 3 * 100 * 2 * 32 * 128 * 32 * 2]


def test_one_prefix_token_is_a_constant():
    for cost in (train_7b(num_tokens=1), decode_step(L7B, batch_size=8, length=100, num_tokens=1)):
        assert cost["prefix"] == Part("prefix")
    ten = train_7b(num_tokens=10, start_layer=2)
    assert ten["prefix"].model_flops == 3 * 30 * 64 * 4 * 256 * 10 * 4096
    assert decode_step(L7B, batch_size=8, length=9, num_tokens=10)["prefix"].model_flops == 30 * 8 * 4 * 10 * 4096


def test_binding_takes_the_tokens_through_the_projections():
    """One token needs only its values; each micro-step binds again."""
    projection = 2 * 4096 * 4096
    assert train_7b(num_tokens=1, start_layer=2)["bind"].model_flops == 2 * 30 * projection
    ten = train_7b(num_tokens=10, start_layer=2, accumulate=4)["bind"]
    assert ten.model_flops == 2 * 30 * 10 * 2 * projection
    assert ten.hardware_flops == 4 * ten.model_flops


def test_tokens_with_gates_of_their_own_are_bound_by_their_values_and_add_no_key():
    options = AlignerOptions(num_tokens=10, gates="token")
    cost = train_step(L7B, batch_size=64, sequence_length=256, adapter=METHODS["aligner"].cost(options, L7B))
    assert cost["prefix"] == Part("prefix")
    assert cost["bind"].model_flops == 10 * train_7b(num_tokens=1, start_layer=2)["bind"].model_flops
    assert cost["bind"].hbm_bytes == train_7b(num_tokens=1, start_layer=2)["bind"].hbm_bytes


@pytest.mark.parametrize("weight_bytes", [4, 2, 1, 0.5])
def test_training_reads_weights_for_each_pass_and_micro_step(weight_bytes):
    a_pass = 32 * layer_weights(L7B) * weight_bytes
    down = 32 * 4096 * 11_008 * weight_bytes
    assert train_7b(weight_bytes=weight_bytes, remat="dots")["layer weights"].hbm_bytes == 2 * a_pass
    full = train_7b(weight_bytes=weight_bytes, accumulate=2)
    assert full["layer weights"].hbm_bytes == 2 * (3 * a_pass - down)
    # 16,384 targets, in chunks of 512, logits and gradient.
    assert full["head weights"].hbm_bytes == 2 * 32 * 32_000 * 4096 * weight_bytes


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_saved_activations_are_what_jax_saves(remat):
    small = dataclasses.replace(SMALL, num_heads=4, num_kv_heads=2, head_dim=64)  # a head dim that the kernel supports
    adapter, layers = init_adapter("aligner", small, start_layer=1), small.num_layers - 1

    def pull(trainable, params, tokens):
        def hidden(trainable):
            adapted = bind(adapter.replace(trainable=trainable), params, small).adapted
            return forward(params, tokens, config=small, adapted=adapted, remat=remat)

        return jax.vjp(hidden, trainable)[1]

    residuals = jax.eval_shape(pull, adapter.trainable, abstract_params(small, "bfloat16"), TOKENS)
    of_tokens = [leaf for leaf in jax.tree.leaves(residuals) if leaf.shape[0] == layers and T in leaf.shape]
    saved = sum(leaf.size * leaf.dtype.itemsize for leaf in of_tokens)
    cost = aligner_step(small, batch_size=B, sequence_length=T, start_layer=1, remat=remat)
    if remat == "none":
        # A bound: remat "auto" compiles nothing that saves more than a device has.
        assert 1.5 * saved < cost["saved activations"].hbm_bytes <= 2 * saved
    else:
        assert cost["saved activations"].hbm_bytes == 2 * saved


def test_decoding_7b_reads_the_weights_once_and_the_cache_once_a_row():
    cost = decode_step(L7B, batch_size=16, length=1024)
    weights, cache = 2 * N7B, 16 * 1024 * 32 * 2 * 4096 * 2
    assert cost["layer weights"].hbm_bytes + cost["head weights"].hbm_bytes == weights
    assert cost.hbm_bytes == pytest.approx(weights + cache, rel=0.01)
    assert cost.model_flops == 16 * (2 * N7B + 4 * 1024 * 4096 * 32)
    quantized = decode_step(L7B, batch_size=16, length=1024, weight_bytes=0.5, cache_bytes=1)
    assert quantized["layer weights"].hbm_bytes + quantized["head weights"].hbm_bytes == weights / 4
    assert quantized["cache"].hbm_bytes == cost["cache"].hbm_bytes / 2


def test_totals_are_sums_of_parts_and_the_table_shows_both():
    cost = train_7b(num_tokens=10)
    for total in ("model_flops", "hardware_flops", "hbm_bytes"):
        assert getattr(cost, total) == math.fsum(getattr(part, total) for part in cost.parts)
    lines = str(cost).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [*(part.name for part in cost.parts), "total"]
    assert lines[-1].split()[1:] == [f"{x:.4g}" for x in (cost.model_flops, cost.hardware_flops, cost.hbm_bytes)]
    assert len({len(line) for line in lines}) == 1


def test_what_binds():
    v5e = CHIPS["TPU v5 lite"]
    seconds, limit = roofline_seconds(train_7b(), v5e)
    assert (seconds, limit) == (train_7b().hardware_flops / 197e12, "compute")
    decode = decode_step(L7B, batch_size=1, length=1)
    assert roofline_seconds(decode, v5e) == (decode.hbm_bytes / 819e9, "memory")


@pytest.mark.parametrize(
    ("kind", "version", "cores"),
    [
        ("TPU v4", "TPU_V4", 2),
        ("TPU v5 lite", "TPU_V5E", 1),
        ("TPU v5", "TPU_V5P", 2),
        ("TPU v6 lite", "TPU_V6E", 1),
        ("TPU7x", "TPU_7X", 1),
    ],
)
def test_chips_are_as_jax_knows_them(kind, version, cores):
    """JAX counts per core; a device has `cores` of them. One of JAX's bandwidths is 12 % below the published one."""
    chip, core = CHIPS[kind], pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[version], cores)
    assert chip.flops_per_second == pytest.approx(cores * core.bf16_ops_per_second, rel=0.01)
    assert chip.hbm_bytes == pytest.approx(cores * core.hbm_capacity_bytes, rel=0.02)
    bandwidth = 0.15 if kind == "TPU v5" else 0.03
    assert chip.hbm_bytes_per_second == pytest.approx(cores * core.mem_bw_bytes_per_second, rel=bandwidth)


def test_the_peak_of_devices_is_known_where_all_of_them_are():
    assert chips.peak_flops(["TPU v6 lite"] * 8) == 8 * 918e12
    assert chips.peak_flops(["cpu"]) is None
    assert chips.peak_flops(["TPU v4", "TPU v2"]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, but should be 1 or more"),
        ({"start_layer": 32}, "start_layer is 32, but the model has layers 0 to 31"),
        ({"targets": 1.5}, "targets is 1.5, but a share lies between 0 and 1"),
        ({"accumulate": 3}, "batch_size is 64, which accumulate, 3, does not divide"),
        ({"remat": "some"}, "remat 'some' is not one of full, dots, none, or dots:N with a number of layers"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        train_7b(**changes)


def test_a_decode_step_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="length is 0"):
        decode_step(L7B, batch_size=1, length=0)
    with pytest.raises(InputError, match="1 prefix tokens from layer 33 on cannot be had on 32 layers"):
        decode_step(L7B, batch_size=1, length=1, start_layer=33)
