"""Configuration of a LLaMA-architecture model, and presets of published models."""

import dataclasses
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3.1's frequency scaling (`rope_type: llama3` of Hugging Face).

    Wavelengths above `original_context_length / low_freq_factor` are stretched by `factor`. Wavelengths below
    `original_context_length / high_freq_factor` are kept. Those between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shapes and constants of one model. Hashable, so that it can be a static argument of `jax.jit`.

    head_dim need not be d_model / num_heads. qkv_bias and o_bias add bias vectors to those projections.
    """

    vocab_size: int
    d_model: int
    d_mlp: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False

    def __post_init__(self):
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, not a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd, but rotary embeddings pair its dimensions")

    @classmethod
    def from_fields(cls, fields: Fields) -> "LlamaConfig":
        """Reads a configuration that an adapter or a checkpoint stores.

        Raises:
          InputError: a field is missing, unknown, not finite, out of range, or of the wrong type.
        """
        _refuse_unknown(cls, fields)
        scaling = fields.section("rope_scaling")
        rope_scaling = None
        if scaling is not None:
            _refuse_unknown(RopeScaling, scaling)
            rope_scaling = RopeScaling(
                factor=scaling.number("factor"),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_context_length=scaling.integer("original_context_length"),
            )
        sizes = {name: fields.integer(name) for name in _SIZES}
        flags = {name: fields.flag(name) for name in ("tied_embeddings", "qkv_bias", "o_bias")}
        return cls.of_file(
            fields.file,
            **sizes,
            context_length=fields.integer("context_length", cls.context_length),
            rope_theta=fields.number("rope_theta", cls.rope_theta),
            rope_scaling=rope_scaling,
            norm_eps=fields.number("norm_eps", cls.norm_eps),
            **flags,
        )

    @classmethod
    def of_file(cls, file: str | Path, **values: Any) -> "LlamaConfig":
        """Returns the configuration with these values; error messages begin with the name of the file.

        Raises:
          InputError: the sizes do not fit together.
        """
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    @property
    def group_size(self) -> int:
        """Query heads per kv head."""
        return self.num_heads // self.num_kv_heads


_SIZES = ("vocab_size", "d_model", "d_mlp", "num_layers", "num_heads", "num_kv_heads", "head_dim")


def _refuse_unknown(kind: type, fields: Fields) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    for name in fields.values:
        if name not in known:
            raise fields.error(name, "is not a field of a model configuration")


_LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192)

_7B = LlamaConfig(32_000, 4096, 11_008, 32, 32, 32, 128, norm_eps=1e-6)
_13B = LlamaConfig(32_000, 5120, 13_824, 40, 40, 40, 128, norm_eps=1e-6)
_LLAMA2 = {"context_length": 4096, "norm_eps": 1e-5}
_8B = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, 128, context_length=8192, rope_theta=500_000.0)
_70B = LlamaConfig(128_256, 8192, 28_672, 80, 64, 8, 128, context_length=8192, rope_theta=500_000.0)
_LLAMA3_1 = {"context_length": 131_072, "rope_scaling": _LLAMA3}

PRESETS: dict[str, LlamaConfig] = {
    "llama_7b": _7B,
    "llama_13b": _13B,
    "llama2_7b": dataclasses.replace(_7B, **_LLAMA2),
    "llama2_13b": dataclasses.replace(_13B, **_LLAMA2),
    "llama2_70b": LlamaConfig(32_000, 8192, 28_672, 80, 64, 8, 128, context_length=4096),
    "llama3_8b": _8B,
    "llama3_70b": _70B,
    "llama3_1_8b": dataclasses.replace(_8B, **_LLAMA3_1),
    "llama3_1_70b": dataclasses.replace(_70B, **_LLAMA3_1),
    "llama3_2_1b": LlamaConfig(
        128_256, 2048, 8192, 16, 32, 8, 64, context_length=131_072, rope_theta=500_000.0,
        rope_scaling=dataclasses.replace(_LLAMA3, factor=32.0), tied_embeddings=True,
    ),
    "llama3_2_3b": LlamaConfig(
        128_256, 3072, 8192, 28, 24, 8, 128, context_length=131_072, rope_theta=500_000.0,
        rope_scaling=dataclasses.replace(_LLAMA3, factor=32.0), tied_embeddings=True,
    ),
    "tinyllama_1b": LlamaConfig(32_000, 2048, 5632, 22, 32, 4, 64, context_length=2048),
    "mistral_7b": LlamaConfig(32_768, 4096, 14_336, 32, 32, 8, 128, context_length=32_768, rope_theta=1_000_000.0),
    "smollm2_135m": LlamaConfig(
        49_152, 576, 1536, 30, 9, 3, 64, context_length=8192, rope_theta=100_000.0, tied_embeddings=True
    ),
    "smollm2_360m": LlamaConfig(
        49_152, 960, 2560, 32, 15, 5, 64, context_length=8192, rope_theta=100_000.0, tied_embeddings=True
    ),
    "smollm2_1_7b": LlamaConfig(
        49_152, 2048, 8192, 24, 32, 32, 64, context_length=8192, rope_theta=130_000.0, tied_embeddings=True
    ),
    "stories_260k": LlamaConfig(512, 64, 172, 5, 8, 4, 8, context_length=512, tied_embeddings=True),
}  # fmt: skip


def llama_config(name: str) -> LlamaConfig:
    """Returns the configuration of a published model, equal to its config.json on Hugging Face.

    Args:
      name: a key of `PRESETS`.

    Raises:
      InputError: the name is unknown.
    """
    if name not in PRESETS:
        raise InputError(f"no model is named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
