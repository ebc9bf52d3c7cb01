"""Settings of GGUF files: applied as llama.cpp does, or refused by name."""

import math
from pathlib import Path

import numpy as np
import pytest
from gguf_files import MODELS, Tensors, converted, rope_factors, write_gguf

from aligner_jax.errors import InputError
from aligner_jax.weights.gguf import open_gguf

NAN, INF = math.nan, math.inf


def config_of(folder: Path, changes: dict[str, object], architecture: str = "llama", tensors: Tensors | None = None):
    """Returns the configuration of a golden model with changed metadata; None removes a setting."""
    metadata, weights = converted(MODELS / "llama")
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    return open_gguf(write_gguf(folder / "model.gguf", metadata, weights | (tensors or {}), architecture)).config


def refusal(folder: Path, changes: dict[str, object], **options) -> str:
    with pytest.raises(InputError) as error:
        config_of(folder, changes, **options)
    message = str(error.value)
    assert message.startswith(str(folder / "model.gguf"))
    return message.removeprefix(str(folder / "model.gguf")).lstrip(": ")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope.scaling.factor": 1.0},
        {"rope.scaling.factor": 0.0},
        {"rope.scale_linear": 1.0},
        {"rope.scaling.type": "linear"},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0},
        {"rope.scaling.type": "none"},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0, "rope.scaling.yarn_beta_fast": 32.0},
        {"rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": True},
        {"rope.scaling.original_context_length": 4096, "rope.scaling.yarn_ext_factor": -1.0},
        {"expert_count": 0, "expert_used_count": 0, "leading_dense_block_count": 0},
        {"attention.causal": True, "pooling_type": 0, "use_parallel_residual": False},
        {"attention.scale": 8**-0.5, "logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0},
        {"attention.scale": 0.0, "logit_scale": 0.0, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0},
        {"attention.sliding_window": 0},
        {"attention.sliding_window": 2048},
        {"attention.layer_norm_epsilon": 1e-5, "tensor_data_layout": "Meta AI original pth"},
        {"vocab_size": 64, "embedding_length_out": 16, "general.quantization_version": 2, "general.file_type": 7},
        {"split.count": 0},
        {"split.count": 1},
        {"general.name": "llama.attention.scale", "other.attention.scale": 3.0},
    ],
)
def test_settings_that_change_nothing_load(tmp_path, changes):
    assert config_of(tmp_path, changes) == config_of(tmp_path, {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"rope.scaling.factor": 4.0},
            "llama.rope.scaling.factor is 4, of linear scaling; of the rotary scalings only",
        ),
        ({"rope.scale_linear": 4.0}, "llama.rope.scale_linear is 4, of linear scaling"),
        ({"rope.scaling.factor": 1.0, "rope.scale_linear": 4.0}, "llama.rope.scale_linear is 4"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "llama.rope.scaling.factor is 4, of yarn scaling"),
        ({"rope.scaling.type": "ntk"}, "llama.rope.scaling.type is 'ntk', not one of none, linear, yarn"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 1.0}, "llama.rope.scaling.type is 'longrope'"),
        ({"rope.scaling.attn_factor": 1.2}, "llama.rope.scaling.attn_factor is 1.2"),
        ({"rope.scaling.yarn_attn_factor": 0.5}, "llama.rope.scaling.yarn_attn_factor is 0.5"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "llama.rope.scaling.yarn_log_multiplier is 0.1"),
        ({"rope.scaling.alpha": 1000.0}, "llama.rope.scaling.alpha is 1000.0: only models where it is 0 or 1 are"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count is 4, but the heads of queries and keys have 8"),
        ({"attention.value_length": 4}, "llama.attention.value_length is 4, but the heads of queries and keys have 8"),
        ({"attention.scale": 0.5}, "llama.attention.scale is 0.5; only the usual 0.353553 is supported"),
        ({"attention.causal": False}, "llama.attention.causal is False: only models where it is true are supported"),
        ({"attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is 8.0"),
        ({"attention.max_alibi_bias": 8.0}, "llama.attention.max_alibi_bias is 8.0"),
        ({"attention.sliding_window": 16}, "llama.attention.sliding_window is 16, less than the context of 2048"),
        ({"attention.kv_lora_rank": 4}, "llama.attention.kv_lora_rank is 4"),
        ({"attention.temperature_scale": 0.1}, "llama.attention.temperature_scale is 0.1"),
        ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping is 50.0"),
        ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping is 30.0"),
        ({"logit_scale": 0.25}, "llama.logit_scale is 0.25"),
        ({"residual_scale": 0.25}, "llama.residual_scale is 0.25"),
        ({"embedding_scale": 12.0}, "llama.embedding_scale is 12.0"),
        ({"expert_count": 8}, "llama.expert_count is 8"),
        ({"expert_used_count": 2}, "llama.expert_used_count is 2"),
        ({"leading_dense_block_count": 1}, "llama.leading_dense_block_count is 1"),
        ({"nextn_predict_layers": 1}, "llama.nextn_predict_layers is 1"),
        ({"pooling_type": 1}, "llama.pooling_type is 1"),
        ({"use_parallel_residual": True}, "llama.use_parallel_residual is True"),
        ({"tensor_data_layout": "transposed"}, "llama.tensor_data_layout is 'transposed', not one of reference"),
        ({"vocab_size": 32}, "llama.vocab_size is 32, but tensor token_embd.weight has 64"),
        ({"embedding_length_out": 8}, "llama.embedding_length_out is 8, but embedding_length is 16"),
        ({"attention.sink_count": 1}, "llama.attention.sink_count is no setting of a LLaMA that is known here"),
        ({"rope.dimension_sections": [2, 2]}, "llama.rope.dimension_sections is no setting of a LLaMA"),
        ({"split.count": 3}, "is one of 3 parts of a model"),
        ({"general.quantization_version": 1}, "general.quantization_version is 1; blocks of version 2 are read"),
        ({"attention.head_count": 3}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 0}, "llama.block_count is 0, not a positive integer"),
        ({"attention.layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon is missing"),
        ({"feed_forward_length": 1.5}, "llama.feed_forward_length is 1.5, not a positive integer"),
    ],
)
def test_settings_that_change_what_is_computed_are_refused(tmp_path, changes, sentence):
    assert sentence in refusal(tmp_path, changes)


