"""Errors that a run reports before the base's weights are loaded."""

import json
import sys
import types
from pathlib import Path

import pytest
import tiny_runs
from safetensors.numpy import load_file, save_file
from sample_runs import settings_of, write_inputs
from whole_runs import run

from aligner_jax.data.sources.formats import READ
from aligner_jax.errors import InputError
from aligner_jax.peft import complete_options
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.peft.methods import fresh_adapter
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import training
from aligner_jax.tasks.early_checks import beyond_context, check_early
from aligner_jax.weights.base import base_config, load_base


class Loaded(Exception):
    """Raised in place of loading the base."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with a base and data; loading the base raises `Loaded`."""

    def load(*args, **options):
        raise Loaded

    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    monkeypatch.setattr(training, "load_base", load)


def refusal(kind: str = "sft", **sections: dict) -> str:
    settings = settings_of(kind)
    for name, fields in sections.items():
        settings[name] = {**settings.get(name, {}), **fields}
    with pytest.raises(InputError) as caught:
        run(settings, Path("run"))
    assert not Path("run", "config.json").exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_that_can_begin_loads_its_base(kind):
    with pytest.raises(Loaded):
        run(settings_of(kind), Path("run"))


def test_data_are_looked_at_first():
    assert refusal(data={"path": "no.jsonl"}) == "there is no file no.jsonl"
    assert refusal(data={"heldout_path": "no.jsonl"}) == "there is no file no.jsonl"
    tiny_runs.write_rows(Path("bad.jsonl"), [{"q": "a"}])
    assert refusal(data={"path": "bad.jsonl"}).startswith("bad.jsonl:1: the record's fields are 'q', which tell no ")
    assert refusal(data={"heldout_path": "bad.jsonl"}).endswith(READ)
    assert refusal(data={"format": "gsm8k"}).startswith("sft.jsonl:1: the record has no field 'question'")
    instructions = {"path": "sft.jsonl", "format": "auto"}
    assert refusal("dpo", data=instructions).startswith("sft.jsonl:1: a preference (a prompt, a chosen and a ")
    both = {"heldout_path": "sft.jsonl", "heldout_rows": 0, "format": "auto"}
    assert refusal("dpo", data=both).startswith("sft.jsonl:1: a preference")
    Path("a.txt").write_text("Pines are trees.\n")
    assert refusal(data={"path": "a.txt", "heldout_rows": 0}, report={"form": "json_answer"}) == (
        "config.report.form is 'json_answer', but the texts of a.txt have no questions to answer"
    )
    settings = json.loads(Path("tiny/tokenizer_config.json").read_text())
    assert settings.pop("chat_template")
    Path("tiny/tokenizer_config.json").write_text(json.dumps(settings))
    assert "chat template" in refusal(data={"template": "chat"})


def test_so_are_the_headers_of_the_base_and_of_adapters():
    assert refusal(base={"path": "no/such/base"}).startswith("there is no base model at no/such/base; give a ")
    assert "llama9" in refusal(base={"model": "llama9"})
    assert refusal(adapter={"start_layer": 9}) == "start_layer is 9, but the model has layers 0 to 3"
    assert "no.safetensors" in refusal(adapter={"init_from": "no.safetensors"})
    save_file({"a": load_file("tiny/model.safetensors").popitem()[1]}, "other.safetensors")
    assert refusal(adapter={"init_from": "other.safetensors"}).startswith("other.safetensors ")
    assert "no.safetensors" in refusal("dpo", objective={"reference": "no.safetensors"})
    base = load_base("tiny")
    options = complete_options("aligner", base.config, {"num_tokens": 3, "start_layer": 2}, section="config.adapter")
    save_adapter(fresh_adapter("aligner", base.config, 0, options), "a.safetensors", base=base)
    assert refusal(adapter={"init_from": "a.safetensors"}).startswith(
        "config.adapter.init_from, a.safetensors, is aligner"
    )
    assert refusal(report={"form": "sonnet"}).startswith("config.report.form is 'sonnet', but should be one of ")


def test_rows_beyond_the_context_are_told_and_not_refused(capsys):
    context = base_config("tiny").context_length
    settings = settings_of("sft")
    settings["data"]["sequence_length"] = context
    assert beyond_context(parse_config(settings), context) == ""
    settings["data"]["sequence_length"] = 2 * context
    said = (
        f"data: config.data.sequence_length is {2 * context:,}, and the base's context {context:,}: documents have at "
    )
    told = beyond_context(parse_config(settings), context)
    assert told == f"{said}most {context:,} tokens, and packed rows hold several"
    settings["data"]["packing"] = False
    assert beyond_context(parse_config(settings), context).endswith("and the rest of every row stays empty")
    console = types.SimpleNamespace(out=print)
    check_early(parse_config(settings), console)
    assert said in capsys.readouterr().out


def test_of_a_hubs_model_only_the_small_files_are_downloaded(monkeypatch):
    asked = []
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, allow_patterns: asked.append((name, allow_patterns)) or "tiny"
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    settings = settings_of("sft")
    settings["base"]["path"] = "org/tiny"
    with pytest.raises(Loaded):
        run(settings, Path("run"))
    assert asked == [("org/tiny", ["*.json", "tokenizer.model", "*.jinja"])]
    assert json.loads(Path("tiny/config.json").read_text())
