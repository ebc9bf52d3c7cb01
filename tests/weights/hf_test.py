"""Hugging Face folders: transformers' goldens, the layout of every leaf, and a sentence for each broken folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from safetensors.numpy import load_file, save_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, RopeScaling
from aligner_jax.model.llama import forward, unembed
from aligner_jax.weights.hf import load_hf
from aligner_jax.weights.hf_config import hf_config

MODELS = places.GOLDENS / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """A writable copy of a golden model."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(MODELS / name, tmp_path / name))

    return copy


def edit_config(path: Path, **fields: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def edit_weights(path: Path, edit: Callable[[dict[str, np.ndarray]], object], file: str = "model.safetensors") -> None:
    weights = load_file(path / file)
    edit(weights)
    save_file(weights, path / file)


@pytest.mark.parametrize("name", ["llama", "llama3", "wide_head", "mistral", "sharded", "bfloat16"])
def test_logits_are_those_of_transformers(name: str):
    config, params = load_hf(MODELS / name)
    expected = np.load(MODELS / name / "expected.npz")
    logits = jax.jit(lambda ids: unembed(params, forward(params, ids, config=config)))(expected["ids"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=1e-4)


def test_every_leaf_is_the_transposed_matrix_split_by_heads():
    config, params = load_hf(MODELS / "wide_head")
    weights = load_file(MODELS / "wide_head" / "model.safetensors")
    d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    layers = params.layers
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."

        def matrix(name: str, at: str = at) -> np.ndarray:
            return weights[f"{at}{name}.weight"].T

        def bias(name: str, at: str = at) -> np.ndarray:
            return weights[f"{at}self_attn.{name}_proj.bias"]

        expected = {
            "q_ldnh": matrix("self_attn.q_proj").reshape(d, n, h),
            "k_ldkh": matrix("self_attn.k_proj").reshape(d, k, h),
            "v_ldkh": matrix("self_attn.v_proj").reshape(d, k, h),
            "o_lnhd": matrix("self_attn.o_proj").reshape(n, h, d),
            "gate_ldf": matrix("mlp.gate_proj"),
            "up_ldf": matrix("mlp.up_proj"),
            "down_lfd": matrix("mlp.down_proj"),
            "attn_norm_ld": matrix("input_layernorm"),
            "mlp_norm_ld": matrix("post_attention_layernorm"),
            "q_bias_lnh": bias("q").reshape(n, h),
            "k_bias_lkh": bias("k").reshape(k, h),
            "v_bias_lkh": bias("v").reshape(k, h),
            "o_bias_ld": bias("o"),
        }
        assert set(expected) == set(vars(layers))
        for leaf, value in expected.items():
            np.testing.assert_array_equal(getattr(layers, leaf)[layer], value, err_msg=leaf)
    np.testing.assert_array_equal(params.embed_vd, weights["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params.norm_d, weights["model.norm.weight"])
    np.testing.assert_array_equal(params.head_dv, weights["lm_head.weight"].T)


def test_a_bfloat16_checkpoint_is_the_same_in_both_dtypes():
    full, half = (load_hf(MODELS / "bfloat16", dtype)[1] for dtype in ("float32", "bfloat16"))
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert (a.dtype, b.dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_array_equal(a, b.astype(jnp.float32))


def test_a_float32_checkpoint_rounds_to_nearest_even_in_bfloat16():
    full, half = (load_hf(MODELS / "llama", dtype)[1] for dtype in ("float32", "bfloat16"))
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)


def test_float16_tensors_are_read(folder):
    path = folder("llama")

    def halve(weights):
        weights |= {name: tensor.astype(np.float16) for name, tensor in weights.items()}

    edit_weights(path, halve)
    _, params = load_hf(path)
    expected = load_file(path / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(params.embed_vd, expected)


def test_config_in_both_spellings(folder):
    path = folder("llama3")
    older = hf_config(path)
    shutil.copy(path / "config_transformers5.json", path / "config.json")
    assert older == hf_config(path)
    assert older == LlamaConfig(
        64, 32, 40, 3, 4, 2, 8, 2048, 500_000.0, RopeScaling(8.0, 1.0, 4.0, 256), 1e-5, tied_embeddings=True
    )


def test_absent_fields_have_llamas_defaults():
    config = hf_config(MODELS / "llama")
    assert (config.num_kv_heads, config.head_dim) == (config.num_heads, config.d_model // config.num_heads)
    assert (config.rope_theta, config.rope_scaling, config.qkv_bias) == (10_000.0, None, False)


def test_qwen2_has_biases_without_saying_so(folder):
    path = folder("wide_head")
    edit_config(path, model_type="qwen2", attention_bias=None, sliding_window=16, use_sliding_window=False)
    config = hf_config(path)
    assert (config.qkv_bias, config.o_bias) == (True, False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma', not one of llama"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window is 16, less than the context of 2048"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3', not an object"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "16"}, "hidden_size is '16', not a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"num_key_value_heads": 3}, "num_heads 2 is not a multiple of num_kv_heads 3"),
    ],
)
def test_models_that_are_no_llama_are_refused(folder, fields, sentence):
    path = folder("llama")
    edit_config(path, **fields)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        hf_config(path)
    assert str(path / "config.json") in str(error.value)


@pytest.mark.parametrize(("text", "sentence"), [("{\n1}", r"config\.json:2 is not JSON"), ("[]", "not a JSON object")])
def test_a_broken_config_is_named(folder, text, sentence):
    path = folder("llama")
    (path / "config.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        hf_config(path)


EMBED, K1 = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda weights: weights.pop(K1), f"tensor {K1} is missing"),
        (lambda weights: [weights.pop(K1), weights.pop("model.norm.weight")], "is missing, and 1 more"),
        (lambda weights: weights.update({"score.weight": np.ones(2)}), "tensor score.weight has no place"),
        (
            lambda weights: weights.update({K1.replace("1", "3"): weights[K1]}),
            "tensor model.layers.3.self_attn.k_proj.weight has no place",
        ),
        (
            lambda weights: weights.update({EMBED: weights[EMBED][1:]}),
            f"tensor {EMBED} has shape [63, 16], but the model's configuration asks for [64, 16]",
        ),
        (
            lambda weights: weights.update({K1: weights[K1].reshape(-1)}),
            f"tensor {K1} has shape [256], but the model's configuration asks for [16, 16]",
        ),
        (
            lambda weights: weights.update({K1: weights[K1].astype(np.int8)}),
            f"tensor {K1} is stored as I8, which is not one of F32, BF16, F16",
        ),
        (
            lambda weights: weights.update({K1.replace("weight", "bias"): np.ones(16, np.float32)}),
            "k_proj.bias has no place",
        ),
    ],
)
def test_every_tensor_is_accounted_for(folder, edit, sentence):
    path = folder("llama")
    edit_weights(path, edit)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        load_hf(path)
    assert str(path) in str(error.value)


def test_rotary_frequencies_of_old_checkpoints_are_ignored(folder):
    path = folder("llama")
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    edit_weights(path, lambda weights: weights.update({name.format(i): np.ones(4, np.float32) for i in range(3)}))
    load_hf(path)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(folder):
    path = folder("llama3")
    edit_weights(path, lambda weights: weights.update({"lm_head.weight": weights[EMBED]}))
    assert load_hf(path)[1].head_dv is None
    edit_weights(path, lambda weights: weights.update({"lm_head.weight": weights[EMBED] + np.float32(1e-3)}))
    with pytest.raises(InputError, match=f"tensor lm_head.weight differs from {EMBED}"):
        load_hf(path)


def test_a_tied_head_may_be_all_that_is_there(folder):
    expected = load_hf(MODELS / "llama3")[1]
    path = folder("llama3")
    edit_weights(path, lambda weights: weights.update({"lm_head.weight": weights.pop(EMBED)}))
    jax.tree.map(np.testing.assert_array_equal, load_hf(path)[1], expected)
    edit_weights(path, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"][1:]}))
    with pytest.raises(InputError, match=r"tensor lm_head\.weight has shape \[63, 32\]"):
        load_hf(path)


def test_an_untied_head_alone_is_no_embedding(folder):
    path = folder("llama")
    edit_weights(path, lambda weights: weights.pop(EMBED))
    with pytest.raises(InputError, match=f"tensor {EMBED} is missing"):
        load_hf(path)


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.03, 0.2, 0.6, 0.999])
def test_truncated_safetensors(folder, share):
    path = folder("llama")
    file = path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=re.escape(f"{file} is not a whole safetensors file")):
        load_hf(path)


