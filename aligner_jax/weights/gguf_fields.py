"""Metadata of a GGUF file for a model of llama.cpp's architecture llama."""

import struct
from collections.abc import Mapping

import numpy as np

from aligner_jax.data.gguf_metadata import Value
from aligner_jax.errors import InputError
from aligner_jax.files.fields import shown
from aligner_jax.model.config import LlamaConfig, RopeScaling
from aligner_jax.weights.gguf_write import Metadata

_BOOL, _STRING, _ARRAY, _UINT32, _INT32, _FLOAT32 = 7, 8, 9, 4, 5, 6
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
"""llama.cpp's numbers of the type that most tensors have."""
_LLAMA3_CONTEXT = 8192


def model_fields(config: LlamaConfig, dtype: str, name: str) -> dict[str, Value]:
    """Returns the metadata of a model without its tokenizer.

    Args:
      dtype: type of its matrices; see `gguf_write.KINDS`.
      name: name of the model.

    Raises:
      InputError: the rotary scaling has no equal in a GGUF file.
    """
    ours: dict[str, Value] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_mlp,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    if config.rope_scaling is not None:
        _check_scaling(config.rope_scaling)
        if config.rope_scaling.original_context_length != _LLAMA3_CONTEXT:
            ours["rope.scaling.original_context_length"] = config.rope_scaling.original_context_length
    general: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        # The name of a folder may be any bytes.
        "general.name": name.encode("utf-8", "replace").decode(),
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }
    return general | {f"llama.{key}": value for key, value in ours.items()}


def encoded_fields(fields: Mapping[str, Value]) -> Metadata:
    """Returns metadata as bytes: integers as uint32, numbers as float32, arrays of int32, float32 or strings.

    Raises:
      InputError: a value is beyond its type's range, or a text cannot be encoded as UTF-8.
    """
    content = b"".join(_text(key) + _checked_value(key, value) for key, value in fields.items())
    return Metadata(content, len(fields))


def _checked_value(key: str, value: Value) -> bytes:
    try:
        return _value(value)
    except (struct.error, OverflowError):
        raise InputError(f"{key} is {shown(value)}, beyond the range of its type in a GGUF file") from None
    except UnicodeEncodeError:
        raise InputError(f"{key} holds a text that is no UTF-8, as texts of GGUF files are") from None


def _check_scaling(scaling: RopeScaling) -> None:
    factors = (scaling.low_freq_factor, scaling.high_freq_factor)
    if factors != (1.0, 4.0):
        raise InputError(
            f"the rotary scaling of the base has the frequency factors {factors}, and GGUF files are read with those "
            "of LLaMA 3.1, (1.0, 4.0)"
        )


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<IB", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case list():
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
        case np.ndarray():
            kind, dtype = (_FLOAT32, "<f4") if value.dtype.kind == "f" else (_INT32, "<i4")
            return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.astype(dtype).tobytes()


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content
