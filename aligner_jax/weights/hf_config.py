"""Hugging Face's config.json as a `LlamaConfig`, and refusal of what is not a LLaMA in all but name."""

from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields, read_fields
from aligner_jax.model.config import LlamaConfig, RopeScaling

_QWEN2 = "qwen2"
_MODEL_TYPES = ("llama", "mistral", _QWEN2)


def hf_config(path: Path) -> LlamaConfig:
    """The configuration in `path`/config.json; absent fields have the defaults of transformers' LlamaConfig.

    Raises:
      InputError: there is no such file, it is not JSON, a field is missing or absurd, or the model computes something
        that `LlamaConfig` cannot say: another architecture, an active sliding window, MLP biases, quantized weights,
        an activation other than SiLU, a rotary scaling other than llama3's.
    """
    fields = read_fields(path / "config.json")
    model_type = fields.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise fields.error("model_type", f"is {model_type!r}, not one of {', '.join(_MODEL_TYPES)}")
    d_model, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    context_length = fields.integer("max_position_embeddings", 2048)
    _refuse_other_mathematics(fields, context_length)
    rope_theta, rope_scaling = _rope(fields)
    attention_bias = fields.flag("attention_bias")
    try:
        return LlamaConfig(
            vocab_size=fields.integer("vocab_size"),
            d_model=d_model,
            d_mlp=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=fields.integer("head_dim", max(1, d_model // num_heads)),
            context_length=context_length,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            tied_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or model_type == _QWEN2,
            o_bias=attention_bias and model_type != _QWEN2,
        )
    except InputError as error:
        message = str(error)
        raise (error if message.startswith(str(path)) else InputError(f"{fields.file}: {message}")) from None


def _refuse_other_mathematics(fields: Fields, context_length: int) -> None:
    if fields.get("hidden_act") not in (None, "silu", "swish"):
        raise fields.error("hidden_act", f"is {fields.get('hidden_act')!r}, but a LLaMA's MLP has silu")
    if fields.flag("mlp_bias"):
        raise fields.error("mlp_bias", "is true, but biases in the MLP are not supported")
    if fields.get("quantization_config") is not None:
        raise fields.error("quantization_config", "is set, but only unquantized safetensors can be read")
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise fields.error("partial_rotary_factor", "is not 1: rotary embeddings must cover the whole head")
    window = fields.get("sliding_window")
    # Qwen2's configuration carries a window that this switch leaves unused.
    if fields.get("use_sliding_window") is False or window is None:
        return
    if fields.get("model_type") != "llama" and fields.integer("sliding_window") < context_length:
        raise fields.error(
            "sliding_window", f"is {window}, less than the context of {context_length}: windows are not supported"
        )


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling, from transformers 5's `rope_parameters` or from the older two fields."""
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = fields.number("rope_theta", 10_000.0)
    if rope is None:
        return theta, None
    theta = rope.number("rope_theta", theta)
    name = "rope_type" if rope.get("rope_type") is not None else "type"
    kind = rope.get(name)
    if kind in (None, "default"):
        return theta, None
    if kind != "llama3":
        raise rope.error(name, f"is {kind!r}; of the rotary scalings only llama3 is supported")
    return theta, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context_length=rope.integer("original_max_position_embeddings"),
    )