@pytest.mark.parametrize(
    ("share", "name"), [(0.5, "model-00001-of-00002.safetensors"), (0.9, "model-00002-of-00002.safetensors")]
)
def test_a_truncated_shard_is_named(folder, share, name):
    path = folder("sharded")
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=name):
        load_hf(path)


def test_a_missing_shard_is_named(folder):
    path = folder("sharded")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json names model-00002-of-00002\.safetensors, which is"):
        load_hf(path)


def test_a_tensor_in_two_shards_is_named(folder):
    path = folder("sharded")
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    edit_weights(path, lambda weights: weights.update({EMBED: load_file(path / first)[EMBED]}), second)
    with pytest.raises(InputError, match=f"{second}: tensor {EMBED} is there in {first} too"):
        load_hf(path)


def test_a_tensor_that_only_the_index_has_is_named(folder):
    path = folder("sharded")
    edit_weights(path, lambda weights: weights.pop(EMBED), "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=f"says that model-00001-of-00002.safetensors holds tensor {EMBED}"):
        load_hf(path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b.safetensors"}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "' + "x" * 5000 + '.safetensors"}}',
        '{"weight_map": {"a": "x\\u0000.safetensors"}}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"weight_map": {"a": "b", "a": "c"}}',
        '{"weight_map": {"model.layers.7.\udcff": "b"}}',
    ],
)
def test_a_broken_index_is_named(folder, text):
    path = folder("sharded")
    (path / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        load_hf(path)
    assert "model.safetensors.index.json" in str(error.value)


def test_weights_that_are_not_finite_are_named(folder):
    for value in (np.nan, np.inf, -np.inf):
        path = folder("llama")
        edit_weights(path, lambda weights, value=value: weights[K1].__setitem__((3, 4), value))
        with pytest.raises(InputError, match=rf"model\.safetensors: tensor {K1} holds numbers that are not finite"):
            load_hf(path)
        shutil.rmtree(path)


def test_a_folder_without_safetensors(folder):
    path = folder("llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load_hf(path)


def test_a_number_beyond_bfloat16_is_refused_there_and_read_in_float32(folder):
    path = folder("llama")
    edit_weights(path, lambda weights: weights[K1].__setitem__((0, 0), np.finfo(np.float32).max))
    _, params = load_hf(path)
    assert params.layers.k_ldkh.max() == np.finfo(np.float32).max
    with pytest.raises(InputError, match=rf"tensor {K1} holds numbers that bfloat16 cannot hold; load it in float32"):
        load_hf(path, "bfloat16")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_key_value_heads", 3, "config.json: num_heads"),
        ("intermediate_size", "x", "config.json: intermediate_size"),
    ],
)
def test_errors_name_the_file_once_however_long_its_path(folder, tmp_path, field, value, sentence):
    path = folder("llama").rename(tmp_path / ("x" * 200))
    edit_config(path, **{field: value})
    with pytest.raises(InputError) as error:
        hf_config(path)
    assert str(error.value).count("config.json") == str(error.value).count(sentence) == 1
