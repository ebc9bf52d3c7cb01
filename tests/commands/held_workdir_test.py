"""A run writes only while it holds the lock of its workdir."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCHED = """
import fcntl, io, json, os, sys
from pathlib import Path
from rich.console import Console
from aligner_jax.runtime.config import parse_config
from aligner_jax.train import train

workdir, written, free = os.environ["WORKDIR"], [], []

def is_held():
    try:
        handle = os.open(workdir, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)

def watch(event, arguments):
    writes = event in ("os.rename", "os.mkdir", "os.remove") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    )
    path = str(arguments[0]) if writes else ""
    if event == "os.rename":
        path = str(arguments[1])
    # The folder itself is made to be held.
    if path.startswith(workdir + "/"):
        written.append(path)
        if not is_held():
            free.append(path)

sys.addaudithook(watch)
train(parse_config(json.loads(os.environ["SETTINGS"])), Path(workdir), Console(file=io.StringIO()))
print(json.dumps([written, free]))
"""


@pytest.fixture
def pairs_run(tiny_run: dict) -> dict:
    """A config, as nested dicts, of a run on preferences with held-out pairs."""
    rows = [{"prompt": f"Name {i}.", "chosen": f"It is {i}.", "rejected": f"No {i}."} for i in range(12)]
    Path(tiny_run["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    tiny_run["data"] |= {"format": "fields", "fields": fields, "heldout_rows": 4}
    return {**tiny_run, "objective": {"name": "dpo"}}


def test_all_that_a_run_writes_it_writes_while_it_holds_its_workdir(pairs_run: dict, tmp_path: Path):
    """The reference's tables, which take longest, are written before the first step."""
    workdir = tmp_path / "run"
    told = {"WORKDIR": str(workdir), "SETTINGS": json.dumps(pairs_run)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **told}
    ended = subprocess.run([sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written, free = json.loads(ended.stdout.splitlines()[-1])
    assert free == []
    for name in ("reference_train.npz", "config.json", "metrics.jsonl", "report.json", "adapter.safetensors"):
        assert any(name in path for path in written), name
    assert any("checkpoints" in path for path in written)
