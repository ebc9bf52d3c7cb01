"""Converts Meta's params.json to a `LlamaConfig`. Missing values follow from the tensors or the version of LLaMA."""

from collections.abc import Mapping
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.model.config import LlamaConfig, RopeScaling

_LLAMA1_EPS = 1e-6
_LLAMA3_CONTEXT = 8192
_LOW_FREQ_FACTOR = 1.0
_LLAMA3_THETA = 500_000.0
_CONTEXT_BY_THETA = {_LLAMA3_THETA: _LLAMA3_CONTEXT, 1_000_000.0: 16_384}

_READ = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps", "max_seq_len",
    "rope_theta", "use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor", "sliding_window",
}  # fmt: skip
_WITHOUT_EFFECT = {"multiple_of", "ffn_dim_multiplier", "max_batch_size", "model_type"}
_NOT_SUPPORTED = {
    "moe": "mixtures of experts", "moe_args": "mixtures of experts", "vision_chunk_size": "models of images",
    "vision_args": "models of images", "vision_encoder": "models of images", "quantization_args": "quantized weights",
    "lora_args": "adapters in the base's own files",
}  # fmt: skip


def meta_fields(folder: Path) -> Fields:
    """Returns the fields of a folder's params.json.

    Raises:
      InputError: it is not a JSON object.
    """
    path = folder / "params.json"
    return Fields(read_object(path, most=MEBIBYTE), path)


def meta_config(fields: Fields, shapes: Mapping[str, tuple[int, ...]]) -> LlamaConfig:
    """Returns the configuration of a model in Meta's form.

    - vocab_size is -1 in LLaMA 1 and 2, which leave it to the tokenizer. It is then the embedding's number of rows.
    - The width of the MLP is that of its weights. multiple_of and ffn_dim_multiplier only say how it was chosen.
    - The context length is max_seq_len if there is such a field. Else it is the one in Hugging Face's folder of the
      same model: 131,072 if the rotary frequencies are scaled (LLaMA 3.1), 8,192 with LLaMA 3's rope_theta, 16,384 with
      Code Llama's, 2,048 with LLaMA 1's norm_eps of 1e-6, and otherwise LLaMA 2's 4,096.
    - rope_theta defaults to 10,000 as in LLaMA 1 and 2, or to LLaMA 3's 500,000 if frequencies are scaled.
    - The default factor of that scaling is in Meta's code only: 32 if the model is less than 4,096 wide (LLaMA 3.2),
      else 8. Source: github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling.
    - Mistral's head_dim, hidden_dim and sliding_window are applied. A window shorter than the context is refused.
    - Unknown settings are refused.

    Args:
      shapes: shapes of the whole tensors, by name.

    Raises:
      InputError: a field is missing or absurd, or a tensor that is needed here is not in `shapes`.
    """
    _refuse_other_mathematics(fields)
    d_model, num_heads = fields.integer("dim"), fields.integer("n_heads")
    if d_model % num_heads and not fields.has("head_dim"):
        raise fields.error("dim", f"is {d_model}, not a multiple of n_heads {num_heads}")
    scaled = fields.flag("use_scaled_rope")
    theta, eps = fields.number("rope_theta", _LLAMA3_THETA if scaled else 10_000.0), fields.number("norm_eps")
    context_length = fields.integer("max_seq_len", _context_length(scaled, theta, eps))
    if fields.has("sliding_window") and (window := fields.integer("sliding_window")) < context_length:
        raise fields.error(
            "sliding_window", f"is {window}, less than the context of {context_length}: windows are not supported"
        )
    scaling = _scaling(fields, d_model)
    folder = Path(fields.file).parent
    d_mlp = _rows(folder, shapes, "layers.0.feed_forward.w1.weight")
    if fields.integer("hidden_dim", d_mlp) != d_mlp:
        raise fields.error("hidden_dim", f"is {fields.get('hidden_dim')}, but the weights of the MLP have {d_mlp} rows")
    return LlamaConfig.of_file(
        fields.file,
        vocab_size=_vocab_size(fields, shapes),
        d_model=d_model,
        d_mlp=d_mlp,
        num_layers=fields.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("n_kv_heads", num_heads),
        head_dim=fields.integer("head_dim", d_model // num_heads),
        context_length=context_length,
        rope_theta=theta,
        rope_scaling=scaling if scaled else None,
        norm_eps=eps,
        tied_embeddings="output.weight" not in shapes,
    )


def _refuse_other_mathematics(fields: Fields) -> None:
    for name, what in _NOT_SUPPORTED.items():
        if fields.has(name):
            raise fields.error(name, f"is set: {what} are not supported")
    # Their values have no effect, but a value of the wrong type means a damaged file.
    fields.integer("multiple_of", 1)
    fields.integer("max_batch_size", 1)
    fields.number("ffn_dim_multiplier", 1.0)
    # Mistral's files have this field, and may hold a Mamba.
    fields.choice("model_type", ("transformer",), "transformer")
    for name, value in fields.values.items():
        # Null and false mean that a setting is not used.
        if name not in _READ | _WITHOUT_EFFECT | _NOT_SUPPORTED.keys() and value is not None and value is not False:
            raise fields.error(
                name, "is not a setting that is known here; take it out if the model computes the same without it"
            )


def _vocab_size(fields: Fields, shapes: Mapping[str, tuple[int, ...]]) -> int:
    value = fields.get("vocab_size")
    if value is None or (type(value) is int and value == -1):
        return _rows(Path(fields.file).parent, shapes, "tok_embeddings.weight")
    return fields.integer("vocab_size")


def _rows(folder: Path, shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    if not shapes.get(name):
        raise InputError(f"{folder}: tensor {name} is missing")
    return shapes[name][0]


def _context_length(scaled: bool, theta: float, eps: float) -> int:
    if scaled:
        return 131_072
    return _CONTEXT_BY_THETA.get(theta, 2048 if eps == _LLAMA1_EPS else 4096)


def _scaling(fields: Fields, d_model: int) -> RopeScaling:
    high_freq_factor = fields.number("rope_high_freq_factor", 4.0)
    if high_freq_factor <= _LOW_FREQ_FACTOR:
        raise fields.error("rope_high_freq_factor", f"is {high_freq_factor:g}, not more than {_LOW_FREQ_FACTOR:g}")
    return RopeScaling(
        factor=fields.number("rope_scaling_factor", 32.0 if d_model < 4096 else 8.0, least=1.0),
        low_freq_factor=_LOW_FREQ_FACTOR,
        high_freq_factor=high_freq_factor,
        original_context_length=_LLAMA3_CONTEXT,
    )
