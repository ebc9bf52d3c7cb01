"""The table of engines: each has findings with sources, and the printed lines name each engine once."""

import dataclasses
import re

import places
import pytest

from aligner_jax.exports.engines import ENGINES, added_bias, engine_lines, engine_table, gguf_engines


def test_every_finding_names_its_source():
    for engine in ENGINES:
        for found in (engine.o, engine.v):
            pinned = re.match(
                r"(transformers \d+\.\d+\.\d+|[\w.-]+/[\w.-]+@[0-9a-f]{10}): \S+\.(py|cpp|rs)$", found.source
            )
            assert (pinned is None) == (found.support == "unverified"), engine.name


@pytest.mark.parametrize("bias", ["o", "v"])
def test_lines_and_table_have_every_engine_once(bias):
    text, table = "\n".join(engine_lines(bias)), engine_table(bias)
    for engine in ENGINES:
        assert len(re.findall(rf"(?<![\w.]){re.escape(engine.name)}( \(with |, |\n|$)", text)) == 1, engine.name
        assert table.count(f"| {engine.name} |") == 1


def test_engines_that_lose_the_adapter_are_told_apart():
    lines = {line.split(":")[0].strip(): line for line in engine_lines("o")[1:]}
    assert "candle" in lines["drops the bias without an error, so the adapter is missing"]
    assert "Tunix" in lines["refuses the file"]
    assert "vLLM" in lines["runs it"]
    assert "candle" in engine_lines("v")[1]


def test_the_document_says_the_same():
    words = {
        "runs": "runs",
        "drops": "drops it without an error",
        "refuses": "refuses the file",
        "unverified": "not verified",
    }
    text = (places.ROOT / "docs" / "publishing.md").read_text()
    for engine in ENGINES:
        (row,) = re.findall(
            rf"^\|[^|]*{re.escape(engine.name.split(' ')[0])}[^|]*\|([^|]+)\|([^|]+)\|$", text, re.MULTILINE
        )
        assert [cell.strip() for cell in row] == [words[engine.o.support], words[engine.v.support]], engine.name


def test_the_added_bias(config):
    with_o, with_qkv = (dataclasses.replace(config, **{name: True}) for name in ("o_bias", "qkv_bias"))
    assert added_bias(config, with_o) == "o"
    assert added_bias(config, with_qkv) == "v"
    assert added_bias(with_qkv, dataclasses.replace(with_qkv, o_bias=True)) == "o"
    assert [added_bias(same, same) for same in (config, with_o, with_qkv)] == [None] * 3
    assert "same tensors" in engine_table(None)
    assert "same tensors" in engine_lines(None)[0]


def test_conditions_are_printed():
    lines = "\n".join(engine_lines("v"))
    assert "vLLM (with head_dim = d_model / num_heads)," in lines
    assert "llama.cpp (with no scaling of the rotary embedding)," in lines
    assert "ExLlamaV3 (with input widths of 128 · n)" in "\n".join(engine_lines("o"))


def test_a_gguf_file_has_the_engines_of_its_architecture():
    condition = (
        "run this model, with no scaling of the rotary embedding (ggml-org/llama.cpp@0215468f0a: src/models/qwen2"
    )
    of_llama = "run this model (ggml-org/llama.cpp@069be0ae22: src/models/llama.cpp)"
    assert of_llama in gguf_engines("o", "llama")
    assert of_llama in gguf_engines("v", "llama")
    assert condition in gguf_engines("v", "qwen2")
    for architecture in ("llama", "qwen2"):
        assert "may drop attn_v.bias without an error" in gguf_engines("v", architecture)
        assert "same tensors" in gguf_engines(None, architecture)
