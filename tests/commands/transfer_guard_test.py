"""Between the first step and the last no array moves to a device implicitly.

JAX's CPU backend does not guard copies from a device, which are none there; `program_test` looks for those of lowering.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest
from places import ROOT
from tiny_runs import on_pairs, pair_rows, write_rows
from whole_runs import run

from aligner_jax.tasks import loop

RUN = """
import json, sys
from pathlib import Path
from rich.console import Console
from aligner_jax.runtime.config import parse_config
from aligner_jax.train import train
for i, config in enumerate(json.loads(sys.argv[1])):
    train(parse_config(config), Path(sys.argv[2]) / str(i), Console(quiet=True))
print("done")
"""


def all_objectives(settings: dict, folder: Path) -> list[dict]:
    settings["data"]["heldout_rows"] = 2
    settings |= {"steps": 4, "eval_every": 2, "checkpoint": {"every": 2}, "report": {"samples": 0}}
    pairs = write_rows(folder / "pairs.jsonl", pair_rows(14))
    return [
        settings,
        {**settings, "sweep": {"lr": [0.01, 0.02]}, "optim": {"schedule": "cosine", "warmup_steps": 2}},
        {**settings, "optim": {"accumulate": 2, "state_dtype": "bfloat16", "clip": 1.0}, "adapter": {"method": "lora"}},
        on_pairs(settings, pairs),
        on_pairs(settings, pairs, name="ipo", cache_reference=False),
    ]


@pytest.mark.parametrize("number", range(5))
def test_runs_of_all_objectives_pass(tiny_run: dict, tmp_path: Path, number: int):
    run(all_objectives(tiny_run, tmp_path)[number], tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3, 4}


def test_runs_on_a_mesh_pass(tiny_run: dict, tmp_path: Path):
    configs = [{**each, "mesh": {"data": 2, "fsdp": 1}} for each in all_objectives(tiny_run, tmp_path)]
    for each in configs:
        each["data"] = {**each["data"], "batch_size": 4}
    command = [sys.executable, "-c", RUN, json.dumps(configs), str(tmp_path / "runs")]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = many_devices.run(command, 2, PYTHONPATH=paths)
    assert done.stdout == "done\n", done.stderr


def leave_on_the_host(batch, program):
    return batch


def add_on_the_host(batch, program):
    batch = jax.device_put(batch)
    return dataclasses.replace(batch, tokens_bt=jnp.asarray(np.asarray(batch.tokens_bt)))


@pytest.mark.parametrize("sneaks", [leave_on_the_host, add_on_the_host])
def test_an_implicit_transfer_ends_the_run(tiny_run: dict, tmp_path: Path, monkeypatch, sneaks):
    monkeypatch.setattr(loop, "_on_devices", sneaks)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"Disallowed host-to-device transfer"):
        run(tiny_run, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
