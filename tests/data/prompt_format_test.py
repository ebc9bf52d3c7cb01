"""The one rule for the format of prompts, and the commands that follow it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from places import ROOT

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.templates import render_prompt
from aligner_jax.errors import InputError
from aligner_jax.evals.subject import load_subject
from aligner_jax.peft import init_adapter
from aligner_jax.peft.adapter_file import adapter_bytes, read_adapter_file
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.runtime.config import BaseConfig, MeshConfig
from aligner_jax.runtime.sharding import RULES, mesh_of
from aligner_jax.weights.base import load_base


class File(NamedTuple):
    """An adapter's file that records this prompt format."""

    prompt_format: PromptFormat | None


class OddFile:
    """An adapter's file whose record cannot be read."""

    @property
    def prompt_format(self) -> PromptFormat:
        raise InputError("its metadata field 'prompt_format': template is 3")


BRIEF, PLAIN, ALPACA = PromptFormat("chat", "Be brief."), PromptFormat("chat"), PromptFormat("alpaca")


@pytest.mark.parametrize(
    ("template", "system", "recorded", "expected"),
    [
        ("auto", None, {}, PromptFormat("none")),
        ("auto", None, {"a": BRIEF}, BRIEF),
        ("auto", "Be kind.", {"a": BRIEF}, PromptFormat("chat", "Be kind.")),
        ("auto", "", {"a": BRIEF}, PromptFormat("chat", "")),
        ("auto", None, {"a": ALPACA}, ALPACA),
        ("chat", None, {"a": BRIEF}, BRIEF),
        ("chat", "Be kind.", {"a": BRIEF}, PromptFormat("chat", "Be kind.")),
        ("chat", None, {"a": ALPACA}, PLAIN),
        ("chat", "Be kind.", {}, PromptFormat("chat", "Be kind.")),
        ("alpaca", None, {"a": BRIEF}, ALPACA),
        ("none", None, {"a": BRIEF}, PromptFormat("none")),
        ("alpaca", None, {"a": None}, ALPACA),
        ("auto", None, {"a": BRIEF, "b": None, "c": BRIEF}, BRIEF),
        ("chat", None, {"a": BRIEF, "b": None, "c": ALPACA}, BRIEF),
        ("chat", None, {"a": BRIEF, "b": PLAIN}, PLAIN),
        ("alpaca", None, {"a": PromptFormat("alpaca", "Be brief.")}, ALPACA),
    ],
)
def test_the_user_decides_and_then_what_is_recorded(template, system, recorded, expected):
    files = {name: File(found) for name, found in recorded.items()}
    assert PromptFormat.resolve(template, system, files) == expected


def test_a_record_that_cannot_be_read_is_refused_only_where_it_is_needed():
    odd = {"a": OddFile()}
    for template, system in (("none", None), ("alpaca", None), ("chat", "Be kind."), ("chat", "")):
        assert PromptFormat.resolve(template, system, odd) == PromptFormat(template, system)
    for template, system in (("auto", None), ("auto", "Be kind."), ("chat", None)):
        with pytest.raises(InputError, match="template is 3"):
            PromptFormat.resolve(template, system, odd)


@pytest.mark.parametrize(
    ("template", "system", "recorded", "sentence"),
    [
        ("auto", None, {"a": None, "b": None}, "a does not record how its training data made prompts; name it: "),
        (
            "auto", None, {"a": BRIEF, "b": ALPACA},
            "a was trained with the prompts of 'chat' with the system prompt 'Be brief.' and b with those of 'alpaca'",
        ),
        ("auto", "Be kind.", {}, "--system is of the template chat, and the prompts' is none"),
        ("auto", "Be kind.", {"a": ALPACA}, "--system is of the template chat, and the prompts' is alpaca"),
        ("alpaca", "Be kind.", {"a": BRIEF}, "--system is of the template chat, and the prompts' is alpaca"),
    ],
)  # fmt: skip
def test_formats_are_not_guessed(template, system, recorded, sentence):
    with pytest.raises(InputError) as caught:
        PromptFormat.resolve(template, system, {name: File(found) for name, found in recorded.items()})
    assert str(caught.value).startswith(sentence)


def test_options_have_the_names_of_the_command():
    with pytest.raises(InputError, match=r"config\.evaluation\.template=alpaca \(as the paper's were\), chat or none$"):
        PromptFormat.resolve("auto", None, {"a": File(None)}, option="--config.evaluation.")


def test_an_adapter_with_an_odd_record_is_evaluated_with_a_named_template(tiny_model: Path, tmp_path: Path):
    base, path = load_base(tiny_model), tmp_path / "odd.safetensors"
    save_adapter(init_adapter("aligner", base.config, start_layer=0), path, base)
    file = read_adapter_file(path)
    path.write_bytes(adapter_bytes(file._replace(metadata={**file.metadata, "prompt_format": '{"template": 3}'})))
    mesh = mesh_of(MeshConfig(), jax.devices()[:1])
    subject = load_subject(BaseConfig(path=str(tiny_model)), str(path), mesh=mesh, rules=RULES, batch_size=2)
    assert subject.prompt_format_of("alpaca", None) == ALPACA
    with pytest.raises(InputError, match=r"odd\.safetensors: its metadata field 'prompt_format': template is 3"):
        subject.prompt_format_of("auto", None)


