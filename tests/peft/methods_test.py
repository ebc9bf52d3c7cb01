"""All methods: the contract (`method_contract`), and each method against its formula or equivalent arrays."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_check import check_golden
from method_contract import CONTRACT, TOKENS_BT, Case, apply_jit
from places import SHARED

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.params import Params
from aligner_jax.objectives import sft
from aligner_jax.peft import METHODS, init_adapter, with_strength
from aligner_jax.peft.lora import TARGETS
from aligner_jax.weights.hf import load_hf

VARIANTS: dict[str, tuple[str, dict]] = {
    "aligner": ("aligner", {"num_tokens": 3, "start_layer": 1}),
    "aligner of head tokens": ("aligner", {"num_tokens": 2, "tokens": "head", "gates": "global"}),
    "aligner of kv gates": ("aligner", {"num_tokens": 1, "gates": "kv_head", "start_layer": 0}),
    "aligner of shared gates": ("aligner", {"num_tokens": 2, "gates": "shared_heads", "start_layer": 1}),
    "aligner of token gates": ("aligner", {"num_tokens": 3, "gates": "token", "start_layer": 1, "init_std": 0.5}),
    "llama_adapter": ("llama_adapter", {"num_tokens": 3, "start_layer": 1}),
    "llama_adapter of PEFT": ("llama_adapter", {"num_tokens": 3, "start_layer": 1, "gates": "layer"}),
    "llama_adapter of tanh": ("llama_adapter", {"num_tokens": 1, "start_layer": 0, "tanh": True}),
    "lora": ("lora", {"rank": 2}),
    "lora everywhere": ("lora", {"rank": 3, "targets": tuple(TARGETS), "rslora": True}),
    "prompt": ("prompt", {"num_tokens": 3}),
    "prefix": ("prefix", {"num_tokens": 3, "start_layer": 1}),
    "bias": ("bias", {"start_layer": 1}),
    "bias of values": ("bias", {"target": "v", "start_layer": 0}),
    "full": ("full", {}),
    "sum": (
        "sum",
        {
            "aligner": [{"num_tokens": 3, "start_layer": 1}, {"num_tokens": 1, "gates": "kv_head"}, {"num_tokens": 2}],
            "llama_adapter": [{"num_tokens": 2, "start_layer": 1}],
        },
    ),
    "sum of kinds": (
        "sum",
        {"aligner": [], "bias": [{"start_layer": 2}, {"target": "v"}], "lora": [{"rank": 2}, {"rank": 1}]},
    ),
}
CASES = {name: (name, {}) for name in METHODS} | VARIANTS
"""Variants by method; a method without variants here runs with its defaults."""


@pytest.fixture(scope="module", params=CASES)
def case(request, config: LlamaConfig, random_params, randomized, pack) -> Case:
    """A method with random arrays, like a trained one, and a model that supports it."""
    method, options = CASES[request.param]
    if options.get("tokens") == "head":
        # The method's width must be a multiple of a head's.
        config = dataclasses.replace(config, head_dim=4)
    adapter = randomized(init_adapter(method, config, **options))
    return Case(config, random_params(config), adapter, randomized, pack)


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_every_method_keeps_the_promise(promise: Callable[[Case, Path], None], case: Case, tmp_path: Path):
    promise(case, tmp_path)


def test_strength_multiplies_what_a_gate_weighs(config: LlamaConfig, params: Params, randomized):
    bounded = randomized(init_adapter("llama_adapter", config, num_tokens=3, start_layer=1, tanh=True))
    gates_ln = np.tanh(3 * np.asarray(bounded.trainable["gates_ln"]))
    bounded = bounded.replace(trainable={**bounded.trainable, "gates_ln": 3 * bounded.trainable["gates_ln"]})
    plain = init_adapter("llama_adapter", config, num_tokens=3, start_layer=1)
    plain = plain.replace(trainable={**bounded.trainable, "gates_ln": jnp.asarray(0.5 * gates_ln)})
    half = apply_jit(params, with_strength(bounded, 0.5), TOKENS_BT, config=config)
    np.testing.assert_allclose(half, apply_jit(params, plain, TOKENS_BT, config=config), atol=2e-5)


COUNTS = [
    ("llama_7b", "aligner", {}, 5_056),
    ("llama_7b", "aligner", {"num_tokens": 10}, 41_920),
    ("llama_7b", "aligner", {"gates": "kv_head"}, 5_056),
    ("llama_7b", "aligner", {"num_tokens": 10, "gates": "token"}, 10 * 5_056),
    ("llama_7b", "aligner", {"gates": "shared_heads"}, 4_096 + 32),
    ("llama_7b", "aligner", {"tokens": "head", "gates": "global"}, 128 + 1),
    ("llama3_8b", "aligner", {"gates": "kv_head"}, 4_096 + 30 * 8),
    ("llama_7b", "llama_adapter", {}, 1_229_760),
    ("llama_13b", "llama_adapter", {}, 1_947_120),
    ("llama_7b", "llama_adapter", {"gates": "layer"}, 30 * (40_960 + 1)),
    ("llama_7b", "lora", {}, 4_194_304),
    ("llama_13b", "lora", {}, 6_553_600),
    ("llama_7b", "prompt", {"num_tokens": 10}, 40_960),
    ("llama_7b", "prefix", {"num_tokens": 10}, 2 * 32 * 40_960),
    ("llama_7b", "bias", {}, 30 * 4_096),
    ("llama3_8b", "bias", {"target": "v"}, 30 * 1_024),
    ("llama_7b", "full", {}, 6_738_415_616),
]


@pytest.mark.parametrize(("model", "method", "options", "count"), COUNTS)
def test_parameters_are_counted_as_published(model: str, method: str, options: dict, count: int):
    abstract = jax.eval_shape(functools.partial(init_adapter, method, llama_config(model), **options))
    assert abstract.num_params == count


@pytest.mark.parametrize("options", [{"targets": tuple(TARGETS)}, {"targets": ("o",), "rslora": True}])
def test_lora_is_the_merged_weights(options: dict, config: LlamaConfig, params: Params, randomized):
    adapter = randomized(init_adapter("lora", config, rank=4, alpha=6, **options))
    scale = 6 / 4**0.5 if options.get("rslora") else 6 / 4
    merged = {}
    for target in options["targets"]:
        field, shape = TARGETS[target], getattr(params.layers, TARGETS[target]).shape
        a, b = (
            next(x for name, x in adapter.trainable.items() if name.startswith(f"{side}_{target}_")) for side in "ab"
        )
        product = np.einsum("lir,lro->lio", a.reshape(len(a), -1, 4), b.reshape(len(b), 4, -1))
        merged[field] = getattr(params.layers, field) + scale * product.reshape(shape)
    expected = apply_jit(params.replace(layers=params.layers.replace(**merged)), None, TOKENS_BT, config=config)
    np.testing.assert_allclose(apply_jit(params, adapter, TOKENS_BT, config=config), expected, atol=2e-5)


def test_a_fresh_lora_has_kaimings_bounds():
    a = init_adapter("lora", llama_config("smollm2_135m"), targets=("q", "down")).trainable
    for name, inputs in (("a_q_ldr", 576), ("a_down_lfr", 1536)):
        bound = inputs**-0.5
        assert float(jnp.max(jnp.abs(a[name]))) <= bound
        np.testing.assert_allclose(float(jnp.std(a[name])), bound / 3**0.5, rtol=0.02)
    assert not a["b_q_lrnh"].any()


def test_lora_drops_entries_of_its_own_path_only_with_a_key(config: LlamaConfig, params: Params, pack, randomized):
    batch = pack([[(TOKENS_BT[0].tolist(), [1] * 12)]], 12)
    losses = jax.jit(sft.losses, static_argnames=("config",))

    def run(adapter, key):
        return np.asarray(losses(params, adapter, batch, config=config, dropout_key=key)[0])

    with_dropout = randomized(init_adapter("lora", config, rank=2, dropout=0.5))
    without = with_dropout.replace(options=dataclasses.replace(with_dropout.options, dropout=0.0))
    keys = [jax.random.key(i) for i in range(3)]
    np.testing.assert_array_equal(run(with_dropout, None), run(without, None))
    np.testing.assert_array_equal(run(without, keys[0]), run(without, None))
    np.testing.assert_array_equal(run(with_dropout, keys[0]), run(with_dropout, keys[0]))
    assert np.abs(run(with_dropout, keys[0]) - run(with_dropout, keys[1])).max() > 1e-3
    silent = with_strength(with_dropout, 0.0)
    np.testing.assert_array_equal(run(silent, keys[2]), run(silent, None))


def test_prompt_tokens_stand_before_the_text(config: LlamaConfig, params: Params, randomized):
    adapter = randomized(init_adapter("prompt", config, num_tokens=3))
    longer = params.replace(embed_vd=jnp.concatenate([params.embed_vd, adapter.trainable["tokens_pd"]]))
    tokens_bt = np.concatenate([np.broadcast_to(np.arange(40, 43, dtype=np.int32), (2, 3)), TOKENS_BT], axis=1)
    expected = apply_jit(longer, None, tokens_bt, config=dataclasses.replace(config, vocab_size=43))
    actual = apply_jit(params, adapter, TOKENS_BT, config=config)
    np.testing.assert_allclose(actual, expected[:, 3:, : actual.shape[-1]], atol=2e-5)


def test_biases_are_the_models_own(config: LlamaConfig, params: Params, randomized):
    for target, field in (("o", "o_bias_ld"), ("v", "v_bias_lkh")):
        adapter = randomized(init_adapter("bias", config, target=target, start_layer=0))
        biased = params.replace(layers=params.layers.replace(**{field: adapter.trainable[field]}))
        expected = apply_jit(biased, None, TOKENS_BT, config=config)
        np.testing.assert_allclose(apply_jit(params, adapter, TOKENS_BT, config=config), expected, atol=2e-5)
        twice = apply_jit(biased, adapter, TOKENS_BT, config=config)
        np.testing.assert_allclose(
            twice, apply_jit(params, with_strength(adapter, 2.0), TOKENS_BT, config=config), atol=2e-5
        )


def test_full_is_the_sum(config: LlamaConfig, params: Params, randomized):
    adapter = randomized(init_adapter("full", config))
    difference = lambda path: adapter.trainable[".".join(key.name for key in path)]  # noqa: E731
    summed = jax.tree_util.tree_map_with_path(lambda path, x: x + difference(path), params)
    np.testing.assert_allclose(
        apply_jit(params, adapter, TOKENS_BT, config=config),
        apply_jit(summed, None, TOKENS_BT, config=config),
        atol=2e-4,
    )


def test_one_token_with_gates_of_kv_heads_is_a_bias_of_the_values(config: LlamaConfig, params: Params, randomized):
    adapter = randomized(init_adapter("aligner", config, gates="kv_head", start_layer=0))
    tokens_d, gates_lk = adapter.trainable["tokens_pd"][0], adapter.trainable["gates_ln"]
    values_lkh = jnp.einsum("d,ldkh->lkh", tokens_d, params.layers.v_ldkh) * gates_lk[:, :, None]
    bias = init_adapter("bias", config, target="v", start_layer=0).replace(trainable={"v_bias_lkh": values_lkh})
    expected = apply_jit(params, bias, TOKENS_BT, config=config)
    np.testing.assert_allclose(apply_jit(params, adapter, TOKENS_BT, config=config), expected, atol=2e-5)


def test_variants_are_the_aligner_of_the_repeated_arrays(config: LlamaConfig, random_params, randomized):
    config = dataclasses.replace(config, head_dim=4)
    params = random_params(config)
    whole = functools.partial(init_adapter, "aligner", config, num_tokens=2, start_layer=1)

    def logits(adapter):
        return apply_jit(params, adapter, TOKENS_BT, config=config)

    for options, spread in (
        ({"tokens": "head", "gates": "global"}, lambda g: jnp.full((2, 4), g[0, 0])),
        ({"gates": "shared_heads"}, lambda g: jnp.repeat(g, 2, axis=0)),
        ({"gates": "kv_head"}, lambda g: jnp.repeat(g, 2, axis=1)),
        ({"gates": "layer"}, lambda g: jnp.repeat(g, 4, axis=1)),
    ):
        adapter = randomized(whole(**options))
        tokens_pd = jnp.tile(adapter.trainable["tokens_pd"], (1, 16 // adapter.trainable["tokens_pd"].shape[1]))
        same = whole().replace(trainable={"tokens_pd": tokens_pd, "gates_ln": spread(adapter.trainable["gates_ln"])})
        np.testing.assert_array_equal(logits(adapter), logits(same))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder `shared` is not beside the repository")
@pytest.mark.parametrize(
    ("file", "method"),
    [
        ("stories260k_llama_adapter_n4_start2", "llama_adapter"),
        ("stories260k_lora_r4_qv_scale2", "lora"),
    ],
)
def test_golden_on_a_real_model(file: str, method: str):
    golden = np.load(SHARED / "goldens" / f"{file}.npz")
    config, params = load_hf(SHARED / "data" / "models" / "stories260K" / "hf", "float32")
    adapter, gradients = {"llama_adapter": _golden_adapter, "lora": _golden_lora}[method](golden, config)
    check_golden(golden, adapter, gradients, config, params)


def _golden_adapter(golden, config: LlamaConfig):
    start = int(golden["start_layer"])
    adapter = init_adapter("llama_adapter", config, num_tokens=golden["tokens"].shape[1], start_layer=start)
    trained = {"tokens_lpd": golden["tokens"], "gates_ln": golden["gates"]}
    gradients = {"tokens_lpd": golden["grad_tokens"], "gates_ln": golden["grad_gates"]}
    return adapter.replace(trainable={name: jnp.asarray(x, jnp.float32) for name, x in trained.items()}), gradients


def _golden_lora(golden, config: LlamaConfig):
    rank = golden["qa"].shape[1]
    adapter = init_adapter("lora", config, rank=rank, alpha=rank * 2.0)

    def ours(prefix: str) -> dict[str, np.ndarray]:
        found = {}
        for target, heads in (("q", config.num_heads), ("v", config.num_kv_heads)):
            letters = {"q": "nh", "v": "kh"}[target]
            found[f"a_{target}_ldr"] = golden[f"{prefix}{target}a"].swapaxes(1, 2)
            b_lro = golden[f"{prefix}{target}b"].swapaxes(1, 2)
            found[f"b_{target}_lr{letters}"] = b_lro.reshape(*b_lro.shape[:2], heads, config.head_dim)
        return found

    trained = {name: jnp.asarray(x, jnp.float32) for name, x in ours("").items()}
    return adapter.replace(trainable=trained), ours("grad_")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("aligner", {"gates": "heads"}, "gates is 'heads', but should be one of head, kv_head"),
        ("aligner", {"tokens": "head"}, "tokens is 'head', but the model's width 16 is no multiple of a head's, 6"),
        ("llama_adapter", {"num_tokens": 0}, "num_tokens is 0"),
        ("llama_adapter", {"tanh": 1}, "tanh is 1, but should be True or False"),
        ("lora", {"rank": 0}, "rank is 0"),
        ("lora", {"targets": ("q", "w")}, "targets[1] is 'w', but should be one of q, k, v"),
        ("lora", {"targets": "q"}, "targets is 'q', but should be a list"),
        ("lora", {"dropout": 1.0}, "dropout is 1.0, but should be less than 1"),
        ("lora", {"alpha": "big"}, "alpha is 'big', but should be a number"),
        ("bias", {"target": "k"}, "target is 'k', but should be one of o, v"),
        ("prefix", {"init_std": -1}, "init_std is -1, but should be 0 or more"),
        ("prompt", {"start_layer": 2}, "adapter method 'prompt' has no option 'start_layer'"),
    ],
)
def test_impossible_options_are_refused(method: str, options: dict, message: str, config: LlamaConfig):
    with pytest.raises(InputError, match=re.escape(message)):
        init_adapter(method, config, **options)
