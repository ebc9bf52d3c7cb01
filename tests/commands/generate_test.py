"""The command's flags: the format of prompts, and settings that must be given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import places
import pytest

from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.weights.base import load_base

REPO = places.ROOT
# Prints the model's inputs. It has its own process, since flags belong to a process.
CODE = """
import json, sys
from aligner_jax import generate
from aligner_jax.runtime import command
answers = json.loads(sys.argv[2])
generate.sample = lambda base, adapter, prompts, **_: print(json.dumps(prompts)) or answers or prompts
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["generate", *arguments]
    generate.flags.FLAGS.unparse_flags()
    for name in ("adapter", "template", "system", "prompt"):
        generate.flags.FLAGS[name].unparse()
    try:
        command.run(generate.main)
    except SystemExit as ended:
        print(json.dumps(ended.code))
"""


@pytest.fixture
def adapters(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """An adapter that this project trained, and one without recorded settings."""
    base = load_base(tiny_model)
    adapter = init_adapter("aligner", base.config, start_layer=0)
    adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": jnp.ones((4, 4))})
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("ours", "foreign")}
    save_adapter(adapter, paths["ours"], base=base, prompt_format={"template": "chat", "system": "Be brief."})
    save_adapter(adapter, paths["foreign"])
    return paths


@pytest.fixture
def without_template(tiny_model: Path, tmp_path: Path) -> Path:
    """A base whose files have no chat template."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def outcome(calls: list[list[str]], folder: Path, answers: list[str] | None = None) -> tuple[list, list[str]]:
    """Returns the prompts or errors of all calls, and the lines on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(calls), json.dumps(answers)], cwd=folder, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", '"'))]
    return found, done.stderr.splitlines()


def test_prompts_are_as_in_training_or_as_is_said(tiny_model: Path, adapters: dict[str, Path], tmp_path: Path):
    ours, foreign = (f"--adapter={adapters[name]}" for name in ("ours", "foreign"))
    calls = [
        [],
        [ours],
        [ours, "--system=Be kind."],
        [foreign],
        [foreign, "--template=none"],
        [foreign, "--template=alpaca"],
        ["--system=Be kind."],
        [foreign, "--template=alpaca", "--system=Be kind."],
        # Before the base is loaded.
        [foreign, "--template=alpaca", "--system=Be kind.", "--base=nowhere"],
    ]
    asked = [[f"--base={tiny_model}", "--dtype=float32", "--prompt=Why?", *call] for call in calls]
    found, said = outcome(asked, tmp_path)
    chat = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    unknown = f"error: {adapters['foreign']} does not record how its training data made prompts; name it: --template="
    assert found[:3] == [[chat.partition("<|im_end|>\n")[2]], [chat.format("Be brief.")], [chat.format("Be kind.")]], (
        said
    )
    assert found[3].startswith(unknown)
    assert found[4] == ["Why?"]
    assert found[5][0].endswith("### Instruction:\nWhy?\n\n### Response:")
    assert found[6] == [chat.format("Be kind.")]
    assert found[7] == found[8] == "error: --system is of the template chat, and the prompts' is alpaca"
    assert said == [
        "template: chat (the base's own)",
        *["template: chat (as the adapter was trained)"] * 2,
        "template: none (as --template says)",
        "template: alpaca (as --template says)",
        "template: chat (the base's own)",
    ]


def test_a_base_without_chat_template_continues_the_text_and_says_so(without_template: Path, tmp_path: Path):
    ask = [f"--base={without_template}", "--dtype=float32", "--prompt=Why?"]
    found, said = outcome([ask, [*ask, "--system=Be kind."]], tmp_path)
    assert found == [["Why?"], "error: --system is of the template chat, and the prompts' is none"]
    assert said == ["template: none (the base has no chat template, so the text is continued as it is)"]


def test_an_empty_answer_is_explained(tiny_model: Path, tmp_path: Path):
    ask = [f"--base={tiny_model}", "--dtype=float32", "--prompt=Why?", "--prompt=How?"]
    _, said = outcome([ask, [*ask, "--template=none"]], tmp_path, ["", " \n"])
    why = "the answer to 'Why?' is empty: the model's first token ended it. The model may have learned other prompts"
    how = "the answer to 'How?' is empty: all its tokens are white space. The model may have learned other prompts"
    assert said[1:3] == [f"{each} than those of the template chat; try --template=none, or --temperature=0.7"
                         for each in (why, how)]  # fmt: skip
    assert said[4].endswith("of the template none; try --template=chat, or --temperature=0.7")
