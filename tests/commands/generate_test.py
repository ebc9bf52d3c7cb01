"""The command's flags: the format of prompts, and settings that must be given."""

import json
import os
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
generate.sample = lambda base, adapter, prompts, **_: print(json.dumps(prompts)) or prompts
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
    ]
    asked = [[f"--base={tiny_model}", "--dtype=float32", "--prompt=Why?", *call] for call in calls]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(asked)], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", '"'))]
    chat = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    unknown = f"error: {adapters['foreign']} does not record how its training data made prompts; name it: --template="
    assert found[:3] == [["Why?"], [chat.format("Be brief.")], [chat.format("Be kind.")]], done.stderr
    assert found[3].startswith(unknown)
    assert found[4] == ["Why?"]
    assert found[5][0].endswith("### Instruction:\nWhy?\n\n### Response:")
    assert found[6] == "error: --system is of the template chat, and the prompts' is none"
    assert found[7] == "error: --system is of the template chat, and the prompts' is alpaca"
