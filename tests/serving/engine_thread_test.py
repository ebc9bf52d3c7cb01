"""The engine's thread: it has the mesh and rules that were in context when it was made."""

import threading
from types import SimpleNamespace
from typing import Any

import jax
from flax.linen import get_logical_axis_rules

from aligner_jax.runtime import sharding
from aligner_jax.serving.engine_thread import EngineThread


def test_the_thread_has_the_mesh_and_rules_of_its_maker():
    seen, has_run = [], threading.Event()

    def warm_up(*_: Any) -> None:
        seen.append((jax.sharding.get_mesh(), get_logical_axis_rules()))
        has_run.set()

    engine: Any = SimpleNamespace(options=SimpleNamespace(rows=1), warm_up=warm_up, is_idle=True)
    mesh, rules = sharding.make_mesh(devices=jax.devices()[:1]), (("batch", "data"),)
    with sharding.use(mesh, rules):
        thread = EngineThread(engine, 1)
    without = EngineThread(engine, 1)
    for each in (thread, without):
        has_run.clear()
        each.start()
        assert has_run.wait(20)
        each.stop()
    assert seen[0] == (mesh, rules)
    assert seen[1][0].empty
    assert not seen[1][1]
