"""Two processes with different memory choose the same recomputation, which fits both."""

import json
import os
import socket
import subprocess
import sys

import places

# Each process alone would take "none", but what process 0 needs is more than process 1 has.
SCRIPT = """
import json
from aligner_jax.runtime import distributed
distributed.initialize()
import jax
from rich.console import Console
from aligner_jax.model.config import llama_config
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import chosen_remat, program, step_memory
from aligner_jax.tasks.first_adapter import first_adapter_shapes

process = jax.process_index()
peaks = iter([(65, 50)[process], 40])
step_memory.limit_bytes = lambda size: (100, 60)[process] << 20
step_memory._peak_bytes = lambda compiled: next(peaks) << 20
config = parse_config({
    "base": {"path": "", "model": "stories_260k", "dtype": "float32"}, "steps": 1, "remat": "auto",
    "data": {"path": "", "batch_size": 2, "sequence_length": 32},
})
model = llama_config("stories_260k")
adapter, mesh = first_adapter_shapes(config, model), sharding.mesh_of(config.mesh)
made = program.make_program(config, model, adapter, mesh)
checks = []
with sharding.use(mesh):
    _, record = chosen_remat.with_least_remat(
        config, model, adapter, made, None, recorded={}, check=lambda: checks.append(1), console=Console(quiet=True)
    )
print(json.dumps([record["name"], len(checks), len(list(peaks))]))
"""


def test_two_processes_choose_what_fits_both():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": places.PYTHONPATH,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**environment, "JAX_PROCESS_ID": f"{process}"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert json.loads(output.splitlines()[-1]) == ["dots", 2, 0]
