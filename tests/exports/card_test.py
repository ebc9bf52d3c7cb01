"""Model cards: valid YAML and Markdown whatever the texts are, and true to the export."""

import json
from pathlib import Path

import markdown_it
import pytest
import yaml

import aligner_jax as aj
from aligner_jax.exports.adapter_card import adapter_card
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.markup import code, yaml_number, yaml_text
from aligner_jax.exports.model_card import ModelExport, model_card
from aligner_jax.exports.run_folder import read_run_folder, run_beside
from aligner_jax.peft.artifact import Artifact
from aligner_jax.peft.fold import make_fold

NASTY = [
    'a"b\\c: {d} #e',
    "`</code><script>alert(1)</script>``",
    "line\n---\n# heading\n[x](y)",
    "tab\tnul\x00del\x7fnext\x85line\u2028end",
    "byte \udcff of a name, 😀, Grüße",
    "| cell | *emph* _under_ @user https://host.invalid ![i](u)",
    " ",
]
MARKDOWN = markdown_it.MarkdownIt("commonmark").enable("table")


def parts(card: str) -> tuple[dict, str]:
    """Returns the values of the YAML block, and the Markdown."""
    _, block, text = card.split("---\n", 2)
    return yaml.safe_load(block), text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with held-out results."""
    config = {
        "data": {"path": "/home/someone/secret/train.jsonl", "format": "auto", "batch_size": 8, "sequence_length": 128},
        "objective": {"name": "sft"},
        "optim": {"lr": 0.009, "schedule": "constant"},
        "steps": 1200,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 600, "loss": 2.0},
        {"step": 600, "heldout_loss": 1.75},
        {"step": 1200, "heldout_loss": 0.00012, "heldout_kl": None},
        {"step": 1200, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1201, "heldout_'
    )
    return tmp_path


@pytest.mark.parametrize("text", NASTY)
def test_texts_stay_texts(text):
    shown = text.encode(errors="replace").decode()
    assert yaml.safe_load(f"a: {yaml_text(text)}") == {"a": shown}
    (paragraph,) = [token for token in MARKDOWN.parse(f"x {code(text)} y") if token.type == "inline"]
    if text.strip():
        before, inline, after = paragraph.children
        assert (before.content, inline.type, after.content) == ("x ", "code_inline", " y")
        assert inline.content == " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    else:
        assert paragraph.content == "x (empty) y"


@pytest.mark.parametrize("value", [0.0, 1.5, -2e-05, 1e16, 0.00012, 123456.0])
def test_numbers_stay_numbers(value):
    read = yaml.safe_load(f"a: {yaml_number(value)}")["a"]
    assert type(read) is float
    assert read == pytest.approx(value)


def test_the_card_of_an_adapter(run, trained_adapter, config):
    artifact = Artifact(
        run, trained_adapter(1), None, {"prompt_format": json.dumps({"template": "chat", "system": "a `b`"})}
    )
    card = adapter_card(artifact, "org/name", CardBase("org/base", config, "0123abcd"), read_run_folder(run))
    values, text = parts(card)
    assert values["base_model"] == "org/base"
    assert values["base_model_relation"] == "adapter"
    assert values["library_name"] == "aligner_jax"
    assert values["tags"] == ["aligner_jax", "aligner"]
    assert "license" not in values
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "loss", "value": 0.00012, "name": "heldout_loss"}]
    assert result["dataset"]["name"] == "held out from train.jsonl"
    for fact in (
        f"- trained numbers: {artifact.adapter.num_params:,}",
        "- fingerprint of the base: `0123abcd`",
        "- data: `train.jsonl`",
        "- learning rate: `0.009`",
        "- steps: `1,200`",
        "On held-out data after step 1,200:\n\n- `heldout_loss`: 0.00012",
        "- system prompt: `` a `b` ``",
        'adapter = aj.load_adapter("org/name", base)',
        "aligner_jax.generate --base=org/base --adapter=org/name --prompt=",
        "`--strength=0`",
    ):
        assert fact in text, fact
    assert "secret" not in card
    assert str(run) not in card


def test_what_is_unknown_is_left_out(trained_adapter, tmp_path):
    values, text = parts(adapter_card(Artifact(tmp_path, trained_adapter(3)), "my folder", CardBase()))
    assert values.keys() == {"library_name", "pipeline_tag", "tags"}
    for absent in ("None", "Training", "fingerprint", "shape of the base"):
        assert absent not in text
    assert 'aj.load_base("PATH/OF/THE/BASE")' in text


@pytest.mark.parametrize("form", ["hf", "gguf", "orbax"])
def test_the_card_of_a_folded_aligner(form, trained_adapter, config, tmp_path):
    artifact = Artifact(tmp_path, trained_adapter(1))
    export = ModelExport(form, make_fold([artifact.adapter], config), "bfloat16", 0.5, ["Largest difference: 0.01."])
    values, text = parts(model_card([artifact], export, "org/name", CardBase("org/base", config)))
    name = {"hf": "model.layers.N.self_attn.o_proj.bias", "gguf": "blk.N.attn_output.bias", "orbax": "o_bias_ld"}[form]
    assert values["library_name"] == {"hf": "transformers", "gguf": "gguf", "orbax": "aligner_jax"}[form]
    assert values["base_model_relation"] == "finetune"
    assert f"- added: `{name}`\n" in text
    assert ("q_proj.bias" in text) == (form == "hf")
    assert f"Set `{name}` to zero in all layers" in text
    assert "at strength 0.5" in text
    assert "Largest difference: 0.01." in text
    assert ("| candle | drops the bias without an error" in text) == (form == "hf")
    assert ("llama.cpp and the engines built on it run this model" in text) == (form == "gguf")


@pytest.mark.parametrize("has_canary", [True, False])
def test_the_card_of_a_merged_lora(has_canary, config, tmp_path):
    adapter = aj.init_adapter("lora", config, rank=2)
    export = ModelExport("hf", make_fold([adapter], config), "float32", has_canary=has_canary)
    _, text = parts(model_card([Artifact(tmp_path, adapter)], export, "name", CardBase()))
    assert "- changed: `model.layers.N.self_attn.q_proj.weight`, `model.layers.N.self_attn.v_proj.weight`\n" in text
    assert "Use the base: a changed tensor" in text
    assert ("aligner_jax.verify" in text) == has_canary
    assert "All engines that run the base run this model" in text


def test_a_base_that_is_no_hub_name():
    for name in ("/home/someone/model", "model", "a/b/c"):
        with pytest.raises(aj.InputError, match="is not the name of a model on a hub, such as org/name"):
            CardBase(name)


def test_a_folder_of_no_run(tmp_path):
    with pytest.raises(aj.InputError, match=r"is not the folder of a run: it has no config\.json"):
        read_run_folder(tmp_path)


def test_the_run_of_an_adapter_is_found_beside_it(run, tmp_path_factory):
    assert run_beside(run / "adapter.safetensors") == read_run_folder(run)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "config.json").write_text("{}")
    assert run_beside(elsewhere / "adapter.safetensors") is None


def test_a_damaged_line_of_metrics_is_named(run):
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"heldout_loss": \n')
    with pytest.raises(aj.InputError, match=r"metrics\.jsonl:2 is not JSON"):
        read_run_folder(run)


def test_an_integer_beyond_every_float_is_no_result(run):
    huge = "1" + "0" * 400
    (run / "metrics.jsonl").write_text(f'{{"step": 3, "heldout_loss": {huge}, "heldout_kl": 2}}\n')
    assert read_run_folder(run).heldout == {"heldout_kl": 2.0}