WHOLE = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
         "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
         "attention.sliding_window", "vocab_size", "split.count", "rope.scaling.original_context_length")  # fmt: skip
REAL = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scale_linear",
        "attention.scale", "rope.scaling.yarn_ext_factor")  # fmt: skip
NEUTRAL = ("expert_count", "logit_scale", "rope.scaling.attn_factor", "attention.causal", "pooling_type")


@pytest.mark.parametrize("value", [NAN, INF, -INF, True, "1", [1, 2], ["x"]], ids=str)
@pytest.mark.parametrize("key", WHOLE + REAL + NEUTRAL)
def test_what_is_no_finite_number_is_none(tmp_path, key, value):
    if key == "attention.causal" and value is True:
        return
    sentence = refusal(tmp_path, {key: value})
    name = key if key.startswith("split.") else f"llama.{key}"
    assert sentence.startswith(f"{name} is ")


@pytest.mark.parametrize("key", ["rope.scaling.type", "tensor_data_layout", "rope.scaling.finetuned"])
def test_arrays_are_no_texts_and_no_flags(tmp_path, key):
    assert refusal(tmp_path, {key: [1, 2]}).startswith(f"llama.{key} is [1, 2], not ")


def test_numbers_come_back_as_they_were_written_before_they_were_float32(tmp_path):
    config = config_of(tmp_path, {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 500_000.0})
    assert (config.norm_eps, config.rope_theta) == (1e-6, 500_000.0)


def test_what_the_format_says_of_absent_settings(tmp_path):
    absent = config_of(tmp_path, {"rope.freq_base": None, "attention.key_length": None, "attention.value_length": None})
    assert absent.rope_theta == 10_000.0
    assert absent.head_dim == absent.d_model // absent.num_heads


def test_another_architecture_is_refused(tmp_path):
    sentence = refusal(tmp_path, {}, architecture="gemma")
    assert sentence == "general.architecture is 'gemma', not one of llama, qwen2"


def test_settings_of_qwen2_have_its_name(tmp_path):
    assert "qwen2.rope.scaling.factor is 4" in refusal(tmp_path, {"rope.scaling.factor": 4.0}, architecture="qwen2")


@pytest.mark.parametrize("factors", [[0.0] * 4, [1.0, 1.0, 1.0, 1e30], [0.5, 1, 1, 8], [-1.0] * 4])
def test_factors_that_are_no_llama3_scaling_are_refused(tmp_path, factors):
    tensors: Tensors = {"rope_freqs.weight": np.array(factors, np.float32)}
    assert "not the scaling of LLaMA 3.1" in refusal(tmp_path, {}, tensors=tensors)


def test_factors_beside_another_scaling_are_refused(tmp_path):
    tensors: Tensors = {"rope_freqs.weight": rope_factors(500_000.0, 8, 8.0, 8192)}
    changes: dict[str, object] = {"rope.freq_base": 500_000.0}
    assert config_of(tmp_path, changes, tensors=tensors).rope_scaling is not None
    assert "rope.scaling.factor is 8" in refusal(tmp_path, {**changes, "rope.scaling.factor": 8.0}, tensors=tensors)
