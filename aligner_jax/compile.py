"""Plan a training run for TPUs that need not be here: compiles its step with the real TPU compiler.

python -m aligner_jax.compile --config=configs/llama7b_alpaca.py [--topology=v5e:2x4[,v6e:2x4]] [--devices=1] \
    [--search] [--json] [--config.data.batch_size=8]

Prints what the step needs of each device: memory, collectives, FLOPs, traffic, and the time that these bound. The
topology is the config's own where none is given. Takes half a minute a plan; --search makes several.
"""

import json
from collections.abc import Iterator

from absl import flags
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.planning import table
from aligner_jax.planning.plan import Plan, make_plan, refitted
from aligner_jax.planning.search import search
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import command
from aligner_jax.runtime.config import TrainConfig, parse_config
from aligner_jax.runtime.sharding import mesh_of
from aligner_jax.tasks.program import row_multiple
from aligner_jax.weights.base import base_config

CONFIG = command.config_flag()
TOPOLOGY = flags.DEFINE_list("topology", None, "TPU topologies, such as v5e:2x4; default config.mesh.topology.")
DEVICES = flags.DEFINE_integer("devices", None, "Plan for so many of the topology's devices.", lower_bound=1)
SEARCH = flags.DEFINE_boolean("search", False, "Find the largest batch that fits, for each way of rematerialization.")
JSON = flags.DEFINE_boolean("json", False, "Print one JSON object a plan and line.")


def main() -> None:
    config = parse_config(CONFIG.value)
    model = planned_model(config)
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    plans = []
    for plan in make_plans(config, model, TOPOLOGY.value, DEVICES.value, SEARCH.value):
        if JSON.value:
            print(json.dumps(table.as_json(plan)), flush=True)
        plans.append(plan)
    if not JSON.value:
        for first in range(0, len(plans), 3):
            console.print(table.table(plans[first : first + 3]))
        for text in filter(None, map(table.advice, plans)):
            console.out(text)


def planned_model(config: TrainConfig) -> LlamaConfig:
    """The architecture: that of the base at the config's path, or, where there is none, the one it names.

    Raises:
      InputError: there is neither.
    """
    if config.base.model is not None:
        return llama_config(config.base.model)
    try:
        return base_config(config.base.path)
    except InputError as error:
        raise InputError(
            f"{error}; to plan without weights, name the architecture: --config.base.model=llama2_7b"
        ) from error


def make_plans(
    config: TrainConfig, model: LlamaConfig, topologies: list[str] | None, count: int | None, searching: bool
) -> Iterator[Plan]:
    """The plans of all topologies, one after the other.

    Raises:
      InputError: no topology is named, or see `make_plan`.
    """
    names = topologies or ([config.mesh.topology] if config.mesh.topology else [])
    if not names:
        raise InputError("no topology is named: add --topology=v5e:2x4 or set config.mesh.topology")
    count = config.mesh.devices if count is None and not topologies else count
    for name in names:
        devices = topology_devices(name, count)

        def plan(config: TrainConfig, name: str = name, devices: list = devices) -> Plan:
            return make_plan(config, model, name, devices)

        if searching:
            mesh = mesh_of(refitted(config.mesh, len(devices)), devices)
            yield from search(config, row_multiple(config, mesh), plan)
        else:
            yield plan(config)


if __name__ == "__main__":
    command.run(main)
