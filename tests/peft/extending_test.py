"""The method of docs/extending.md keeps the contract of all methods, in one file and one line."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from doc_diffs import diffs_of
from method_contract import CONTRACT, Case
from places import ROOT
from whole_runs import run

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, init_adapter
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks.first_adapter import check_adapter, method_choice

TEXT = (ROOT / "docs" / "extending.md").read_text()
DIFFS = diffs_of(TEXT)


@pytest.fixture(autouse=True)
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's file as a module, and its line in the table."""
    (code,) = DIFFS["aligner_jax/peft/query_bias.py"]
    (line,) = re.findall(r'"(\w+)": (QUERY_BIAS),', "\n".join(DIFFS["aligner_jax/peft/methods.py"][1].after))
    file = tmp_path / "query_bias.py"
    file.write_text("\n".join(code.after))
    spec = importlib.util.spec_from_file_location("query_bias", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "query_bias", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, line[0], getattr(module, line[1]))
    assert line[0] == "query_bias"


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_it_keeps_what_all_methods_promise(promise, config: LlamaConfig, params, randomized, pack, tmp_path: Path):
    adapter = randomized(init_adapter("query_bias", config, start_layer=1, scale=3))
    promise(Case(config, params, adapter, randomized, pack), tmp_path)


def test_its_command_takes_what_both_methods_have_and_says_what_it_leaves_out():
    pattern = r"--config=(\S+) (--config\.adapter\.\S+) \\\n *(--config\.adapter\.\S+) --workdir"
    (command,) = re.findall(pattern, TEXT)
    overrides = [tuple(text.removeprefix("--config.").split("=")) for text in command[1:]]
    said: list[str] = []
    config = parse_config(
        load_config(ROOT / command[0], overrides, choices=[method_choice()], say=said.append)  # pyright: ignore[reportArgumentType]
    )
    check_adapter(config)
    assert (config.adapter.method, config.adapter.options) == ("query_bias", {"start_layer": 2, "scale": 3})
    assert [line.rpartition(": ")[2] for line in said] == ["config.adapter.num_tokens"]


def test_it_trains(tiny_run: dict, tmp_path: Path):
    settings = {**tiny_run, "adapter": {"method": "query_bias", "start_layer": 1}}
    adapter, _ = run(settings, tmp_path / "run")
    saved = load_adapter(tmp_path / "run" / "adapter.safetensors")
    assert saved.options == adapter.options
    assert float(abs(saved.trainable["bias_lnh"]).max()) > 0
