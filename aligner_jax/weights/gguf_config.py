"""Converts GGUF metadata to a `LlamaConfig`, and refuses settings that would compute something else.

Keys and defaults are those of llama.cpp (`load_hparams` in src/llama-model.cpp, and gguf-py's constants.py).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aligner_jax.data.gguf_metadata import GGUFHeader, Value
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.model.config import LlamaConfig, RopeScaling
from aligner_jax.model.rope import inverse_frequencies

_ARCHITECTURES = ("llama", "qwen2")
_LLAMA3_CONTEXT = 8192
_QUANTIZATION_VERSION = 2

# Values of settings that leave the computation of `LlamaConfig` unchanged. Other values are refused.
_NEUTRAL: Mapping[str, tuple[float | bool, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0,),
    "expert_group_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_feed_forward_length": (0,),
    "interleave_moe_layer_step": (0,),
    "moe_every_n_layers": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    "pooling_type": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.shared_kv_layers": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}

# Settings without effect: YaRN's, as YaRN scaling is refused, and the epsilon of a norm that LLaMA does not have.
_UNUSED = (
    "attention.layer_norm_epsilon",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
)

_READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_length_out",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
    *_NEUTRAL,
    *_UNUSED,
}


def is_interleaved(header: GGUFHeader) -> bool:
    """Returns True if the two halves of every query and key head are interleaved, as in llama.cpp's LLaMA."""
    return header.fields.get("general.architecture") == "llama"


