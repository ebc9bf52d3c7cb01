"""The base model: equal to transformers, causal, and the same under every remat."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.llama import (
    LlamaConfig,
    Params,
    abstract_params,
    forward,
    init_params,
    param_specs,
    rms_norm,
    unembed,
)
from aligner_jax.model.params import is_spec
from aligner_jax.peft import bind, init_adapter
from aligner_jax.weights.hf import load_hf

MODELS = places.GOLDENS / "models"
TOKENS_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
forward_jit = jax.jit(forward, static_argnames=("config", "remat", "implementation"))


@pytest.mark.parametrize("name", ["bfloat16", "llama", "llama3", "mistral", "sharded", "wide_head"])
def test_logits_equal_those_of_transformers(name: str):
    config, params = load_hf(MODELS / name, "float32")
    golden = np.load(MODELS / name / "expected.npz")
    logits_btv = unembed(params, forward_jit(params, jnp.asarray(golden["ids"], jnp.int32), config=config))
    np.testing.assert_allclose(logits_btv, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_nothing_of_later_positions_or_other_documents_reaches_a_position(
    num_tokens: int, config: LlamaConfig, params: Params, trained_adapter
):
    t = 8
    adapted = bind(trained_adapter(num_tokens), params, config).adapted if num_tokens else ()

    @jax.jit
    def gradient(segments_t, cotangent_t):
        def logits(embed_vd):
            # Position s holds token s, so that row s of the embedding is the input at position s.
            hidden_btd = forward(
                params.replace(embed_vd=embed_vd), jnp.arange(t)[None], config=config, adapted=adapted,
                segment_ids_bt=segments_t[None],
            )  # fmt: skip
            return unembed(params, hidden_btd)[0]

        _, pull = jax.vjp(logits, params.embed_vd)
        return pull(cotangent_t[:, None] * jnp.linspace(-1.0, 2.0, config.vocab_size)[None])[0]

    for segments_t in (np.ones(t, np.int32), np.asarray([1, 1, 1, 2, 2, 2, 2, 0], np.int32)):
        rows = [np.abs(gradient(segments_t, position)).max(axis=1)[:t] for position in np.eye(t, dtype=np.float32)]
        allowed_ts = np.tril(np.ones((t, t), bool)) & (segments_t[:, None] == segments_t[None])
        np.testing.assert_array_equal(np.stack(rows) > 0, allowed_ts)


def test_packing_needs_positions_of_each_document(config: LlamaConfig, params: Params):
    segments_bt = jnp.asarray([[1] * 5 + [2] * 7])
    positions_bt = jnp.asarray([[*range(5), *range(7)]])
    packed_btd = forward_jit(
        params, TOKENS_BT[:1], config=config, segment_ids_bt=segments_bt, positions_bt=positions_bt
    )
    # The second document moved to the front; later documents do not affect it.
    alone_btd = forward_jit(params, jnp.stack([TOKENS_BT[0], jnp.roll(TOKENS_BT[0], -5)]), config=config)
    np.testing.assert_allclose(packed_btd[0, :5], alone_btd[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed_btd[0, 5:], alone_btd[1, :7], atol=1e-5)


def test_bfloat16_is_close_to_float32_and_keeps_its_dtypes(config: LlamaConfig, params: Params):
    params16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden16 = forward_jit(params16, TOKENS_BT, config=config)
    hidden32 = forward_jit(jax.tree.map(lambda x: x.astype(jnp.float32), params16), TOKENS_BT, config=config)
    assert hidden16.dtype == jnp.bfloat16
    assert unembed(params16, hidden16).dtype == jnp.float32
    error = jnp.sqrt(jnp.mean((hidden16.astype(jnp.float32) - hidden32) ** 2) / jnp.mean(hidden32**2))
    assert error < 0.05


def test_norm_statistics_are_float32():
    x_btd = (jax.random.normal(jax.random.key(0), (2, 3, 64)) * 1e-3).astype(jnp.bfloat16)
    weight_d = jnp.linspace(0.5, 2, 64).astype(jnp.bfloat16)
    x = np.asarray(x_btd, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(weight_d, np.float64)
    np.testing.assert_allclose(np.asarray(rms_norm(x_btd, weight_d, 1e-5), np.float64), expected, rtol=2**-7)


def test_a_tied_head_is_the_embedding(config: LlamaConfig, params: Params):
    hidden_btd = jax.random.normal(jax.random.key(0), (2, 3, config.d_model))
    tied = params.replace(head_dv=None)
    untied = params.replace(head_dv=params.embed_vd.T)
    np.testing.assert_allclose(unembed(tied, hidden_btd), unembed(untied, hidden_btd), atol=1e-5)


def _pullback(trainable, params: Params, *, adapter, config: LlamaConfig, remat):
    def function(trainable):
        adapted = bind(adapter.replace(trainable=trainable), params, config).adapted
        return forward(params, TOKENS_BT, config=config, adapted=adapted, remat=remat)

    return jax.vjp(function, trainable)


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def _gradient(params: Params, adapter, *, config: LlamaConfig, remat):
    out, pull = _pullback(adapter.trainable, params, adapter=adapter, config=config, remat=remat)
    return pull(jnp.sin(out))[0]


def _saved_shapes(params: Params, adapter, config: LlamaConfig, remat) -> list[tuple[int, ...]]:
    """Returns shapes of the residuals of the forward pass; the weights count once."""
    pull = functools.partial(_pullback, adapter=adapter, config=config, remat=remat)
    return [x.shape for x in jax.tree.leaves(jax.eval_shape(lambda *args: pull(*args)[1], adapter.trainable, params))]


def test_remat_policies_agree_and_save_what_they_say(config: LlamaConfig, params: Params, trained_adapter):
    adapter = trained_adapter(1, start_layer=1)
    saved = {remat: _saved_shapes(params, adapter, config, remat) for remat in ("full", "dots", "none")}
    counts = {remat: sum(map(math.prod, shapes)) for remat, shapes in saved.items()}
    assert counts["full"] < counts["dots"] < counts["none"]
    copies_of_weights = {(2, *x.shape[1:]) for x in jax.tree.leaves(params.layers) if x.ndim > 2}
    for shapes in saved.values():
        assert not copies_of_weights.intersection(shapes)
    adapter = trained_adapter(1, start_layer=0)
    plain = _gradient(params, adapter, config=config, remat="none")
    for remat in ("dots", "full"):
        other = _gradient(params, adapter, config=config, remat=remat)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other, plain)


@pytest.mark.parametrize("start_layer", [0, 2])
@pytest.mark.parametrize("method", ["aligner", "lora"])
def test_the_last_layers_keep_their_products_and_gradients_are_those_of_full(
    config: LlamaConfig, method: str, start_layer: int
):
    deep = dataclasses.replace(config, num_layers=5)
    options = {"start_layer": start_layer} if method == "aligner" else {"rank": 2}
    fresh = init_adapter(method, deep, 3, **options)
    rng = np.random.default_rng(3)
    adapter = fresh.replace(
        trainable={name: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for name, x in fresh.trainable.items()}
    )
    params = init_params(deep, 2)
    saved = [sum(map(math.prod, _saved_shapes(params, adapter, deep, f"dots:{kept}"))) for kept in (1, 2, 4)]
    assert saved == sorted(set(saved))
    full = _gradient(params, adapter, config=deep, remat="full")
    found = _gradient(params, adapter, config=deep, remat="dots:2")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, full)


def test_more_layers_than_there_are_cannot_keep_anything(config: LlamaConfig, params: Params):
    with pytest.raises(
        InputError, match=f"remat 'dots:9' keeps results of 9 layers, but there are {config.num_layers}"
    ):
        forward(params, TOKENS_BT, config=config, remat="dots:9")


def test_the_backward_pass_ends_at_the_first_adapted_layer(config: LlamaConfig, params: Params, trained_adapter):
    def saved_numbers(start_layer: int, num_layers: int) -> int:
        deep = dataclasses.replace(config, num_layers=num_layers)
        adapter = trained_adapter(1, start_layer=2)
        adapter = adapter.replace(options=dataclasses.replace(adapter.options, start_layer=start_layer))
        deep_params = abstract_params(deep)
        weights = {x.shape for x in jax.tree.leaves(deep_params)}
        shapes = _saved_shapes(deep_params, adapter, deep, "none")
        return sum(math.prod(shape) for shape in shapes if shape not in weights)

    assert saved_numbers(2, 3) == saved_numbers(5, 6) > 0


def test_unknown_names_are_refused(config: LlamaConfig, params: Params):
    with pytest.raises(
        InputError, match="remat 'everything' is not one of full, dots, none, or dots:N with a number of layers"
    ):
        forward(params, TOKENS_BT, config=config, remat="everything")
    with pytest.raises(InputError, match="implementation 'fast' is not one of"):
        forward(params, TOKENS_BT, config=config, implementation="fast")


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_one_declaration_gives_specs_abstract_and_real_parameters(biases: bool, tied: bool, config: LlamaConfig):
    config = dataclasses.replace(config, qkv_bias=biases, o_bias=biases, tied_embeddings=tied)
    specs = param_specs(config)
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        assert len(spec.axes) == len(spec.shape)
    abstract = abstract_params(config, "bfloat16")
    real = jax.eval_shape(lambda: init_params(config, dtype="bfloat16"))
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), real, abstract)
    assert (abstract.head_dv is None) == tied
    assert (abstract.layers.o_bias_ld is None) == (abstract.layers.q_bias_lnh is None) == (not biases)
