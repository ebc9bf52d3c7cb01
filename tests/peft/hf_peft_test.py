"""PEFT's folders: PEFT's logits from its files, PEFT's bytes from ours, refusals by name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_folders import CASES, GOLDENS, assert_same, model
from safetensors.numpy import load_file, save_file
from torch_files import write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import apply, init_adapter
from aligner_jax.peft.artifact import load_adapter, read_artifact, save_adapter
from aligner_jax.peft.hf_peft import load_peft, write_peft

OPTIONS = {
    "lora": {
        "rank": 3, "alpha": 5, "dropout": 0.1, "rslora": False, "targets": ("q", "k", "v", "o", "gate", "up", "down"),
    },
    "rslora": {"rank": 4, "alpha": 2, "dropout": 0.0, "rslora": True, "targets": ("q", "v")},
    "adaption_prompt": {"num_tokens": 3, "start_layer": 1, "gates": "layer", "tanh": False},
}  # fmt: skip
apply_jit = jax.jit(apply, static_argnames=("config",))


class ShapedBase(NamedTuple):
    config: LlamaConfig
    fingerprint: str = "f" * 64


@pytest.mark.parametrize("name", CASES)
def test_logits_are_pefts(name: str):
    config, params = model(CASES[name])
    expected = np.load(GOLDENS / "peft" / name / "expected.npz")
    adapter = load_adapter(GOLDENS / "peft" / name, ShapedBase(config))
    assert adapter.options.as_dict() == OPTIONS[name]
    assert {x.dtype for x in adapter.trainable.values()} == {jnp.dtype("float32")}
    logits_btv = apply_jit(params, adapter, jnp.asarray(expected["ids"], jnp.int32), config=config)
    assert np.abs(expected["logits"] - expected["base_logits"]).max() > 0.5
    np.testing.assert_allclose(logits_btv, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_peft_writes(name: str, tmp_path: Path):
    config, golden = model(CASES[name])[0], GOLDENS / "peft" / name
    adapter = load_peft(golden, config)
    write_peft(adapter, tmp_path / "out", config=config, base_name=f"tests/goldens/models/{CASES[name]}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    file = "adapter_model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (golden / file).read_bytes()
    ours, theirs = (json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path / "out", golden))
    ours["target_modules"] = sorted(ours["target_modules"])
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert {field: theirs[field] for field in ours} == ours
    # Their other fields have defaults, which change nothing.
    left = {field: value for field, value in theirs.items() if field not in ours and value not in (None, False, {}, [])}
    assert left.items() <= {"peft_version": "0.21.2", "megatron_core": "megatron.core", "qalora_group_size": 16}.items()


@pytest.mark.parametrize("name", CASES)
def test_written_and_read_it_is_the_same(name: str, tmp_path: Path):
    config = model(CASES[name])[0]
    fresh = init_adapter("lora" if "lora" in name else "llama_adapter", config, **OPTIONS[name])
    rng = np.random.default_rng(2)
    adapter = fresh.replace(
        trainable={key: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for key, x in fresh.trainable.items()}
    )
    write_peft(adapter, tmp_path / "out", config=config)
    assert_same(load_adapter(tmp_path / "out", ShapedBase(config)), adapter)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("aligner", {"num_tokens": 2, "start_layer": 1, "gates": "layer"}),
        ("aligner", {"num_tokens": 1, "start_layer": 0, "gates": "global", "tokens": "head"}),
        ("llama_adapter", {"num_tokens": 2, "start_layer": 1, "gates": "layer", "tanh": True}),
    ],
)
def test_one_gate_a_layer_is_an_adaption_prompt_exactly(method: str, options: dict, tmp_path: Path):
    config, params = model("llama3")
    fresh = init_adapter(method, config, **options)
    rng = np.random.default_rng(3)
    adapter = fresh.replace(
        trainable={key: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for key, x in fresh.trainable.items()}
    )
    write_peft(adapter, tmp_path / "out", config=config)
    read = load_peft(tmp_path / "out", config)
    assert read.method == "llama_adapter"
    tokens_bt = jnp.asarray(rng.integers(0, config.vocab_size, (2, 9)), jnp.int32)
    ours, again = (apply_jit(params, each, tokens_bt, config=config) for each in (adapter, read))
    assert float(jnp.abs(ours - apply_jit(params, None, tokens_bt, config=config)).max()) > 0.1
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("aligner", {"num_tokens": 1, "start_layer": 1}, r"this aligner has 4 gates a layer \(gates='head'\)"),
        ("aligner", {"num_tokens": 3, "start_layer": 1, "gates": "token"}, "this aligner has 12 gates a layer"),
        ("llama_adapter", {"num_tokens": 1, "start_layer": 1}, "this llama_adapter has 4 gates a layer"),
        ("prefix", {"num_tokens": 1}, "an adapter of method 'prefix' cannot be written"),
    ],
)
def test_what_peft_does_not_have_is_not_written(method: str, options: dict, sentence: str, tmp_path: Path):
    config = model("llama3")[0]
    with pytest.raises(InputError, match=f"{sentence}.* PEFT has lora, and llama_adapter"):
        write_peft(init_adapter(method, config, **options), tmp_path / "out", config=config)
    assert list(tmp_path.iterdir()) == []


def test_adaption_prompts_on_models_that_peft_computes_otherwise_are_refused(tmp_path: Path, peft_folder):
    config = model("llama3")[0]
    adapter = load_peft(GOLDENS / "peft" / "adaption_prompt", config)
    biased = dataclasses.replace(config, o_bias=True, qkv_bias=True)
    wide = dataclasses.replace(config, head_dim=16)
    for other, sentence in (
        (biased, "o_proj, which PEFT's AdaptionPrompt adds a second time"),
        (wide, "4 heads times 16"),
    ):
        with pytest.raises(InputError, match=sentence):
            load_peft(GOLDENS / "peft" / "adaption_prompt", other)
        with pytest.raises(InputError, match=sentence):
            write_peft(adapter, tmp_path / "out", config=other)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_model_is_not_written(tmp_path: Path):
    adapter = load_peft(GOLDENS / "peft" / "rslora", model("llama3")[0])
    with pytest.raises(InputError, match=r"a_q_ldr of this adapter has shape \(3, 32, 4\), but \(3, 24, 4\) fits"):
        write_peft(adapter, tmp_path / "out", config=model("wide_head")[0])


def test_a_folder_in_use_is_left_alone(tmp_path: Path):
    config = model("llama3")[0]
    adapter = load_peft(GOLDENS / "peft" / "rslora", config)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is a folder with other things in it"):
        write_peft(adapter, tmp_path, config=config)
    with pytest.raises(InputError, match=r"notes\.txt is a file"):
        write_peft(adapter, tmp_path / "notes.txt", config=config)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_pickles_are_read_without_running_them(peft_folder):
    path = peft_folder("rslora")
    expected = load_peft(path, model("llama3")[0])
    tensors = load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    write_torch_file(path / "adapter_model.bin", tensors)
    assert_same(load_peft(path, model("llama3")[0]), expected)
    (path / "adapter_model.bin").write_bytes(b"\x80\x02cbuiltins\nprint\n.")
    with pytest.raises(InputError, match=r"adapter_model\.bin is not a torch file"):
        load_peft(path, model("llama3")[0])


def test_bfloat16_and_float16_become_float32(peft_folder):
    path, config = peft_folder("adaption_prompt"), model("llama3")[0]
    tensors = load_file(path / "adapter_model.safetensors")
    for dtype in (jnp.bfloat16, np.float16):
        save_file({name: x.astype(dtype) for name, x in tensors.items()}, path / "adapter_model.safetensors")
        adapter = load_peft(path, config)
        assert adapter.trainable["tokens_lpd"].dtype == "float32"
        first = tensors["base_model.model.model.layers.1.self_attn.adaption_prompt"][0]
        np.testing.assert_array_equal(adapter.trainable["tokens_lpd"][0], first.astype(dtype).astype(np.float32))


def test_without_a_base_it_is_read_as_far_as_that_goes(peft_folder):
    expected = load_peft(GOLDENS / "peft" / "adaption_prompt", model("llama3")[0])
    assert_same(load_adapter(GOLDENS / "peft" / "adaption_prompt"), expected)
    here = peft_folder("lora", base_model_name_or_path=str(GOLDENS / "models" / "wide_head"))
    assert_same(load_adapter(here), load_peft(GOLDENS / "peft" / "lora", model("wide_head")[0]))
    elsewhere = peft_folder("rslora", base_model_name_or_path="org/model")
    with pytest.raises(InputError, match=r"base_model_name_or_path is 'org/model': .* the base has to be given"):
        load_adapter(elsewhere)


def test_it_names_no_base_and_no_prompt_format(tmp_path: Path):
    config = model("llama3")[0]
    artifact = read_artifact(GOLDENS / "peft" / "rslora", ShapedBase(config))
    assert artifact.prompt_format is None
    assert artifact.base is None
    adapter = load_peft(GOLDENS / "peft" / "rslora", config)
    save_adapter(adapter, tmp_path / "a.safetensors", ShapedBase(config))
    assert read_artifact(tmp_path / "a.safetensors").base == (*ShapedBase(config), None)
    assert_same(load_adapter(tmp_path / "a.safetensors", ShapedBase(config)), adapter)


@pytest.mark.parametrize(
    "wanted",
    [
        "all-linear",
        ["self_attn.q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        r".*\.(q|k|v|o|gate|up|down)_proj",
        ".*",
        [f"model.layers.{layer}.{part}" for layer in range(3) for part in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj",
        )],
    ],
)  # fmt: skip
def test_targets_may_be_written_in_all_of_pefts_ways(wanted, peft_folder):
    path, config = peft_folder("lora", target_modules=wanted, layers_to_transform=[0, 1, 2]), model("wide_head")[0]
    assert_same(load_peft(path, config), load_peft(GOLDENS / "peft" / "lora", config))


@pytest.mark.parametrize(
    "wanted",
    [
        ["q_proj", "v_proj", "query_key_value", "c_attn", "", "lm_head", "embed_tokens"],
        r".*\.(q_proj|v_proj|c_attn)",
        r"^(?!.*(visual|lm_head)).*(?:q_proj|v_proj)$",
        # Unsloth writes this pattern.
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn)\.(?:(?:q_proj|v_proj)))",
    ],
)
def test_modules_that_the_model_lacks_are_passed_over_as_peft_does(wanted, peft_folder):
    config = model("llama3")[0]
    path = peft_folder("rslora", target_modules=wanted)
    assert_same(load_peft(path, config), load_peft(GOLDENS / "peft" / "rslora", config))
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((4, 32), np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"unknown tensor 'base_model\.model\.lm_head\.lora_A\.weight'"):
        load_peft(path, config)


def test_a_base_of_a_billion_layers_is_not_gone_through(peft_folder, tmp_path: Path):
    base = Path(shutil.copytree(GOLDENS / "models" / "wide_head", tmp_path / "base"))
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2**31 - 1}))
    path = peft_folder("lora", base_model_name_or_path=str(base))
    with pytest.raises(InputError, match="has 42 tensors, too few for the 2147483647 layers"):
        load_adapter(path)
    with pytest.raises(InputError, match="File name too long"):
        load_adapter(peft_folder("rslora", base_model_name_or_path="x" * 5000))


@pytest.mark.parametrize("excluded", [["v_proj", "mlp.up_proj", "lm_head"], r".*\.(v_proj|up_proj)$"])
def test_excluded_modules_are_not_adapted(excluded, peft_folder):
    path, config = peft_folder("lora", target_modules="all-linear", exclude_modules=excluded), model("wide_head")[0]
    tensors = load_file(path / "adapter_model.safetensors")
    kept = {name: x for name, x in tensors.items() if "v_proj" not in name and "up_proj" not in name}
    save_file(kept, path / "adapter_model.safetensors")
    adapter = load_peft(path, config)
    assert adapter.options["targets"] == ("q", "k", "o", "gate", "down")
    whole = load_peft(GOLDENS / "peft" / "lora", config)
    for name, leaf in adapter.trainable.items():
        np.testing.assert_array_equal(leaf, whole.trainable[name])
