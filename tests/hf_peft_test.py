"""PEFT's folders: its own logits out of what it saved, the same bytes out of what we save, refusals by name."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_files import write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.peft import Adapter, apply, init_adapter
from aligner_jax.peft.artifact import load_adapter, recorded_base, recorded_prompt_format, save_adapter
from aligner_jax.peft.hf_peft import load_peft, write_peft
from aligner_jax.weights.hf import load_hf

GOLDENS = Path(__file__).parent / "goldens"
CASES = {"lora": "wide_head", "rslora": "llama3", "adaption_prompt": "llama3"}
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


@functools.cache
def model(name: str) -> tuple[LlamaConfig, Params]:
    return load_hf(GOLDENS / "models" / name)


@pytest.fixture
def folder(tmp_path: Path):
    """Copies of the golden folders, to be spoiled; `change` is of adapter_config.json."""

    def make(name: str, /, **change) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        values = json.loads((GOLDENS / "peft" / name / "adapter_config.json").read_text())
        values |= change
        (copy / "adapter_config.json").write_text(json.dumps(values))
        shutil.copy(GOLDENS / "peft" / name / "adapter_model.safetensors", copy)
        return copy

    return make


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
    # The rest of theirs has its defaults, none of which means anything.
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
    _assert_same(load_adapter(tmp_path / "out", ShapedBase(config)), adapter)


def _assert_same(ours: Adapter, theirs: Adapter) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for name, leaf in theirs.trainable.items():
        np.testing.assert_array_equal(ours.trainable[name], leaf)


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
        ("llama_adapter", {"num_tokens": 1, "start_layer": 1}, "this llama_adapter has 4 gates a layer"),
        ("prefix", {"num_tokens": 1}, "an adapter of method 'prefix' cannot be written"),
    ],
)
def test_what_peft_does_not_have_is_not_written(method: str, options: dict, sentence: str, tmp_path: Path):
    config = model("llama3")[0]
    with pytest.raises(InputError, match=f"{sentence}.* PEFT has lora, and llama_adapter"):
        write_peft(init_adapter(method, config, **options), tmp_path / "out", config=config)
    assert list(tmp_path.iterdir()) == []


def test_adaption_prompts_on_models_that_peft_computes_otherwise_are_refused(tmp_path: Path, folder):
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


def test_pickles_are_read_without_running_them(folder):
    path = folder("rslora")
    expected = load_peft(path, model("llama3")[0])
    tensors = load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    write_torch_file(path / "adapter_model.bin", tensors)
    _assert_same(load_peft(path, model("llama3")[0]), expected)
    (path / "adapter_model.bin").write_bytes(b"\x80\x02cbuiltins\nprint\n.")
    with pytest.raises(InputError, match=r"adapter_model\.bin is not a torch file"):
        load_peft(path, model("llama3")[0])


def test_bfloat16_and_float16_become_float32(folder):
    path, config = folder("adaption_prompt"), model("llama3")[0]
    tensors = load_file(path / "adapter_model.safetensors")
    for dtype in (jnp.bfloat16, np.float16):
        save_file({name: x.astype(dtype) for name, x in tensors.items()}, path / "adapter_model.safetensors")
        adapter = load_peft(path, config)
        assert adapter.trainable["tokens_lpd"].dtype == "float32"
        first = tensors["base_model.model.model.layers.1.self_attn.adaption_prompt"][0]
        np.testing.assert_array_equal(adapter.trainable["tokens_lpd"][0], first.astype(dtype).astype(np.float32))


def test_without_a_base_it_is_read_as_far_as_that_goes(folder):
    expected = load_peft(GOLDENS / "peft" / "adaption_prompt", model("llama3")[0])
    _assert_same(load_adapter(GOLDENS / "peft" / "adaption_prompt"), expected)
    here = folder("lora", base_model_name_or_path=str(GOLDENS / "models" / "wide_head"))
    _assert_same(load_adapter(here), load_peft(GOLDENS / "peft" / "lora", model("wide_head")[0]))
    elsewhere = folder("rslora", base_model_name_or_path="org/model")
    with pytest.raises(InputError, match=r"base_model_name_or_path is 'org/model': .* the base has to be given"):
        load_adapter(elsewhere)


def test_it_names_no_base_and_no_prompt_format(tmp_path: Path):
    assert recorded_prompt_format(GOLDENS / "peft" / "lora") == {}
    assert recorded_base(GOLDENS / "peft" / "lora") is None
    config = model("llama3")[0]
    adapter = load_peft(GOLDENS / "peft" / "rslora", config)
    save_adapter(adapter, tmp_path / "a.safetensors", ShapedBase(config))
    assert recorded_base(tmp_path / "a.safetensors") == (*ShapedBase(config), None)
    _assert_same(load_adapter(tmp_path / "a.safetensors", ShapedBase(config)), adapter)


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
def test_targets_may_be_written_in_all_of_pefts_ways(wanted, folder):
    path, config = folder("lora", target_modules=wanted, layers_to_transform=[0, 1, 2]), model("wide_head")[0]
    _assert_same(load_peft(path, config), load_peft(GOLDENS / "peft" / "lora", config))


@pytest.mark.parametrize(
    "wanted",
    [
        ["q_proj", "v_proj", "query_key_value", "c_attn", "", "lm_head", "embed_tokens"],
        r".*\.(q_proj|v_proj|c_attn)",
        r"^(?!.*(visual|lm_head)).*(?:q_proj|v_proj)$",
        # Unsloth's way of writing it.
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn)\.(?:(?:q_proj|v_proj)))",
    ],
)
def test_modules_that_the_model_lacks_are_passed_over_as_peft_does(wanted, folder):
    config = model("llama3")[0]
    path = folder("rslora", target_modules=wanted)
    _assert_same(load_peft(path, config), load_peft(GOLDENS / "peft" / "rslora", config))
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((4, 32), np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"unknown tensor 'base_model\.model\.lm_head\.lora_A\.weight'"):
        load_peft(path, config)


def test_a_base_of_a_billion_layers_is_not_gone_through(folder, tmp_path: Path):
    base = Path(shutil.copytree(GOLDENS / "models" / "wide_head", tmp_path / "base"))
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2**31 - 1}))
    path = folder("lora", base_model_name_or_path=str(base))
    with pytest.raises(InputError, match="has 42 tensors, too few for the 2147483647 layers"):
        load_adapter(path)
    with pytest.raises(InputError, match="File name too long"):
        load_adapter(folder("rslora", base_model_name_or_path="x" * 5000))


@pytest.mark.parametrize("layer", ["02", "9" * 5000, "١", "-1"])
def test_a_layer_has_one_name(layer: str, folder):
    path, prefix = folder("adaption_prompt"), "base_model.model.model.layers."
    _edited(path, lambda x: x.update({f"{prefix}{layer}.self_attn.adaption_prompt": np.ones((1, 3, 32), np.float32)}))
    for config in (None, model("llama3")[0]):
        with pytest.raises(InputError, match="unknown tensor"):
            load_peft(path, config)


@pytest.mark.parametrize(
    ("name", "field", "value", "sentence"),
    [
        ("lora", "peft_type", "LOHA", "only LORA and ADAPTION_PROMPT can be read"),
        ("lora", "peft_type", None, "only LORA"),
        ("lora", "bias", "all", "trained biases"),
        ("lora", "modules_to_save", ["lm_head"], "whole modules"),
        ("lora", "use_dora", True, "DoRA"),
        ("lora", "rank_pattern", {"q_proj": 8}, "ranks that differ"),
        ("lora", "alpha_pattern", {"q_proj": 8}, "scales that differ"),
        ("lora", "fan_in_fan_out", True, "not transposed"),
        ("lora", "layers_to_transform", [0, 2], "some of the 3 layers only"),
        ("lora", "layers_to_transform", 1, "some of the 3 layers only"),
        ("lora", "exclude_modules", "(", "not a regular expression"),
        ("lora", "exclude_modules", [1], "should name modules among q_proj"),
        ("lora", "lora_bias", True, "biases of LoRA's factors"),
        ("lora", "init_lora_weights", "pissa", "changes the weights of the base"),
        ("lora", "something_new", 7, "what that asks for is not supported"),
        ("lora", "layers_to_transform", [0, 1, True], "not a list of integers"),
        ("lora", "layers_to_transform", "1", "not an integer"),
        ("lora", "target_modules", "(", "not a regular expression"),
        ("lora", "target_modules", "q_proj", "it names none of q_proj, k_proj"),
        ("lora", "target_modules", ["c_attn", "lm_head", ""], "it names none of q_proj, k_proj"),
        ("lora", "target_modules", ["q_proj", 1], "should name modules among q_proj"),
        ("lora", "target_modules", {"q_proj": 1}, "should name modules among q_proj"),
        ("lora", "target_modules", r"(([a-z0-9._]+)+)+!", "it names none of"),
        ("lora", "target_modules", r"(.*)*(.*)*(.*)*x", "it names none of"),
        ("lora", "target_modules", "(" * 20000 + ")" * 20000, "more than 40 groups in each other"),
        ("lora", "target_modules", "a{9999999999999}", "'{' has nothing before it"),
        ("lora", "target_modules", "|".join(f"a{i}" for i in range(100_000)), "of at most 100,000"),
        ("lora", "target_modules", "(a|b|.|..|...)*" * 2000, "too much work"),
        ("lora", "use_rslora", "no", "not true or false"),
        ("lora", "use_rslora", 1, "not true or false"),
        ("lora", "use_dora", 0, "DoRA"),
        ("lora", "lora_alpha", float("nan"), "not a positive number"),
        ("lora", "lora_alpha", float("inf"), "not a positive number"),
        ("lora", "lora_alpha", 10**400, "not a positive number"),
        ("lora", "lora_alpha", True, "not a positive number"),
        ("lora", "lora_dropout", float("nan"), "not a number"),
        ("lora", "lora_dropout", -0.1, "not a number"),
        ("lora", "r", 2.0, "not a positive integer"),
        ("lora", "r", 2**40, "not a positive integer"),
        ("lora", "init_lora_weights", ["gaussian"], "changes the weights of the base"),
        ("lora", "foo", "x" * 100_000, "what that asks for is not supported"),
        ("lora", "target_modules", [], "should name modules among q_proj"),
        ("lora", "target_modules", None, "should name modules among q_proj"),
        ("lora", "target_modules", ["layers.1.mlp.up_proj"], "mlp.up_proj in some of the 3 layers only"),
        ("lora", "r", 0, "not a positive integer"),
        ("lora", "lora_alpha", "much", "lora_alpha is 'much', not a positive number"),
        ("adaption_prompt", "target_modules", "mlp", "prompts are at 'self_attn'"),
        ("adaption_prompt", "adapter_len", None, "adapter_len is missing"),
        ("adaption_prompt", "adapter_layers", 4, "the model has 3 layers"),
        ("adaption_prompt", "use_dora", True, "DoRA"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_its_field(name: str, field: str, value, sentence: str, folder):
    path = folder(name, **{field: value})
    with pytest.raises(InputError) as caught:
        load_peft(path, model(CASES[name])[0])
    message = str(caught.value)
    assert message.startswith(f"{path / 'adapter_config.json'}: ")
    assert sentence in message
    assert f"{field} " in message
    assert "\n" not in message


def _edited(path: Path, edit) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, path / "adapter_model.safetensors")


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("lora", "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"),
        ("adaption_prompt", "base_model.model.model.layers.1.self_attn.adaption_gate"),
    ],
)
def test_tensors_are_all_accounted_for(name: str, tensor: str, with_base: bool, folder):
    path = folder(name, base_model_name_or_path=str(GOLDENS / "models" / CASES[name]))
    config = model(CASES[name])[0] if with_base else None
    edits = [
        (lambda x: x.update(more=np.zeros(2, np.float32)), "has an unknown tensor 'more'"),
        (lambda x: x.pop(tensor), f"has no tensor '{tensor}'"),
        (lambda x: x.update({tensor: np.zeros((2, 7), np.float32)}), f"'{tensor}' has shape (2, 7)"),
        (lambda x: x.update({tensor: np.zeros((), np.float32)}), f"'{tensor}' has shape ()"),
        (lambda x: x.update({tensor: np.zeros((0, 3), np.float32)}), f"'{tensor}' has shape (0, 3)"),
        (lambda x: x.update({tensor: x[tensor] * np.float32(np.nan)}), f"{tensor} holds numbers that are not finite"),
        (lambda x: x.update({tensor: x[tensor].astype(np.int32)}), f"{tensor} is stored as I32"),
    ]
    original = (path / "adapter_model.safetensors").read_bytes()
    for edit, sentence in edits:
        (path / "adapter_model.safetensors").write_bytes(original)
        _edited(path, edit)
        with pytest.raises(InputError) as caught:
            load_peft(path, config)
        assert sentence in str(caught.value)
        assert str(path) in str(caught.value)


def test_folders_that_are_no_adapter_are_refused(folder, tmp_path: Path):
    path, config = folder("lora"), model("wide_head")[0]
    (path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        load_peft(path, config)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        load_peft(path, config)
    for content, sentence in (
        (b"{", ":1 is not JSON"),
        (b"[1]", " is not a JSON object"),
        (b"\xff", ":1 is not UTF-8"),
        (b"[" * 100_000, " is not JSON that can be read"),
        (b'{"r": 1, "r": 2}', "'r' twice"),
    ):
        (path / "adapter_config.json").write_bytes(content)
        with pytest.raises(InputError, match=rf"adapter_config\.json.*{sentence}"):
            load_peft(path, config)
    (path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"lora is no folder of a PEFT adapter: adapter_config\.json \(No such file"):
        load_adapter(path)


@pytest.mark.parametrize("excluded", [["v_proj", "mlp.up_proj", "lm_head"], r".*\.(v_proj|up_proj)$"])
def test_excluded_modules_are_not_adapted(excluded, folder):
    path, config = folder("lora", target_modules="all-linear", exclude_modules=excluded), model("wide_head")[0]
    tensors = load_file(path / "adapter_model.safetensors")
    kept = {name: x for name, x in tensors.items() if "v_proj" not in name and "up_proj" not in name}
    save_file(kept, path / "adapter_model.safetensors")
    adapter = load_peft(path, config)
    assert adapter.options["targets"] == ("q", "k", "o", "gate", "down")
    whole = load_peft(GOLDENS / "peft" / "lora", config)
    for name, leaf in adapter.trainable.items():
        np.testing.assert_array_equal(leaf, whole.trainable[name])
