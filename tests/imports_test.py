"""Imports point down: studies, verbs → tasks → evals, objectives, decoding → peft, weights, data, runtime → model →
kernels, files."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import places
import pytest

PACKAGE = places.ROOT / "aligner_jax"

FILES_OF = {"errors", "files"}
MODEL, DATA = FILES_OF | {"model"}, FILES_OF | {"data"}
RUNTIME = MODEL | {"runtime", "usage"}
MIDDLE = MODEL | DATA | RUNTIME | {"weights", "peft"}
MAY_IMPORT = {
    "errors": set(),
    "files": FILES_OF,
    "model": MODEL,
    "data": DATA,
    "usage": FILES_OF | {"usage"},
    "runtime": RUNTIME,
    "weights": MODEL | DATA | RUNTIME | {"weights"},
    "peft": MIDDLE,
    "exports": MIDDLE | {"objectives", "decoding", "evals", "exports"},
    "objectives": MIDDLE | {"objectives"},
    "decoding": MIDDLE | {"decoding"},
    "serving": MIDDLE | {"decoding", "serving"},
    "evals": MIDDLE | {"objectives", "decoding", "evals"},
    "tasks": MIDDLE | {"objectives", "decoding", "evals", "tasks"},
    "planning": MIDDLE | {"objectives", "decoding", "evals", "tasks", "planning"},
    "analysis": MIDDLE | {"objectives", "decoding", "evals", "analysis"},
    "chatting": MIDDLE | {"decoding", "evals", "chatting"},
    "notebooks": RUNTIME | {"notebooks"},
    "api": MIDDLE | {"objectives", "decoding", "evals", "exports", "tasks", "api"},
    "studies": MIDDLE | {"objectives", "decoding", "evals", "tasks", "studies"},
}
"""Folders that each folder may import; all may import the file `errors`, and verbs may import every folder."""

NOWHERE = {"torch", "transformers", "peft", "trl"}
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
VERBS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "errors"))
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Returns dotted names of all imports of a file, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute, so that they can be read"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(file: pathlib.Path, source: str) -> list[str]:
    """Returns the imports that a file may not have, given its path in the package."""
    part = file.parts[0].removesuffix(".py")
    allowed = set(FOLDERS) | {"errors"} if part in VERBS else MAY_IMPORT[part]
    found = []
    for name in imported(source):
        library, _, rest = name.partition(".")
        if library in NOWHERE or (library == "aligner_jax" and rest.partition(".")[0] not in allowed):
            found.append(name)
        # Data is made of NumPy arrays: a JAX array would start the backend, and copy.
        if part == "data" and library == "jax":
            found.append(name)
    return found


def test_every_folder_has_its_place():
    assert set(FOLDERS) <= set(MAY_IMPORT)
    assert VERBS != []


@pytest.mark.parametrize("file", [f for f in FILES if f.parts[0] != "__init__.py"], ids=str)
def test_imports_point_down(file):
    assert offences(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/llama.py", "from aligner_jax.peft.adapter import Adapter"),
        ("model/llama.py", "def f():\n    import aligner_jax.peft"),
        ("data/pipeline.py", "import jax.numpy as jnp"),
        ("data/pipeline.py", "from jax import numpy"),
        ("runtime/optim.py", "from aligner_jax.data import pipeline"),
        ("weights/hf.py", "import transformers"),
        ("peft/lora.py", "from peft import LoraConfig"),
        ("errors.py", "from aligner_jax.model import llama"),
        ("train.py", "from aligner_jax.generate import main"),
        ("objectives/sft.py", "import torch.nn.functional as F"),
    ],
)
def test_an_import_that_points_up_is_seen(file, source):
    assert offences(pathlib.Path(file), source) != []


def test_nobody_imports_the_package_from_within():
    """`aligner_jax/__init__` imports everything, so importing it from inside is circular."""
    for file in FILES:
        assert "aligner_jax" not in imported((PACKAGE / file).read_text()), file


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Returns the modules that each module imports, by dotted names, inside functions and under TYPE_CHECKING too.

    `from package import name` imports the module `package.name` if there is one, and else the package.
    """
    graph = {}
    for module, source in sources.items():
        of_names = (name if name in sources else name.rpartition(".")[0] for name in imported(source))
        graph[module] = {name for name in of_names if name in sources} - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns a circle of modules that import each other, the first again as the last; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other():
    sources = {
        ".".join(("aligner_jax", *file.with_suffix("").parts)).removesuffix(".__init__"): (PACKAGE / file).read_text()
        for file in FILES
    }
    assert circle(import_graph(sources)) == []


@pytest.mark.parametrize(
    "back", ["import p.a", "from p import a", "from p.a import f", "def f():\n    from p import a", "import p.b, p.a"]
)
def test_a_circle_is_seen(back):
    sources = {"p": "", "p.a": "from p.b import g", "p.b": "from p import c", "p.c": back}
    assert set(circle(import_graph(sources))) == {"p.a", "p.b", "p.c"}
