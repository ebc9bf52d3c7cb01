"""PEFT folders that cannot be read: each unsupported field and tensor is named in the refusal."""

from pathlib import Path

import numpy as np
import pytest
from peft_folders import CASES, GOLDENS, model
from safetensors.numpy import load_file, save_file

from aligner_jax.errors import InputError
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.peft.hf_peft import load_peft


@pytest.mark.parametrize("layer", ["02", "9" * 5000, "١", "-1"])
def test_a_layer_has_one_name(layer: str, peft_folder):
    path, prefix = peft_folder("adaption_prompt"), "base_model.model.model.layers."
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
def test_what_cannot_be_computed_is_refused_by_its_field(name: str, field: str, value, sentence: str, peft_folder):
    path = peft_folder(name, **{field: value})
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
def test_tensors_are_all_accounted_for(name: str, tensor: str, with_base: bool, peft_folder):
    path = peft_folder(name, base_model_name_or_path=str(GOLDENS / "models" / CASES[name]))
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


def test_folders_that_are_no_adapter_are_refused(peft_folder, tmp_path: Path):
    path, config = peft_folder("lora"), model("wide_head")[0]
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