def gguf_config(path: Path, header: GGUFHeader) -> LlamaConfig:
    """Returns the configuration from a GGUF file's metadata and tensor table; `with_rope_factors` adds rotary scaling.

    Args:
      path: path of the file, for messages.

    Raises:
      InputError: metadata is missing, absurd or unknown, or `LlamaConfig` cannot express what the model computes.
    """
    general = Fields({key: _shown(value) for key, value in header.fields.items()}, path)
    architecture = general.choice("general.architecture", _ARCHITECTURES)
    fields = _architecture_fields(path, header, architecture)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{path}: tensor token_embd.weight is missing")
    if general.integer("split.count", 0, least=0) > 1:
        parts = general.integer("split.count")
        raise InputError(f"{path} is one of {parts} parts of a model: merge them with llama-gguf-split first")
    version = general.integer("general.quantization_version", _QUANTIZATION_VERSION)
    if version != _QUANTIZATION_VERSION:
        raise general.error("general.quantization_version", f"is {version}; blocks of version 2 are read")
    d_model, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    config = LlamaConfig.of_file(
        path,
        vocab_size=embedding.shape[-1],
        d_model=d_model,
        d_mlp=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=fields.integer("attention.key_length", max(1, d_model // num_heads)),
        context_length=fields.integer("context_length", 2048),
        rope_theta=_number(fields, "rope.freq_base", 10_000.0),
        norm_eps=_number(fields, "attention.layer_norm_rms_epsilon"),
        tied_embeddings="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
    )
    _refuse_other_sizes(fields, config)
    _refuse_other_mathematics(fields, config)
    return config


def with_rope_factors(path: Path, header: GGUFHeader, config: LlamaConfig, factors: np.ndarray) -> LlamaConfig:
    """Returns the configuration with the llama3 rotary scaling that has these factors.

    A GGUF file holds only the factors, not the parameters of the scaling.

    Args:
      factors: tensor rope_freqs.weight, float32 [h/2], the divisors of the rotary frequencies.

    Raises:
      InputError: no llama3 scaling has these factors.
    """
    if np.all(factors == 1.0):
        return config
    architecture = str(header.fields["general.architecture"])
    fields = _architecture_fields(path, header, architecture)
    original = fields.integer("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
    scaled = dataclasses.replace(config, rope_scaling=RopeScaling(float(factors.max()), 1.0, 4.0, original))
    # The scaling stretches wavelengths, so every divisor is at least 1.
    if factors.min() >= 1.0:
        ratio = inverse_frequencies(config) / inverse_frequencies(scaled)
        if np.allclose(ratio, factors.astype(np.float64), rtol=1e-5, atol=0.0):
            return scaled
    raise InputError(f"{path}: tensor rope_freqs.weight is not the scaling of LLaMA 3.1, the only one supported")


def _architecture_fields(path: Path, header: GGUFHeader, architecture: str) -> Fields:
    """Returns the metadata of the architecture, by key without the architecture's prefix."""
    prefix = f"{architecture}."
    found = {key.removeprefix(prefix): _shown(x) for key, x in header.fields.items() if key.startswith(prefix)}
    return Fields(found, path, prefix)


def _shown(value: Value) -> object:
    """Returns an array as a short list for messages, because no setting that is read is an array."""
    return value[:9].tolist() if isinstance(value, np.ndarray) else value


def _number(fields: Fields, name: str, default: float | None = None, **bounds: float) -> float:
    # The file stores float32. Its 1e-5 must become the 1e-5 of config.json, so that equal models compare equal.
    return float(str(np.float32(fields.number(name, default, **bounds))))


def _refuse_other_sizes(fields: Fields, config: LlamaConfig) -> None:
    """Refuses sizes that contradict another field or tensor."""
    for name, size, of in (
        ("attention.value_length", config.head_dim, "the heads of queries and keys have"),
        ("rope.dimension_count", config.head_dim, "the heads of queries and keys have"),
        ("vocab_size", config.vocab_size, "tensor token_embd.weight has"),
        ("embedding_length_out", config.d_model, "embedding_length is"),
    ):
        if fields.integer(name, size) != size:
            raise fields.error(name, f"is {fields.get(name)}, but {of} {size}")


def _refuse_other_mathematics(fields: Fields, config: LlamaConfig) -> None:
    for name in fields.values:
        if name not in _READ:
            raise fields.error(name, "is no setting of a LLaMA that is known here: it might compute something else")
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value is None:
            continue
        kinds = (bool,) if type(neutral[0]) is bool else (int, float)
        if type(value) not in kinds or value not in neutral:
            wanted = " or ".join(str(x).lower() for x in neutral)
            shown = "an array" if isinstance(value, list) else repr(value[:100] if isinstance(value, str) else value)
            raise fields.error(name, f"is {shown}: only models where it is {wanted} are supported")
    for name in _UNUSED:
        fields.number(name, 0.0, least=-math.inf, most=math.inf)
    fields.flag("rope.scaling.finetuned")
    fields.integer("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
    # Both values mean the row order that llama.cpp's converter writes. "reference" is the default.
    fields.choice("tensor_data_layout", ("reference", "Meta AI original pth"), "reference")
    scale, usual = fields.number("attention.scale", 0.0, least=0.0), 1 / math.sqrt(config.head_dim)
    if scale and not math.isclose(scale, usual, rel_tol=1e-6):
        raise fields.error("attention.scale", f"is {scale:g}; only the usual {usual:g} is supported")
    window = fields.integer("attention.sliding_window", 0, least=0)
    if 0 < window < config.context_length:
        raise fields.error(
            "attention.sliding_window",
            f"is {window}, less than the context of {config.context_length}: windows are not supported",
        )
    _refuse_rope_scaling(fields)


def _refuse_rope_scaling(fields: Fields) -> None:
    kind = fields.choice("rope.scaling.type", ("none", "linear", "yarn"), "linear")
    # The second name is the older one. llama.cpp takes 0 for an absent factor.
    names = [name for name in ("rope.scaling.factor", "rope.scale_linear") if fields.has(name)]
    factors = {name: fields.number(name, least=0.0) for name in names}
    if kind == "none":
        return
    for name, factor in factors.items():
        if factor not in (0.0, 1.0):
            raise fields.error(
                name, f"is {factor:g}, of {kind} scaling; of the rotary scalings only llama3 is supported"
            )
    if kind != "linear" and not factors:
        raise fields.error("rope.scaling.type", f"is {kind!r}; of the rotary scalings only llama3 is supported")
