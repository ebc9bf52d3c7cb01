"""The command's folders for a hub: the adapter's own, model cards, and the upload."""

import json
from pathlib import Path

import hub_server
import jax.numpy as jnp
import numpy as np
import places
import pytest
from command_runs import Ended, run_command
from huggingface_hub import constants

import aligner_jax as aj
from aligner_jax.peft.artifact import read_artifact

LLAMA = places.GOLDENS / "models" / "llama"


@pytest.fixture(scope="module")
def base() -> aj.Base:
    return aj.load_base(LLAMA)


@pytest.fixture
def run(tmp_path: Path, base: aj.Base) -> Path:
    """The folder of a finished run."""
    adapter = aj.init_adapter("aligner", base.config, key=1, start_layer=1)
    gates_ln = jnp.full_like(adapter.trainable["gates_ln"], 0.3)
    folder = tmp_path / "run"
    aj.save_adapter(
        adapter.replace(trainable={**adapter.trainable, "gates_ln": gates_ln}), folder / "adapter.safetensors", base
    )
    (folder / "config.json").write_text(json.dumps({"data": {"path": "/home/me/private/mine.jsonl"}, "steps": 7}))
    (folder / "metrics.jsonl").write_text('{"step": 7, "heldout_loss": 1.25}\n')
    return folder


def export(**flags: object) -> Ended:
    return run_command("export", *(f"--{name}={value}" for name, value in flags.items()))


def test_the_folder_of_an_adapter(run, base, tmp_path):
    ended = export(adapter=run, to="adapter", out=tmp_path / "out", base_model="org/base")
    assert (ended.status, ended.err) == (0, "")
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ('base_model: "org/base"', f"`{base.fingerprint}`", "# `out`", "`mine.jsonl`", "`heldout_loss`: 1.25"):
        assert fact in card
    assert "private" not in card
    aj.load_adapter(tmp_path / "out", base)


@pytest.mark.parametrize(
    ("method", "options"), [("aligner", {}), ("aligner", {"num_tokens": 3}), ("prefix", {"num_tokens": 2})]
)
def test_the_folder_of_an_old_file_has_a_canary(method, options, base, tmp_path):
    adapter = aj.init_adapter(method, base.config, key=1, **options)
    arrays = {name: 0.2 + x for name, x in adapter.trainable.items()}
    adapter, old = adapter.replace(trainable=arrays), tmp_path / "old.safetensors"
    aj.save_adapter(adapter, old, base, prompt_format={"template": "alpaca", "system": None}, canary=False)
    ended = export(adapter=old, to="adapter", out=tmp_path / "without")
    assert (ended.status, ended.err) == (0, "")
    assert "no canary: the adapter's file has none, as files of earlier releases; add --base=PATH" in ended.out
    assert (tmp_path / "without" / "adapter.safetensors").read_bytes() == old.read_bytes()
    assert "aligner_jax.verify" not in (tmp_path / "without" / "README.md").read_text()
    ended = export(adapter=old, to="adapter", out=tmp_path / "out", base=LLAMA)
    assert (ended.status, ended.err) == (0, "")
    assert "no canary" not in ended.out
    before, after = read_artifact(old), read_artifact(tmp_path / "out", base)
    assert {name: x for name, x in after.metadata.items() if name != "canary"} == before.metadata
    for name, x in adapter.trainable.items():
        np.testing.assert_array_equal(after.adapter.trainable[name], x)
    verified = run_command("verify", str(tmp_path / "out"), f"--base={LLAMA}")
    assert verified.out.startswith("adapter active")
    assert "python -m aligner_jax.verify" in (tmp_path / "out" / "README.md").read_text()


def test_the_folder_of_a_file_without_a_base_records_the_one_that_is_given(base, tmp_path):
    adapter = aj.init_adapter("aligner", base.config, key=1)
    adapter = adapter.replace(trainable={name: 0.2 + x for name, x in adapter.trainable.items()})
    aj.save_adapter(adapter, tmp_path / "bare.safetensors", prompt_format={"template": "alpaca", "system": None})
    ended = export(adapter=tmp_path / "bare.safetensors", to="adapter", out=tmp_path / "out")
    assert (ended.status, ended.err.count("\n"), (tmp_path / "out").exists()) == (1, 1, False)
    assert "does not name its base, which a published adapter is checked against: add --base=PATH" in ended.err
    ended = export(adapter=tmp_path / "bare.safetensors", to="adapter", out=tmp_path / "out", base=LLAMA)
    assert (ended.status, ended.err) == (0, "")
    before, after = read_artifact(tmp_path / "bare.safetensors"), read_artifact(tmp_path / "out")
    assert (after.base.fingerprint, after.prompt_format) == (base.fingerprint, before.prompt_format)
    assert after.canary is not None
    for name in ("aligner_config.json", "README.md"):
        assert base.fingerprint in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_the_card_of_a_model(form, run, base, tmp_path):
    ended = export(base=LLAMA, adapter=run, to=form, out=tmp_path / "out", strength=0.5)
    assert (ended.status, ended.err) == (0, "")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("at strength 0.5", f"`{base.fingerprint}`", "Largest difference of logits", "`mine.jsonl`"):
        assert fact in card
    assert "base_model" not in card
    assert str(LLAMA) not in card
    assert ("| candle |" in card, "candle" in ended.out) == ((form == "hf"),) * 2
    again = aj.load_base(tmp_path / "out")
    tokens = jnp.arange(9, dtype=jnp.int32)[None]
    logits, of_base = (np.asarray(aj.apply(b.params, None, tokens, config=b.config)) for b in (again, base))
    assert np.abs(logits - of_base).max() > 1e-3


def test_the_upload(run, base, tmp_path, monkeypatch):
    with hub_server.serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ended = export(adapter=run, to="adapter", out=tmp_path / "out", push="org/name", public=True)
        assert ended.status == 0
        assert ended.out.endswith(f"uploaded to {hub.url}/org/name\n")
        assert "hf_secret" not in ended.out + ended.err
        assert hub.made[0]["visibility"] == "public"
        assert hub.files["org/name"]["README.md"].decode().count("org/name") == 4
        again = export(adapter=run, to="adapter", out=tmp_path / "again", push="org/name")
        assert again.status == 1
        assert "that name is taken" in again.err
        assert (tmp_path / "again" / "adapter.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"public": True}, "--public is of a repository that --push=ORG/NAME makes"),
        ({"strength": 0.5}, "--strength is of a base's weights, and --to=adapter writes the adapter as it is"),
        ({"base_model": "/home/me/model"}, "'/home/me/model' is not the name of a model on a hub"),
        ({"push": "name"}, "--push=name is not the name of a repository"),
        ({"run": "missing"}, "missing is not the folder of a run"),
        ({"adapter": places.GOLDENS / "peft" / "adaption_prompt"}, "add --base=PATH"),
    ],
)
def test_refusals_leave_nothing(run, tmp_path, flags, sentence):
    ended = export(**{"adapter": run, "to": "adapter", "out": tmp_path / "out", **flags})
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert sentence in ended.err
    assert not (tmp_path / "out").exists()


def test_two_adapters_have_no_one_folder(run, tmp_path):
    arguments = [f"--adapter={run}", f"--adapter={run}", "--to=adapter", f"--out={tmp_path / 'out'}"]
    assert "writes one adapter to a folder" in run_command("export", *arguments).err
