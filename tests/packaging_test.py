"""The installed package: its dependencies, its data, its own folders."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata, resources

import places
import pytest

import aligner_jax as aj

REPO = places.ROOT
PACKAGE = REPO / "aligner_jax"
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


_NAMED = r"^[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?"


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _ranges(requirements: list[str]) -> dict[str, str]:
    """Returns version range and marker by normalised name, without extras and spaces and with one kind of quotes."""
    lines = [re.split(r"\s+#|^#", line)[0].strip() for line in requirements]
    return {_name(line): re.sub(rf"{_NAMED}|\s", "", line).replace('"', "'") for line in lines if line}


FILES = ("requirements.txt", "scripts/lib/study_requirements.txt")
REQUIRED = _ranges([line for file in FILES for line in (REPO / file).read_text(encoding="utf-8").splitlines()])
DEPENDENCIES = _ranges(PROJECT["project"]["dependencies"])
OPTIONAL = PROJECT["project"]["optional-dependencies"]
EXTRAS = _ranges([line for lines in OPTIONAL.values() for line in lines])


def test_dependencies_are_in_requirements_with_the_same_ranges():
    assert {name: REQUIRED.get(name) for name in DEPENDENCIES} == DEPENDENCIES


def test_extras_are_in_requirements_with_the_same_ranges():
    """The plugins of GPUs excepted, which `jax[cuda12]` and `jax[cuda13]` bring."""
    assert {name: REQUIRED.get(name) for name in EXTRAS} == EXTRAS


def test_the_quickstart_installs_the_dependencies_and_no_more():
    lines = (REPO / "scripts/lib/core_requirements.txt").read_text(encoding="utf-8").splitlines()
    assert _ranges(lines) == DEPENDENCIES


def test_requirements_has_nothing_that_neither_the_package_nor_an_extra_names():
    assert set(REQUIRED) == {*DEPENDENCIES, *EXTRAS}


def test_the_version_is_that_of_the_package():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "aligner_jax.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", aj.__version__)


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_every_config_goes_into_the_source_distribution():
    assert "recursive-include configs *.py" in (REPO / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert [path for path in places.CONFIGS.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")] == []


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_the_extras_of_gpus_are_those_of_jax(extra: str):
    assert OPTIONAL[extra] == [f"jax[{extra}]{DEPENDENCIES['jax']}"]
    assert extra in metadata.metadata("jax").get_all("Provides-Extra", [])


def test_every_range_has_two_ends():
    for name, ends in (DEPENDENCIES | REQUIRED).items():
        assert ">=" in ends, name
        assert re.search("<[^=]", ends), f"{name}{ends} lets in releases that nobody has tried"


def _imports(tree: ast.AST, *, lazily: bool = False) -> Iterator[tuple[str, bool]]:
    """Returns top-level names of imported packages, and True for imports inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], lazily) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0], lazily
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports(node, lazily=lazily or inside)


OF_EXTRAS = {"serving": "serve"}
"""Folders that only commands with an extra import, inside a function."""


OF_THE_CALLER = {"IPython"}
"""Packages that are imported only in a process that has imported them already, such as a notebook's."""


def test_every_import_is_a_dependency_and_an_extra_is_only_imported_where_it_is_used():
    distributions = metadata.packages_distributions()
    ours = {"aligner_jax", *sys.stdlib_module_names, *OF_THE_CALLER}
    undeclared = set()
    for path in PACKAGE.rglob("*.py"):
        for module, lazily in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            extra = OF_EXTRAS.get(path.relative_to(PACKAGE).parts[0])
            of_folder = _ranges(OPTIONAL[extra]) if extra else {}
            allowed = {*DEPENDENCIES, *of_folder, *(EXTRAS if lazily else ())}
            names = {_name(name) for name in distributions.get(module, [module])}
            if module not in ours and not names & allowed:
                undeclared.add(f"{path.relative_to(REPO)} imports {module}")
    assert not undeclared


@pytest.mark.parametrize("folder", OF_EXTRAS)
def test_a_folder_of_an_extra_is_only_imported_where_it_is_used(folder: str):
    name = f"aligner_jax.{folder}"
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == folder:
            continue
        for node in ast.iter_child_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert name not in ast.unparse(node), path


def test_the_quickstart_data_are_found_as_resources():
    folder = resources.files("aligner_jax.data.quickstart")
    assert {"train.jsonl", "heldout.jsonl"} <= {file.name for file in folder.iterdir()}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder.relative_to(REPO)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_data_file_goes_into_the_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    forgotten = []
    for path in PACKAGE.rglob("*"):
        if path.is_dir() or path.suffix in (".py", ".pyc", ".md"):
            continue
        package = ".".join(path.parent.relative_to(REPO).parts)
        if not any(fnmatch(path.name, pattern) for pattern in patterns.get(package, [])):
            forgotten.append(str(path.relative_to(REPO)))
    assert forgotten == []


def test_the_license_is_the_one_that_is_declared():
    text = (REPO / PROJECT["project"]["license-files"][0]).read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
