"""Engines that run an exported model, and those that lose the adapter, by their own source code.

An adapter that is folded into a bias is lost without an error where an engine drops that bias.
"""

import dataclasses
from typing import Literal, get_args

from aligner_jax.model.config import LlamaConfig

Bias = Literal["o", "v"]
"""Projection whose bias holds the adapter: "o" in a LLaMA with biases, "v" in the form of a Qwen2."""

Support = Literal["runs", "drops", "refuses", "unverified"]
"""An engine applies the bias, ignores it without an error, does not load the file; or no source was found."""

READ = "November 2026"
"""Date on which the sources were read."""

_PHRASES: dict[Support, str] = {
    "runs": "runs it",
    "drops": "drops the bias without an error, so the adapter is missing",
    "refuses": "refuses the file",
    "unverified": "not verified",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """An engine's treatment of a bias.

    Attributes:
      support: see `Support`.
      source: repository at a commit or release, and the file that was read; empty if none was found.
      condition: condition of the support; empty for none.
    """

    support: Support
    source: str
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
      name: its name.
      o: for a bias of the output projection (architecture "llama" with attention_bias).
      v: for a bias of the value projection (architecture "qwen2").
    """

    name: str
    o: Finding
    v: Finding


_EQUAL_WIDTHS = "head_dim = d_model / num_heads"
_NO_SCALING = "no scaling of the rotary embedding"

ENGINES = (
    Engine(
        "transformers",
        Finding("runs", "transformers 5.24.0: models/llama/modeling_llama.py"),
        Finding("runs", "transformers 5.24.0: models/qwen2/modeling_qwen2.py"),
    ),
    Engine(
        "vLLM",
        Finding("runs", "vllm-project/vllm@e06c9ba2a6: vllm/model_executor/models/llama.py"),
        Finding("runs", "vllm-project/vllm@013a279251: vllm/model_executor/models/qwen2.py", _EQUAL_WIDTHS),
    ),
    Engine(
        "llama.cpp",
        Finding("runs", "ggml-org/llama.cpp@069be0ae22: src/models/llama.cpp"),
        Finding("runs", "ggml-org/llama.cpp@0215468f0a: src/models/qwen2.cpp", _NO_SCALING),
    ),
    Engine(
        "sglang-jax",
        Finding("runs", "sgl-project/sglang-jax@065a5a4277: python/sgl_jax/srt/models/llama.py"),
        Finding("runs", "sgl-project/sglang-jax@0505047bff: python/sgl_jax/srt/models/qwen2.py", _NO_SCALING),
    ),
    Engine(
        "mlx-lm",
        Finding("runs", "ml-explore/mlx-lm@17772c052c: mlx_lm/models/llama.py"),
        Finding("runs", "ml-explore/mlx-lm@0cf236d57a: mlx_lm/models/qwen2.py", _EQUAL_WIDTHS),
    ),
    Engine(
        "ExLlamaV3",
        Finding("runs", "turboderp-org/exllamav3@6bc327afda: exllamav3/modules/linear.py", "input widths of 128 · n"),
        Finding("runs", "turboderp-org/exllamav3@543c4b2771: exllamav3/models/qwen2.py", "input widths of 128 · n"),
    ),
    Engine(
        "candle",
        Finding("drops", "huggingface/candle@02878f93b6: candle-transformers/src/models/llama.rs"),
        Finding(
            "runs",
            "huggingface/candle@07c6edb272: candle-transformers/src/models/qwen2.rs",
            f"{_EQUAL_WIDTHS}; {_NO_SCALING}",
        ),
    ),
    Engine(
        "tpu-inference (JAX models)",
        Finding("refuses", "vllm-project/tpu-inference@fe06ba5e8b: tpu_inference/models/jax/llama3.py"),
        Finding("runs", "vllm-project/tpu-inference@93716081e6: tpu_inference/models/jax/qwen2.py"),
    ),
    Engine(
        "MaxText",
        Finding(
            "drops",
            "AI-Hypercomputer/maxtext@a429848a0a: src/maxtext/checkpoint_conversion/utils/param_mapping.py",
        ),
        Finding("unverified", ""),
    ),
    Engine(
        "Tunix",
        Finding("refuses", "google/tunix@0737eb834a: tunix/models/llama3/params.py"),
        Finding("runs", "google/tunix@0e57a81935: tunix/models/qwen2/params.py"),
    ),
)
"""The engines whose source was read. A condition excludes some shapes of models."""


def added_bias(base: LlamaConfig, folded: LlamaConfig) -> Bias | None:
    """Returns the bias that folding added to a base; None if the folded model has the tensors of the base."""
    if folded.o_bias and not base.o_bias:
        return "o"
    return "v" if folded.qkv_bias and not base.qkv_bias else None


def engine_lines(bias: Bias | None) -> list[str]:
    """Returns lines for a terminal that say which engines run an export."""
    if bias is None:
        return ["engines: all that run the base, since the export has the same tensors"]
    lines = [f"engines, by their source code of {READ}, with a bias of {_projection(bias)}:"]
    for support in get_args(Support):
        if names := [_named(engine, bias) for engine in ENGINES if _finding(engine, bias).support == support]:
            lines.append(f"  {_PHRASES[support]}: {', '.join(names)}")
    return lines


def engine_table(bias: Bias | None) -> str:
    """Returns the engines as a table in Markdown, with sources and conditions."""
    if bias is None:
        return "All engines that run the base run this model: it has the same tensors."
    lines = [
        f"By their source code of {READ}, with a bias of {_projection(bias)}:",
        "",
        "| engine | this model | only with | source |",
        "|---|---|---|---|",
    ]
    for engine in ENGINES:
        found = _finding(engine, bias)
        lines.append(f"| {engine.name} | {_PHRASES[found.support]} | {found.condition} | {found.source} |")
    return "\n".join(lines)


def _named(engine: Engine, bias: Bias) -> str:
    condition = _finding(engine, bias).condition
    return f"{engine.name} (with {condition})" if condition else engine.name


def gguf_engines(bias: Bias | None, architecture: str) -> str:
    """Returns a sentence about the engines that run a GGUF file.

    Args:
      bias: see `added_bias`.
      architecture: llama.cpp's name of the file's architecture, "llama" or "qwen2".
    """
    if bias is None:
        return "All engines that run the base run this model: it has the same tensors."
    (engine,) = (engine for engine in ENGINES if engine.name == "llama.cpp")
    # llama.cpp's graph of a LLaMA has the biases of all four projections.
    found = engine.v if architecture == "qwen2" else engine.o
    condition = f", with {found.condition}" if found.condition else ""
    tensor = {"o": "attn_output.bias", "v": "attn_v.bias"}[bias]
    return (
        f"llama.cpp and the engines built on it run this model{condition} ({found.source}). Other readers of GGUF "
        f"files may drop {tensor} without an error, so that the adapter is missing."
    )


def _finding(engine: Engine, bias: Bias) -> Finding:
    return {"o": engine.o, "v": engine.v}[bias]


def _projection(bias: Bias) -> str:
    return {"o": "the output projection", "v": "the value projection (architecture qwen2)"}[bias]
