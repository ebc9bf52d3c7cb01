"""One of the processes of a run on loopback, started by processes_test.py: a small loop of the parts that a run has.

python joined_process.py WORKDIR PORT NUMBER COUNT STEPS
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.data.pipeline import train_batches
from aligner_jax.runtime import command, sharding
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import StallConfig
from aligner_jax.runtime.global_batch import global_batch
from aligner_jax.runtime.preemption import StopRequests
from aligner_jax.runtime.watchdog import Watchdog

LENGTH, ROWS, EVERY = 16, 8, 4


def documents() -> list[dict]:
    tokens = [np.arange(i, i + 2 + i % 9, dtype=np.int32) + 1 for i in range(50)]
    return [{"tokens": each, "loss_mask": np.ones(len(each), bool)} for each in tokens]


@jax.jit
def step(state, batch):
    """Every row weighs as much as its place among all rows says, so that none may be lost, doubled or moved."""
    weights_b = jnp.arange(1, ROWS + 1, dtype=jnp.float32)
    change = jnp.sum(weights_b @ jnp.sin(batch["tokens_bt"].astype(jnp.float32)))
    return {"total": state["total"] * 0.9 + change, "step": state["step"] + 1}


def train(workdir: Path, count: int, steps: int) -> None:
    mesh = sharding.make_mesh(data=count, fsdp=1)
    state = jax.device_put({"total": jnp.float32(0), "step": jnp.int32(0)}, sharding.replicated(mesh))
    batches = train_batches(documents(), batch_size=ROWS, sequence_length=LENGTH, seed=0)
    with (
        Watchdog(StallConfig(seconds=4.0)) as watchdog,
        Checkpoints(workdir / "checkpoints") as checkpoints,
        StopRequests(steps) as requests,
    ):
        restored = checkpoints.restore(state)
        if restored is not None:
            _, state, position = restored
            batches.set_state(position)
        first = int(state["step"])
        print(f"from {first}", flush=True)
        for i in range(first + 1, steps + 1):
            watchdog.waiting_for(f"step {i}", compiles=i == first + 1)
            batch = global_batch(next(batches), sharding.batch_sharding(mesh))
            state = step(state, {"tokens_bt": batch["tokens_bt"]})
            print(f"{i} {float(state['total'])!r}", flush=True)
            time.sleep(0.05)
            ended = requests.stopped_at(i)
            if i % EVERY == 0 or i == steps or ended:
                checkpoints.save(i, state, batches.get_state())
            if ended:
                checkpoints.wait()
                raise ended


def main() -> None:
    port, number, count, steps = map(int, ARGUMENTS[1:])
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number, cluster_detection_method="deactivate")
    train(Path(ARGUMENTS[0]), count, steps)


if __name__ == "__main__":
    ARGUMENTS = sys.argv[1:]
    del sys.argv[1:]
    command.run(main)
