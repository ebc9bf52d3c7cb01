"""Public functions keep their names, whatever modules of the same names are imported before or after."""

import json
import os
import subprocess
import sys

import places

import aligner_jax as aj

# Every order has a process of its own, forked after the libraries are loaded, which takes most of an import's time.
ORDERS = r"""
import importlib, inspect, json, os, sys, types, warnings
from absl import flags
warnings.simplefilter("ignore")
for name in ("aligner_jax", "aligner_jax.train", "aligner_jax.evaluate", "aligner_jax.export"):
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "aligner_jax"]:
    del sys.modules[name]
for name in list(flags.FLAGS):
    if flags.FLAGS.find_module_defining_flag(name).startswith("aligner_jax"):
        delattr(flags.FLAGS, name)
before = set(flags.FLAGS)
for order in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        try:
            for line in order:
                exec(line)
            import aligner_jax as aj
            for name in ("train", "evaluate", "export", "combine"):
                assert inspect.isfunction(getattr(aj, name)), name
                assert not isinstance(getattr(aj, name), types.ModuleType)
            assert aj.train.__module__ == "aligner_jax.api.training"
            if not any("aligner_jax." in line for line in order):
                assert set(flags.FLAGS) == before, set(flags.FLAGS) - before
                assert "aligner_jax.train" not in sys.modules
            print(json.dumps("fine"), flush=True)
        except BaseException as error:
            print(json.dumps(f"{order}: {error!r}"), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
OF_FUNCTION = "assert list(inspect.signature(train).parameters)[:2] == ['config', 'workdir']"


def test_functions_keep_their_names_in_every_order_of_imports():
    orders = [
        ["import aligner_jax"],
        ["import aligner_jax", "import aligner_jax.train, aligner_jax.evaluate, aligner_jax.export"],
        ["import aligner_jax.export, aligner_jax.train", "import aligner_jax.evaluate"],
        ["from aligner_jax.train import train", OF_FUNCTION],
        ["from aligner_jax import train", OF_FUNCTION, "import aligner_jax.train"],
        ["from aligner_jax.train import main as train", "from aligner_jax import train", OF_FUNCTION],
        ["importlib.import_module('aligner_jax.evaluate').main", "from aligner_jax import evaluate"],
        ["import aligner_jax", "importlib.reload(aligner_jax)", "import aligner_jax.train"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", ORDERS, json.dumps(orders)],
        env={**os.environ, "PYTHONPATH": str(places.ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == ["fine"] * len(orders), done.stderr


def test_users_may_replace_a_function(monkeypatch):
    stand_in = lambda: 1  # noqa: E731
    monkeypatch.setattr(aj, "train", stand_in)
    assert aj.train is stand_in
