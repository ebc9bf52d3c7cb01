"""Plans a training run, an evaluation or a server with the real TPU compiler. No TPU is needed.

python -m aligner_jax.compile --config=configs/llama7b_alpaca.py [--topology=v5e:2x4[,v6e:2x4]] [--devices=1] \\
    [--search] [--json] [--config.data.batch_size=8]
python -m aligner_jax.compile --config=configs/eval/gsm8k.py --topology=v5e:2x4 [--tokens=1024] [--new_tokens=512] \\
    [--adapter=PATH]
python -m aligner_jax.compile --serve --config=configs/eval/gsm8k.py --topology=v5e:2x4 [--tokens=1024] \\
    [--new_tokens=512] [--adapter=PATH] [--prefix_tokens=16] [--rank=0]

Prints the cost of the step per device: memory, collectives, FLOPs, HBM traffic, and the time that these bound. For an
evaluation, prints the cost of the programs that score texts and that generate answers, with the named adapter or else
with an Aligner of one token. With --serve, prints how many requests of this length run at once, each with an adapter of
its own, and what a decode step moves; the config gives base and mesh. The topology defaults to the config's. A plan
takes half a minute, or seconds if the same program was compiled before; --search makes several plans, and remat "auto"
compiles up to six programs for one.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from absl import flags

from aligner_jax.decoding import server_options
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import parse_evaluate_config
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.planning import inference_table, serving_table, table
from aligner_jax.planning.inference_plan import EvaluationPlan, make_evaluation_plan, planned_base
from aligner_jax.planning.plan import Plan, make_plan, refitted
from aligner_jax.planning.search import search
from aligner_jax.planning.serving_plan import ServingPlan, make_serving_plans
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import command
from aligner_jax.runtime.config import BaseConfig, MeshConfig, TrainConfig, parse_config
from aligner_jax.runtime.output import wide_console
from aligner_jax.runtime.sharding import mesh_of
from aligner_jax.runtime.tables import Table
from aligner_jax.runtime.waiting import Waiting
from aligner_jax.tasks.first_adapter import method_choice
from aligner_jax.tasks.objectives import objective_choice
from aligner_jax.tasks.program import row_multiple
from aligner_jax.weights.base import base_config, unused_model

CONFIG = command.config_flag()
TOPOLOGY = flags.DEFINE_list("topology", None, "TPU topologies, such as v5e:2x4; default config.mesh.topology.")
DEVICES = flags.DEFINE_integer("devices", None, "Plan for so many of the topology's devices.", lower_bound=1)
SEARCH = flags.DEFINE_boolean("search", False, "Find the largest batch that fits, for each way of rematerialization.")
TOKENS = flags.DEFINE_integer("tokens", 1024, "Tokens of an evaluation's longest prompt or text.", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 512, "Tokens of an evaluation's answers at most.", lower_bound=1)
ADAPTER = flags.DEFINE_string("adapter", None, "An evaluation's adapter; without one, an Aligner of one token.")
SERVE = flags.DEFINE_boolean("serve", False, "Plan a server of many adapters with the config's base and mesh.")
PREFIX_TOKENS = flags.DEFINE_integer(
    "prefix_tokens", server_options.PREFIX_TOKENS, "Of a server: its --prefix_tokens.", lower_bound=0
)
RANK = flags.DEFINE_integer("rank", 0, "Of a server: its --rank.", lower_bound=0)
JSON = flags.DEFINE_boolean("json", False, "Print one JSON object a plan and line.")


def main() -> None:
    of_evaluation = "evaluation" in CONFIG.value
    _check_flags(of_evaluation)
    if SERVE.value:
        _show(_serving_plans(of_evaluation), serving_table.table, serving_table.advice)
    elif of_evaluation:
        _show(_evaluation_plans(), inference_table.table, inference_table.advice)
    else:
        _show(_training_plans(), table.table, table.advice)


def _show[P: (Plan, EvaluationPlan, ServingPlan)](
    made: Iterator[P], table_of: Callable[[Sequence[P]], Table], advice_on: Callable[[P], str | None]
) -> None:
    if JSON.value:
        for plan in made:
            print(json.dumps(dataclasses.asdict(plan)), flush=True)
        return
    plans: list[P] = []
    try:
        plans.extend(made)
    finally:
        # Also if a later plan cannot be made: each takes minutes.
        console = wide_console()
        if plans:
            console.print(table_of(plans))
        for text in filter(None, map(advice_on, plans)):
            console.out(text)


def _check_flags(of_evaluation: bool) -> None:
    """Refuses flags that only the other kind of plan takes."""
    if SERVE.value:
        if flags.FLAGS["search"].present:
            raise InputError("--search is of a training run, and --serve plans a server")
        return
    for name in ("prefix_tokens", "rank"):
        if flags.FLAGS[name].present:
            raise InputError(f"--{name} is of a server: add --serve")
    others = ("search",) if of_evaluation else ("tokens", "new_tokens", "adapter")
    for name in others:
        if flags.FLAGS[name].present:
            of = "a training run" if of_evaluation else "an evaluation"
            raise InputError(f"--{name} is of {of}, and the config is not")


def _training_plans() -> Iterator[Plan]:
    config = parse_config(CONFIG.load(method_choice(), objective_choice()))
    return make_plans(config, planned_model(config.base), TOPOLOGY.value, DEVICES.value, SEARCH.value)


def _evaluation_plans() -> Iterator[EvaluationPlan]:
    config = parse_evaluate_config(CONFIG.value)
    model = planned_model(planned_base(config))
    for name, devices, what in _planned_devices(config.mesh, TOPOLOGY.value, DEVICES.value):
        with Waiting(what):
            plan = make_evaluation_plan(
                config, model, name, devices, tokens=cast(int, TOKENS.value), new_tokens=cast(int, NEW_TOKENS.value),
                adapter_path=ADAPTER.value,
            )  # fmt: skip
        yield plan


def _serving_plans(of_evaluation: bool) -> Iterator[ServingPlan]:
    if of_evaluation:
        config = parse_evaluate_config(CONFIG.value)
        base = planned_base(config)
    else:
        config = parse_config(CONFIG.load(method_choice(), objective_choice()))
        base = config.base
    model = planned_model(base)
    for name, devices, what in _planned_devices(config.mesh, TOPOLOGY.value, DEVICES.value):
        with Waiting(what):
            # All are made while the line is drawn, so that no plan is printed into it.
            plans = list(make_serving_plans(
                base, config.mesh, model, name, devices, tokens=cast(int, TOKENS.value),
                new_tokens=cast(int, NEW_TOKENS.value), adapter_path=ADAPTER.value,
                prefix_tokens=cast(int, PREFIX_TOKENS.value), rank=cast(int, RANK.value),
            ))  # fmt: skip
        yield from plans


def planned_model(base: BaseConfig) -> LlamaConfig:
    """Returns the architecture of the base at the config's path, or the named one if nothing is there.

    Raises:
      InputError: the config gives neither, or the base cannot be read.
    """
    if base.model is not None:
        named = llama_config(base.model)
        if not base.path or not Path(base.path).expanduser().exists():
            return named
        found = base_config(base.path)
        if sentence := unused_model(base, found):
            print(f"base: {sentence}", file=sys.stderr)
        return found
    try:
        return base_config(base.path)
    except InputError as error:
        raise InputError(
            f"{error}; to plan without weights, name the architecture: --config.base.model=llama2_7b"
        ) from error


def make_plans(
    config: TrainConfig, model: LlamaConfig, topologies: list[str] | None, count: int | None, searching: bool
) -> Iterator[Plan]:
    """Yields the plans of all topologies, in order.

    Raises:
      InputError: no topology is named; for other causes see `make_plan`.
    """
    for name, devices, what in _planned_devices(config.mesh, topologies, count):

        def plan(config: TrainConfig, name: str = name, devices: list = devices, what: str = what) -> Plan:
            with Waiting(f"{what}, {config.data.batch_size:,} rows, remat {config.remat}"):
                return make_plan(config, model, name, devices)

        if searching:
            mesh = mesh_of(refitted(config.mesh, len(devices)), devices)
            yield from search(config, row_multiple(config, mesh), plan)
        else:
            yield plan(config)


def _planned_devices(
    config: MeshConfig, topologies: list[str] | None, count: int | None
) -> Iterator[tuple[str, list, str]]:
    """Yields the name of each topology, the devices to plan for, and words for the work."""
    names = topologies or ([config.topology] if config.topology else [])
    if not names:
        raise InputError("no topology is named: add --topology=v5e:2x4 or set config.mesh.topology")
    count = config.devices if count is None and not topologies else count
    for number, name in enumerate(names, 1):
        devices = topology_devices(name, count)
        of_several = f" ({number} of {len(names)} topologies)" if len(names) > 1 else ""
        yield name, devices, f"compiling for {name}, {len(devices)} device{'s' if len(devices) > 1 else ''}{of_several}"


if __name__ == "__main__":
    command.run(main)
