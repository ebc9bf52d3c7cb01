"""Converts Hugging Face's config.json to a `LlamaConfig`, and refuses models that compute something else.

Every field that changes the computation is applied or refused, by the rules of transformers 5.24. Its three classes
have different defaults. Fields about the making, training or running of a model are ignored; attention_dropout is one.
"""

from pathlib import Path
from typing import NamedTuple

from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.model.config import LlamaConfig, RopeScaling

_MAX_BYTES = 2**20


class _Kind(NamedTuple):
    """Defaults of absent fields, and biases of the projections, in one model class of transformers.

    Attributes:
      context_length: default of max_position_embeddings.
      num_kv_heads: default; None means the number of query heads.
      sliding_window: default; None means no window.
      bias_field: True if attention_bias is obeyed.
      qkv_bias: True if the query, key and value projections always have biases.
    """

    context_length: int
    num_kv_heads: int | None = None
    sliding_window: int | None = None
    bias_field: bool = False
    qkv_bias: bool = False


_KINDS = {
    "llama": _Kind(context_length=2048, bias_field=True),
    "mistral": _Kind(context_length=131_072, num_kv_heads=8, sliding_window=4096),
    "qwen2": _Kind(context_length=32_768, num_kv_heads=32, sliding_window=4096, qkv_bias=True),
}

_REFUSED = {
    "mlp_bias": "biases in the MLP are not supported",
    "quantization_config": "only unquantized safetensors can be read",
    "per_layer_config": "layers that differ are not supported",
}
# Settings of LLaMA's relatives, with their neutral values. The three classes ignore them, but a model that has other
# values computes something else.
_NEUTRAL = {
    "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": None, "logits_scaling": 1.0,
    "logit_scale": 1.0, "attn_logit_softcapping": None, "final_logit_softcapping": None, "clip_qkv": None,
    "attention_chunk_size": None, "query_pre_attn_scalar": None,
}  # fmt: skip


def hf_config(path: Path) -> LlamaConfig:
    """Returns the configuration in `path`/config.json; absent fields have transformers' defaults for its model_type.

    Raises:
      InputError: there is no such file, it is not JSON, a field is missing or absurd, or `LlamaConfig` cannot express
        what the model computes: another architecture, an active sliding window, MLP biases, quantized weights, an
        activation other than SiLU, a rotary scaling other than llama3's, layers that differ.
    """
    file = path / "config.json"
    fields = Fields(read_object(file, most=_MAX_BYTES), file)
    kind = _KINDS[fields.choice("model_type", _KINDS)]
    d_model, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_layers = fields.integer("num_hidden_layers")
    context_length = fields.integer("max_position_embeddings", kind.context_length)
    _refuse_other_mathematics(fields)
    _check_windows(fields, kind, num_layers, context_length)
    rope_theta, rope_scaling = _rope(fields, context_length)
    attention_bias = fields.flag("attention_bias") and kind.bias_field
    # A null is not an absent field here: all three classes take it for the number of query heads.
    num_kv_heads = num_heads if "num_key_value_heads" in fields.values else kind.num_kv_heads or num_heads
    return LlamaConfig.of_file(
        fields.file,
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_mlp=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_kv_heads),
        head_dim=fields.integer("head_dim", max(1, d_model // num_heads)),
        context_length=context_length,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or kind.qkv_bias,
        o_bias=attention_bias,
    )


def _refuse_other_mathematics(fields: Fields) -> None:
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", f"is {fields.get('hidden_act')!r}, but a LLaMA's MLP has silu")
    for name, why in _REFUSED.items():
        if fields.get(name) not in (None, False):
            raise fields.error(name, f"is set, but {why}")
    if not fields.flag("is_causal", True):
        raise fields.error("is_causal", "is false, but only causal attention is supported")
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value is not None and value != neutral:
            raise fields.error(name, "is set, but a LLaMA has nothing of the kind")


def _check_windows(fields: Fields, kind: _Kind, num_layers: int, context_length: int) -> None:
    """Refuses models in which a token cannot attend to all tokens before it."""
    layer_types = fields.texts("layer_types")
    if layer_types and len(layer_types) != num_layers:
        raise fields.error("layer_types", f"has {len(layer_types)} entries, but there are {num_layers} layers")
    # Older files say "attention" for full attention.
    unlike = [name for name in layer_types if name not in ("full_attention", "attention")]
    if fields.get("model_type") == "qwen2":
        # Qwen2 uses its window only if this switch is on: in the layers of layer_types, else from max_window_layers on.
        windowed = fields.flag("use_sliding_window") and fields.values.get("sliding_window", 1) is not None
        first = fields.integer("max_window_layers", 28, least=0)
        if not unlike and (not windowed or layer_types or num_layers <= first):
            return
        unlike = [name for name in unlike if name != "sliding_attention" or not windowed]
    if unlike:
        raise fields.error("layer_types", f"has {unlike[0]!r}, but only full attention is supported")
    # A null is not an absent field here: it means no window.
    absent = kind.sliding_window if "sliding_window" not in fields.values else None
    window = fields.integer("sliding_window", absent) if fields.has("sliding_window") else absent
    if window is not None and window < context_length:
        raise fields.error(
            "sliding_window", f"is {window}, less than the context of {context_length}: windows are not supported"
        )


def _rope(fields: Fields, context_length: int) -> tuple[float, RopeScaling | None]:
    """Returns rope_theta and scaling, from `rope_scaling`, transformers 5's `rope_parameters`, or the top level."""
    _check_whole_head(fields)
    theta = fields.number("rope_theta", 10_000.0)
    sections = [fields.section(name) for name in ("rope_scaling", "rope_parameters")]
    rope = next((section for section in sections if section is not None and section.values), None)
    if rope is None:
        return theta, None
    _check_whole_head(rope)
    theta = rope.number("rope_theta", theta)
    if inner := next((name for name, value in rope.values.items() if isinstance(value, dict)), None):
        raise rope.error(inner, "is an object, but rotary embeddings that differ between layers are not supported")
    name = "type" if rope.get("rope_type") is None and rope.has("type") else "rope_type"
    kind = rope.text(name, "")
    if not kind and (scale := rope.values.keys() - {"rope_theta", "partial_rotary_factor", "rope_type", "type"}):
        raise rope.error(min(scale), "is set, but no rope_type says what for")
    if kind in ("", "default"):
        return theta, None
    if kind != "llama3":
        raise rope.error(name, f"is {kind!r}; of the rotary scalings only llama3 is supported")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"is {high:g}, but should be greater than low_freq_factor, {low:g}")
    # The top level takes precedence over the section. The default is the context length.
    original = rope.integer("original_max_position_embeddings", context_length)
    original = fields.integer("original_max_position_embeddings", original)
    return theta, RopeScaling(rope.number("factor"), low, high, original)


def _check_whole_head(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", 1.0) != 1:
        raise fields.error("partial_rotary_factor", "is not 1: rotary embeddings must cover the whole head")
