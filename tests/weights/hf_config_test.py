"""config.json: logits equal to transformers' for its settings, absent and null ones too, or a refusal by field."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import places
import pytest
from safetensors.numpy import save_file

from aligner_jax.errors import InputError
from aligner_jax.model.llama import forward, unembed
from aligner_jax.weights.hf import load_hf
from aligner_jax.weights.hf_config import hf_config

GOLDEN = np.load(places.GOLDENS / "hf_configs.npz")
CASES = json.loads(str(GOLDEN["cases"]))
REFUSED = {
    "llama: factor without a type": "rope_scaling.factor is set, but no rope_type",
    "llama: linear": "rope_scaling.type is 'linear'",
    "llama: dynamic": "rope_scaling.type is 'dynamic'",
    "llama: yarn": "rope_scaling.type is 'yarn'",
    "llama: llama3 of a fallen range": "high_freq_factor is 0.5, but should be greater than low_freq_factor, 1",
    "llama: rope by layer": "rope_parameters.full_attention is an object",
    "llama: part of a head": "partial_rotary_factor is not 1",
    "llama: part of a head in parameters": "rope_parameters.partial_rotary_factor is not 1",
    "llama: biases of the mlp": "mlp_bias is set",
    "llama: gelu": "hidden_act is 'gelu'",
    "llama: not causal": "is_causal is false",
    "llama: a window": "sliding_window is 16, less than the context of 64",
    "llama: a switched window": "sliding_window is 16",
    "llama: windowed layers": "layer_types has 'sliding_attention'",
    "llama: layers that differ": "per_layer_config is set",
    "llama: granite": "attention_multiplier is set",
    "mistral: no window, no context": "sliding_window is 4096, less than the context of 131072",
    "mistral: a window": "sliding_window is 16, less than the context of 64",
    "mistral: a switched window": "sliding_window is 16",
    "mistral: a window and full layers": "sliding_window is 16",
    "qwen2: a window in all layers": "sliding_window is 16",
    "qwen2: a window in one layer": "sliding_window is 16",
    "qwen2: windowed layers": "sliding_window is 16",
    "qwen2: windowed layers, switched off": "layer_types has 'sliding_attention'",
    "qwen2: too few layers listed": "layer_types has 1 entries, but there are 2 layers",
    "qwen2: no kv heads": "num_heads 8 is not a multiple of num_kv_heads 32",
}


def write_case(folder: Path, name: str) -> None:
    """Writes the folder that transformers would have loaded: the requested slices of the drawn weights."""
    case = CASES[name]
    (folder / "config.json").write_text(json.dumps(case["config"]))
    tensors = {}
    for key, shape in case.get("shapes", {}).items():
        whole = GOLDEN[f"weight {'.'.join(key.split('.')[-2:])}"]
        for layer in range(2) if key.startswith("layers.0.") else (0,):
            full_name = key.replace("layers.0.", f"layers.{layer}.")
            full_name = full_name if key.startswith("lm_head") else f"model.{full_name}"
            tensors[full_name] = np.ascontiguousarray(whole[tuple(slice(0, size) for size in shape)])
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_settings_mean_what_they_mean_to_transformers(name: str, tmp_path: Path):
    write_case(tmp_path, name)
    if name in REFUSED:
        with pytest.raises(InputError) as caught:
            load_hf(tmp_path)
        assert f"{tmp_path}/config.json: " in str(caught.value)
        assert REFUSED[name] in str(caught.value)
        return
    config, params = load_hf(tmp_path)
    ids = GOLDEN["ids"]
    logits = jax.jit(lambda ids: unembed(params, forward(params, ids, config=config)))(ids)[0, -1]
    np.testing.assert_allclose(logits, GOLDEN[f"logits {name}"], atol=1e-4, rtol=1e-4)


def test_the_cases_differ_where_a_setting_matters():
    plain = GOLDEN["logits llama: plain"]
    for name in ("theta", "epsilon", "llama3", "llama3 without a context", "llama3 with a context outside", "tied"):
        assert np.abs(GOLDEN[f"logits llama: {name}"] - plain).max() > 1e-2, name
    assert np.abs(GOLDEN["logits mistral: a window"] - GOLDEN["logits mistral: plain"]).max() > 1e-2


def test_a_context_that_is_not_given_is_the_one_of_the_class(tmp_path: Path):
    for model_type, context in (("llama", 2048), ("mistral", 131_072), ("qwen2", 32_768)):
        fields = {**CASES["llama: no context"]["config"], "model_type": model_type, "sliding_window": None}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        assert hf_config(tmp_path).context_length == context


NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**400, -1, 0, "1", True, [1], {})


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    "field",
    ["rope_theta", "rms_norm_eps", "partial_rotary_factor", "hidden_size", "sliding_window", "head_dim", "vocab_size"],
)
def test_numbers_are_numbers_and_finite(field: str, value: object, tmp_path: Path):
    fields = {**CASES["mistral: plain"]["config"], field: value}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=rf"config\.json: {field} is "):
        hf_config(tmp_path)


def test_sizes_are_at_most_what_an_index_can_be(tmp_path: Path):
    for field in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        (tmp_path / "config.json").write_text(json.dumps({**CASES["mistral: plain"]["config"], field: 2**31}))
        with pytest.raises(
            InputError, match=rf"config\.json: {field} is 2147483648, not a positive integer of at most"
        ):
            hf_config(tmp_path)


@pytest.mark.parametrize("field", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_numbers_of_a_rotary_scaling_are_finite(field: str, tmp_path: Path):
    config = CASES["llama: llama3"]["config"]
    for value in (math.nan, math.inf, 0, "8", None if field != "original_max_position_embeddings" else 0.5):
        changed = {**config, "rope_scaling": {**config["rope_scaling"], field: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=rf"config\.json: rope_scaling\.{field} is "):
            hf_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"model_type": "llama", "model_type": "llama"}', "'model_type' twice"),
        ('{"a": "' + "x" * 2**21 + '"}', "at most 1,048,576"),
    ],
)
def test_json_that_is_meant_to_hurt_is_refused(text: str, sentence: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        hf_config(tmp_path)
