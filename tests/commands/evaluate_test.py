"""The command's flags: adapter, config and folder."""

import json
import subprocess
import sys
from pathlib import Path

import places

REPO = places.ROOT
# Prints the evaluation that the command requests. It has its own process, since flags belong to a process.
CODE = """
import importlib, json, sys
evaluate = importlib.import_module("aligner_jax.evaluate")
from aligner_jax.runtime import command
evaluate.evaluate = lambda config, adapter, folder, console: print(
    json.dumps([config.evaluation.name, config.limit, adapter, str(folder)])
)
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["evaluate", *arguments]
    evaluate.flags.FLAGS.unparse_flags()
    for name in ("adapter", "out"):
        evaluate.flags.FLAGS[name].unparse()
    try:
        command.run(evaluate.main)
    except SystemExit as ended:
        print(json.dumps(ended.code))
"""


def test_the_folder_is_named_by_config_and_adapter_or_given(tmp_path: Path):
    config = f"--config={REPO / 'configs/eval/vicuna.py'}"
    adapter = "--adapter=runs/alpaca/adapter.safetensors"
    calls = [
        [config],
        [config, adapter, "--config.limit=3"],
        [config, adapter, "--out=there"],
        [adapter],
        [f"--config={REPO / 'configs/quickstart.py'}", adapter],
    ]
    command, environment = [sys.executable, "-c", CODE, json.dumps(calls)], {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["vicuna", None, None, "runs/eval/vicuna/base"],
        0,
        ["vicuna", 3, "runs/alpaca/adapter.safetensors", "runs/eval/vicuna/alpaca"],
        0,
        ["vicuna", None, "runs/alpaca/adapter.safetensors", "there"],
        0,
        "error: no config file was given: add --config=FILE, for example --config=configs/quickstart.py",
        "error: the config is one of training: give the config of an evaluation, such as configs/eval/quick.py, and "
        "what was trained as the adapter",
    ], done.stderr
    assert not any(tmp_path.iterdir())
