"""Quantization: its error, its memory use, and whole bases that are loaded quantized."""

import dataclasses
import functools
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest

from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import abstract_params, param_specs
from aligner_jax.model.quantized import Quantization, Quantized, dequantized
from aligner_jax.peft import apply, init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.weights.base import load_base
from aligner_jax.weights.fingerprint import fingerprint
from aligner_jax.weights.quantize import quantize, quantizer

MODELS = places.GOLDENS / "models"
KINDS = ("int8", "int4")


def through(config: LlamaConfig, kind: str, name: str, leaf: np.ndarray, dtype=jnp.float32, size: int = 4):
    """Returns the leaf quantized, and that as float32."""
    weight = quantizer(config, Quantization(kind, size))(name, jnp.asarray(leaf, dtype))
    return weight, np.asarray(dequantized(weight, jnp.float32))


def test_int8_is_off_by_half_a_step_of_its_channel_at_most(config: LlamaConfig, params):
    leaf = np.array(params.layers.o_lnhd)
    leaf[0, :, :, 3] = 0
    weight, found = through(config, "int8", "o_lnhd", leaf)
    steps_l11d = np.abs(leaf).max(axis=(1, 2), keepdims=True) / 127
    assert (np.abs(found - leaf) <= 0.5001 * steps_l11d).all()
    assert (np.abs(np.asarray(weight.values)).max(axis=(1, 2))[1:] == 127).all()
    np.testing.assert_array_equal(found[0, :, :, 3], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused_by_name(config: LlamaConfig, params, kind: str, dtype: str, value):
    leaf = np.array(params.layers.down_lfd)
    leaf[1, 3, 5] = value
    with pytest.raises(InputError, match="leaf down_lfd of the base holds numbers that are not finite"):
        through(config, kind, "down_lfd", leaf, dtype)


def test_weights_whose_range_is_too_large_for_int4_are_refused(config: LlamaConfig, params):
    leaf = np.array(params.layers.down_lfd)
    leaf[1, :2, 5] = 3e38, -3e38
    with pytest.raises(InputError, match="too large to be quantized"):
        through(config, "int4", "down_lfd", leaf)
    assert np.isfinite(through(config, "int8", "down_lfd", leaf)[1]).all()


def test_int4_is_the_best_of_what_was_tried(config: LlamaConfig, params):
    leaf = np.array(params.layers.gate_ldf)
    leaf[1, 4:8, 5] = 0
    weight, found = through(config, "int4", "gate_ldf", leaf)
    assert weight.values.dtype == jnp.int4
    assert {(x.shape, x.dtype) for x in (weight.scales, weight.offsets)} == {((3, 4, 24), jnp.dtype("bfloat16"))}

    def errors(x):
        return np.square(x - leaf).reshape(3, 4, 4, 24).sum(axis=2)

    grouped = leaf.reshape(3, 4, 4, 24)
    lowest, highest = grouped.min(axis=2, keepdims=True), grouped.max(axis=2, keepdims=True)
    step = (highest - lowest) / 15 + (highest == lowest)
    even = (np.round((grouped - lowest) / step) * step + lowest).reshape(leaf.shape)
    # At four values per group the fit matters most; its scales and offsets are bfloat16 here and float32 there.
    assert errors(found).sum() < 0.7 * errors(even).sum()
    assert (errors(found) <= 1.1 * errors(even) + 1e-4 * np.square(grouped).sum(axis=2)).all()
    np.testing.assert_array_equal(found[1, 4:8, 5], 0)


def test_numbers_that_the_format_holds_stay(config: LlamaConfig):
    draw = np.random.default_rng(0)
    groups = draw.integers(-8, 8, (3, 4, 4, 24))
    groups[:, :, 0], groups[:, :, 2] = -8, 7
    steps = 2.0 ** draw.integers(-3, 3, (3, 4, 1, 24))
    for sign in (1, -1):
        leaf = (sign * groups * steps).reshape(3, 16, 24)
        np.testing.assert_array_equal(through(config, "int4", "gate_ldf", leaf)[1], leaf)
        np.testing.assert_array_equal(through(config, "int4", "gate_ldf", leaf, jnp.bfloat16)[1], leaf)


def test_the_array_is_gone_and_what_is_no_projection_stays(config: LlamaConfig, params):
    finish, leaf = quantizer(config, Quantization("int8")), jnp.copy(params.layers.up_ldf)
    assert isinstance(finish("up_ldf", leaf), Quantized)
    assert leaf.is_deleted()
    for name in ("embed_vd", "norm_d", "attn_norm_ld", "q_bias_lnh"):
        assert finish(name, params.norm_d) is params.norm_d
    assert not params.norm_d.is_deleted()


def test_one_layer_is_float32_at_a_time(config: LlamaConfig, optimized):
    deep = dataclasses.replace(config, num_layers=64, d_model=128, d_mlp=256)
    leaf = abstract_params(deep, "bfloat16").layers.gate_ldf
    for kind in KINDS:
        spec = param_specs(deep, Quantization(kind)).layers.gate_ldf
        memory = optimized(functools.partial(quantize, spec=spec)).lower(leaf).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 12 * 4 * 128 * 256


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A GGUF of a tiny model, all ones except for its projections."""
    path, d, f, vocab = tmp_path / "tiny.gguf", 32, 64, 48
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(f)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    draw = np.random.default_rng(0)
    shapes = {"attn_q": (d, d), "attn_k": (d, d), "attn_v": (d, d), "attn_output": (d, d)}
    shapes |= {"ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
    writer.add_tensor("token_embd.weight", draw.standard_normal((vocab, d)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(d, np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", (0.2 * draw.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_base_is_loaded_quantized(tiny_model: Path, tiny_gguf: Path, form: str, kind: str, error: float, dtype: str):
    path = {"hf": tiny_model, "gguf": tiny_gguf}[form]
    base, plain = load_base(path, dtype, quantization=kind, group_size=16), load_base(path, dtype)
    assert base.quantization == Quantization(kind, 16)
    held = abstract_params(base.config, dtype, base.quantization)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), base.params) == jax.tree.map(lambda x: (x.shape, x.dtype), held)
    tokens_bt = jnp.arange(16, dtype=jnp.int32)[None]
    logits_btv, expected_btv = (
        jax.jit(apply, static_argnames="config")(each.params, None, tokens_bt, config=base.config)
        for each in (base, plain)
    )
    off = jnp.linalg.norm(logits_btv - expected_btv) / jnp.linalg.norm(expected_btv)
    assert 0 < off < error + (0.02 if dtype == "bfloat16" else 0)


def test_the_fingerprint_is_that_of_the_weights_before(tmp_path: Path):
    plain = load_base(MODELS / "llama3")
    found = [
        load_base(MODELS / "llama3", dtype, quantization=kind, group_size=4)
        for kind, dtype in (("int8", "float32"), ("int4", "bfloat16"), ("int8", "float16"), ("int4", "float16"))
    ]
    assert {base.fingerprint for base in found} == {fingerprint(plain.config, plain.params)}
    save_adapter(init_adapter("aligner", plain.config, start_layer=1), tmp_path / "a.safetensors", found[0])
    assert load_adapter(tmp_path / "a.safetensors", plain).method == "aligner"
    assert load_adapter(tmp_path / "a.safetensors", found[1]).method == "aligner"
    with pytest.raises(InputError, match="other weights"):
        load_adapter(tmp_path / "a.safetensors", found[0].replace(loaded_fingerprint="0" * 64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_base_generates(tiny_model: Path, kind: str):
    base = load_base(tiny_model, quantization=kind)
    to_array = lambda x: dequantized(x, jnp.float32) if isinstance(x, Quantized) else x  # noqa: E731
    same = base.replace(params=jax.tree.map(to_array, base.params, is_leaf=lambda x: isinstance(x, Quantized)))
    adapter = init_adapter("aligner", base.config, num_tokens=2)
    texts = sample(base, adapter, ["What is a pixel?", "Name"], max_new_tokens=6)
    assert texts == sample(same, adapter, ["What is a pixel?", "Name"], max_new_tokens=6)
    assert any(texts)


def test_none_is_no_quantization():
    base = load_base(MODELS / "llama", quantization="none")
    assert base.quantization is None
    assert {x.dtype for x in jax.tree.leaves(base.params)} == {jnp.dtype("float32")}
    with pytest.raises(InputError, match="quantization 'int2' is not one of none, int8, int4"):
        load_base(MODELS / "llama", quantization="int2")
