"""A published adapter: its folder, and its way to a hub and back through the real client."""

import json
import sys
from pathlib import Path

import hub_server
import numpy as np
import places
import pytest
from huggingface_hub import constants

import aligner_jax as aj
from aligner_jax.exports.adapter_folder import fill_adapter_folder
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.hub import check_push, push
from aligner_jax.peft.artifact import read_artifact
from aligner_jax.weights.base import Base
from aligner_jax.weights.hf import load_hf

TOKEN = "hf_a_token_of_the_test"


@pytest.fixture
def base(config, random_params) -> Base:
    return Base(random_params(config), config)


@pytest.fixture
def folder(tmp_path: Path, trained_adapter, base) -> Path:
    """A folder to publish."""
    aj.save_adapter(trained_adapter(1), tmp_path / "trained.safetensors", base)
    artifact = read_artifact(tmp_path / "trained.safetensors")
    made = tmp_path / "folder"
    made.mkdir()
    fill_adapter_folder(
        made, artifact, "org/name", CardBase("meta-llama/Llama-2-7b", artifact.base.config, artifact.base.fingerprint)
    )
    return made


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running hub, which the client asks with a token."""
    with hub_server.serving() as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The client reads HF_ENDPOINT when it is imported, which other tests may have done.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.chdir(tmp_path)
        yield running


def test_the_folder_is_the_adapter(folder, base, tmp_path):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.safetensors", "aligner_config.json"]
    assert (folder / "adapter.safetensors").read_bytes() == (tmp_path / "trained.safetensors").read_bytes()
    assert aj.load_adapter(folder, base).num_params == aj.load_adapter(tmp_path / "trained.safetensors").num_params
    described = json.loads((folder / "aligner_config.json").read_text())
    assert described["method"] == "aligner"
    assert described["base_model_name_or_path"] == "meta-llama/Llama-2-7b"
    assert described["base_fingerprint"] == base.fingerprint
    assert "peft_type" not in described


def test_an_adapter_of_peft_records_the_base_that_is_named(tmp_path):
    config, params = load_hf(places.GOLDENS / "models" / "llama3")
    base = Base(params, config)
    artifact = read_artifact(places.GOLDENS / "peft" / "adaption_prompt", base)
    with pytest.raises(aj.InputError, match=r"adaption_prompt does not name its base, .* add --base=PATH"):
        fill_adapter_folder(tmp_path, artifact, "name", CardBase())
    assert list(tmp_path.iterdir()) == []
    fill_adapter_folder(tmp_path, artifact, "name", CardBase(), base=base)
    assert read_artifact(tmp_path).base.fingerprint == base.fingerprint


def test_there_and_back(hub, folder, base):
    assert push(folder, "org/name") == f"{hub.url}/org/name"
    assert hub.made == [{"name": "name", "organization": "org", "visibility": "private", "type": "model"}]
    assert hub.files["org/name"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(hub.cards) == {(folder / "README.md").read_text()}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    loaded, saved = aj.load_adapter("org/name", base), aj.load_adapter(folder)
    for name, array in saved.trainable.items():
        np.testing.assert_array_equal(loaded.trainable[name], array)


def test_a_public_repository(hub, folder):
    push(folder, "org/name", private=False)
    assert hub.made[0]["visibility"] == "public"


def test_a_name_that_is_taken(hub, folder):
    hub.files["org/name"] = {"old": b"1"}
    with pytest.raises(aj.InputError, match="not uploaded to org/name: that name is taken"):
        push(folder, "org/name")
    assert hub.files["org/name"] == {"old": b"1"}


@pytest.mark.parametrize(
    ("end", "status", "sentence"),
    [
        ("/create", 401, r"to org/name: the hub does not accept the token: set HF_TOKEN"),
        ("/create", 403, r"to org/name: the token has no right to write there"),
        ("/create", 418, r"to org/name: the hub answers with status 418"),
        (
            "/commit/main",
            403,
            r"to org/name, which was made: the token has no right .*; go on with `hf upload org/name ",
        ),
        ("/validate-yaml", 400, r"to org/name, which was made: the upload failed \(ValueError: Invalid metadata"),
    ],
)
def test_refusals_are_one_sentence(hub, folder, end, status, sentence):
    hub.answers[end] = status
    with pytest.raises(aj.InputError, match=sentence) as caught:
        push(folder, "org/name")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_hub_that_is_not_reached(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(aj.InputError, match=r"to org/name: the hub cannot be reached \(ConnectError"):
        push(folder, "org/name")


def test_what_is_checked_before_anything_is_sent(hub, monkeypatch):
    check_push("org/name")
    for name in ("name", "org/name/more", "../name", "org/adapter.safetensors"):
        with pytest.raises(aj.InputError, match="is not the name of a repository, such as org/name"):
            check_push(name)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path("absent")))
    with pytest.raises(aj.InputError, match=r"--push=org/name finds no token: set HF_TOKEN, or log in"):
        check_push("org/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(aj.InputError, match=r"needs the package huggingface_hub: pip install 'aligner_jax\[hub\]'"):
        check_push("org/name")
    assert hub.tokens == set()
