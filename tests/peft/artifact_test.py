"""The adapter's file: exact, reproducible, small, and bound to its base."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from adapter_files import NamedBase, parts, refusal, write
from places import GOLDENS, ROOT

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.params import Params
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, read_artifact, read_shapes, save_adapter
from aligner_jax.weights.base import Base
from aligner_jax.weights.hf import hf_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(dtype: str, tmp_path: Path, trained_adapter, base: NamedBase):
    adapter = jax.tree.map(lambda x: x.astype(dtype), trained_adapter(3, start_layer=1))
    path = tmp_path / "new" / "adapter.safetensors"
    save_adapter(adapter, path, base)
    for loaded in (load_adapter(path, base), load_adapter(path)):
        assert jax.tree.structure(loaded) == jax.tree.structure(adapter)
        for name, leaf in adapter.trainable.items():
            assert loaded.trainable[name].dtype == dtype
            np.testing.assert_array_equal(loaded.trainable[name], leaf)


def test_metadata_say_what_it_is_and_whose(saved: Path, base: NamedBase):
    metadata = parts(saved)[0]["__metadata__"]
    assert metadata["method"] == "aligner"
    assert json.loads(metadata["options"]) == {"num_tokens": 3, "start_layer": 1, "gates": "head", "tokens": "model"}
    assert metadata["format_version"] == "1"
    assert metadata["base_fingerprint"] == base.fingerprint
    assert LlamaConfig.from_fields(Fields(json.loads(metadata["base_config"]), "it")) == base.config


def test_equal_adapters_are_equal_files_in_every_process(tmp_path: Path):
    program = (
        "import sys, aligner_jax.peft as peft; from aligner_jax.model.config import llama_config;"
        "from aligner_jax.peft.artifact import save_adapter;"
        "save_adapter(peft.init_adapter('aligner', llama_config('stories_260k')), sys.argv[1])"
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in files[1:]:
        save_adapter(init_adapter("aligner", llama_config("stories_260k")), path)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(files[0])], check=True, env=environment, timeout=300)
    assert len({path.read_bytes() for path in files}) == 1


def test_5056_numbers_are_20_kb_and_little_more(tmp_path: Path):
    config = llama_config("llama_7b")
    adapter = init_adapter("aligner", config)
    save_adapter(adapter, tmp_path / "adapter.safetensors", NamedBase(config))
    assert adapter.num_params == 5056
    assert (tmp_path / "adapter.safetensors").stat().st_size - 4 * 5056 < 1024


def test_the_prompt_format_comes_back(tmp_path: Path, trained_adapter, saved: Path):
    path = tmp_path / "chat.safetensors"
    save_adapter(trained_adapter(1), path, prompt_format={"template": "chat", "system": None})
    assert read_artifact(path).prompt_format == PromptFormat("chat", None)
    assert read_artifact(saved).prompt_format is None


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        ('{"template": 3}', "its metadata field 'prompt_format': template is 3, not text"),
        ('{"template": "chat", "system": ["a"]}', "its metadata field 'prompt_format': system is a list"),
        ('["chat"]', "its metadata field 'prompt_format' is not a JSON object"),
        ("chat", "its metadata field 'prompt_format' is not JSON"),
    ],
)
def test_an_odd_prompt_format_is_refused_where_it_is_read_and_the_adapter_loads(recorded, sentence, saved, base):
    adapter, (header, body) = load_adapter(saved, base), parts(saved)
    header["__metadata__"]["prompt_format"] = recorded
    write(saved, header, body)
    artifact = read_artifact(saved, base)
    for loaded in (load_adapter(saved), artifact.adapter):
        jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
    with pytest.raises(InputError) as caught:
        _ = artifact.prompt_format
    assert str(caught.value).startswith(f"{saved}: {sentence}")


@pytest.mark.parametrize(
    ("prompt_format", "sentence"),
    [
        ({"template": 3}, "prompt_format's template is 3, but should be one of none, alpaca, chat"),
        ({"template": "vicuna"}, "prompt_format's template is 'vicuna', but should be one of none, alpaca, chat"),
        ({"system": "Be brief."}, "prompt_format's template is None, but should be one of none, alpaca, chat"),
        ({"template": "chat", "system": 3}, "prompt_format's system is 3, but should be text or None"),
        ({"template": "chat", "sytem": ""}, "prompt_format has the field 'sytem'; it has template and system only"),
    ],
)
def test_an_odd_prompt_format_is_not_saved(prompt_format: dict, sentence: str, tmp_path: Path, trained_adapter):
    with pytest.raises(InputError) as caught:
        save_adapter(trained_adapter(1), tmp_path / "a.safetensors", prompt_format=prompt_format)
    assert str(caught.value) == sentence
    assert not list(tmp_path.iterdir())


def test_shapes_are_read_without_the_arrays(saved: Path, base: NamedBase, trained_adapter, monkeypatch):
    monkeypatch.setattr("aligner_jax.weights.source.Source.read", None)
    shapes = read_shapes(saved, base.config)
    wanted = jax.eval_shape(lambda: trained_adapter(3))
    assert (shapes, shapes.num_params) == (wanted, 3 * 16 + 2 * 4)
    with pytest.raises(InputError, match="d_model 16 against 64"):
        read_shapes(saved, llama_config("stories_260k"))
    save_adapter(trained_adapter(3), saved)
    with pytest.raises(InputError, match="has shape"):
        read_shapes(saved, llama_config("stories_260k"))
    with pytest.raises(InputError, match="does not exist"):
        read_shapes(saved.with_name("absent.safetensors"), base.config)


def test_shapes_of_other_projects_files_are_those_of_their_adapters():
    released, config = GOLDENS / "lit_llama.pth", hf_config(GOLDENS / "models" / "llama3")
    adapter = load_adapter(released)
    assert read_shapes(released, config) == jax.eval_shape(lambda: adapter)
    with pytest.raises(InputError, match="has shape"):
        read_shapes(released, llama_config("stories_260k"))


def test_a_base_of_another_shape_is_refused(saved: Path, base: NamedBase):
    other = NamedBase(llama_config("stories_260k"), "f" * 64)
    sentence = refusal(saved, other)
    assert "d_model 16 against 64" in sentence
    assert "num_layers 3 against 5" in sentence
    assert "norm_eps" not in sentence


def test_a_base_with_one_changed_weight_is_refused(tmp_path: Path, trained_adapter, config, params: Params):
    path = tmp_path / "adapter.safetensors"
    base = Base(params, config)
    save_adapter(trained_adapter(1), path, base=base)
    load_adapter(path, base=base)
    changed = params.replace(norm_d=params.norm_d.at[3].multiply(1.01))
    assert "same shape with other weights" in refusal(path, Base(changed, config))


def test_an_adapter_saved_without_a_base_fits_every_base_of_its_shape(tmp_path: Path, trained_adapter, base: NamedBase):
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained_adapter(1), path)
    assert load_adapter(path).num_params == load_adapter(path, base).num_params == 16 + 2 * 4
    assert "has shape" in refusal(path, NamedBase(llama_config("stories_260k")))


def test_a_fingerprint_counts_even_without_its_configuration(saved: Path, base: NamedBase):
    header, body = parts(saved)
    del header["__metadata__"]["base_config"]
    write(saved, header, body)
    load_adapter(saved, base)
    assert "other weights" in refusal(saved, base._replace(fingerprint="f" * 64))


def test_options_from_before_others_existed_are_completed_without_any_base(saved: Path):
    header, body = parts(saved)
    del header["__metadata__"]["base_config"], header["__metadata__"]["base_fingerprint"]
    header["__metadata__"]["options"] = '{"num_tokens": 3, "start_layer": 1}'
    write(saved, header, body)
    assert load_adapter(saved).options.as_dict() == {
        "num_tokens": 3, "start_layer": 1, "gates": "head", "tokens": "model",
    }  # fmt: skip


def test_files_of_before_there_were_digests_load():
    config = llama_config("stories_260k")
    base = NamedBase(config)
    old = GOLDENS / "adapters" / "before_digests.safetensors"
    assert "digest" not in parts(old)[0]["__metadata__"]
    adapter = load_adapter(old, base)
    np.testing.assert_array_equal(adapter.trainable["gates_ln"], np.arange(24).reshape(3, 8) / 8)
    np.testing.assert_array_equal(
        adapter.trainable["tokens_pd"], init_adapter("aligner", config).trainable["tokens_pd"]
    )
    artifact = read_artifact(old)
    assert artifact.prompt_format == PromptFormat("chat", None)
    assert artifact.base == (config, base.fingerprint, None)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved: Path, trained_adapter, base: NamedBase):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            save_adapter(trained_adapter(3, key=9), saved, base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{saved} cannot be written: File too large" in str(caught.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