# Runs a command with each list of arguments, and prints the first prompt it makes, or its refusal, as JSON. Each
# command has its own process, since their flags have the same names.
PROGRAM = """
import importlib, json, sys
from absl import flags
from aligner_jax.analysis import prompts
from aligner_jax.evals import responses
from aligner_jax.runtime import command

class Asked(Exception):
    pass

def ask(prompt):
    print(json.dumps(prompt))
    raise Asked

verb = importlib.import_module(f"aligner_jax.{sys.argv[1]}")
verb.sample = lambda base, adapter, prompts, **_: ask(prompts[0])
responses.encoded = lambda subject, text: ask(text)
render = prompts.render_example_prompt
prompts.render_example_prompt = lambda *arguments: ask(render(*arguments))
names = [flag.name for flag in flags.FLAGS.get_flags_for_module(verb)]
for arguments in json.loads(sys.argv[2]):
    sys.argv = [verb.__name__, *arguments]
    flags.FLAGS.unparse_flags()
    for name in names:
        flags.FLAGS[name].unparse()
    try:
        command.run(verb.main)
    except Asked:
        pass
    except SystemExit as ended:
        print(json.dumps(ended.code))
"""
QUESTION = "Why?"
CHAT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
BRIEF_CHAT, KIND_CHAT = (f"<|im_start|>system\nBe {word}.<|im_end|>\n{CHAT}" for word in ("brief", "kind"))
ALPACA_PROMPT = render_prompt(QUESTION, None, "alpaca")  # pyright: ignore[reportArgumentType]
REFUSED = "is of the template chat, and the prompts' is alpaca"
CASES = [
    ("chat", {}, BRIEF_CHAT),
    ("chat", {"template": "chat"}, BRIEF_CHAT),
    ("chat", {"template": "alpaca"}, ALPACA_PROMPT),
    ("chat", {"system": "Be kind."}, KIND_CHAT),
    ("chat", {"template": "chat", "system": "Be kind."}, KIND_CHAT),
    ("chat", {"template": "alpaca", "system": "Be kind."}, REFUSED),
    ("alpaca", {}, ALPACA_PROMPT),
    ("alpaca", {"template": "chat"}, CHAT),
    ("alpaca", {"template": "chat", "system": "Be kind."}, KIND_CHAT),
    ("alpaca", {"system": "Be kind."}, REFUSED),
    ("nothing", {}, "does not record how its training data made prompts"),
    ("nothing", {"template": "alpaca"}, ALPACA_PROMPT),
    ("nothing", {"template": "chat"}, CHAT),
]
"""Settings in the adapter's file, options, and the prompt or a part of the refusal."""


@pytest.mark.parametrize("verb", ["generate", "evaluate", "analyze"])
def test_every_command_makes_the_same_prompt_of_the_same_options(verb: str, tiny_model: Path, tmp_path: Path):
    base = load_base(tiny_model)
    adapter = init_adapter("aligner", base.config, start_layer=0)
    recorded = {"chat": {"template": "chat", "system": "Be brief."}, "alpaca": {"template": "alpaca", "system": None}}
    for name in ("chat", "alpaca", "nothing"):
        save_adapter(adapter, tmp_path / f"{name}.safetensors", base, prompt_format=recorded.get(name))
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"prompt": f"{QUESTION}{' ' * i}", "completion": "So."} for i in range(4)]))
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(): return ConfigDict({{'base': {{'path': {str(tiny_model)!r}, 'dtype': 'float32'}}, "
        f"'evaluation': {{'name': 'answers', 'path': {str(data)!r}, 'template': 'auto', 'system': None}}}})\n"
    )
    always, prefix = {
        "generate": ([f"--base={tiny_model}", "--dtype=float32", f"--prompt={QUESTION}"], "--"),
        "evaluate": ([f"--config={config}", f"--out={tmp_path / 'out'}"], "--config.evaluation."),
        "analyze": ([f"--base={tiny_model}", f"--data={data}", f"--out={tmp_path / 'out'}"], "--"),
    }[verb]
    asked = [
        [
            *always,
            f"--adapter={tmp_path / name}.safetensors",
            *(f"{prefix}{key}={value}" for key, value in given.items()),
        ]
        for name, given, _ in CASES
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, verb, json.dumps(asked)], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]
    assert len(found) == len(CASES), done.stderr
    for (name, given, expected), prompt in zip(CASES, found, strict=True):
        if prompt.startswith("error: "):
            assert expected in prompt, (name, given)
        else:
            assert prompt == expected, (name, given)
