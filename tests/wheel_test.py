"""The wheel, built and installed outside the repository: commands, configs by name, and the first notebook."""

import ast
import json
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import nbclient
import nbformat
import places
import pytest
from notebook_kernels import set_kernel_variables

from scripts.lib.tiny_llama import write_tiny_llama

REPO = places.ROOT
SOURCES = ("aligner_jax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
NOTEBOOK = REPO / "notebooks" / "quickstart.ipynb"
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
SMALL = {
    "num_tokens": 2, "learning_rate": 2e-2, "steps": 3, "batch_size": 2, "sequence_length": 160, "num_answers": 1,
    "max_new_tokens": 4,
}  # fmt: skip
"""Parameters of the notebook; it may have others, which stay."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from a copy of the repository."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, copy / name)
    done = subprocess.run([sys.executable, "-c", BUILD, out], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the packages of the tests, but without the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    offline = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    of_tests = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "packages_of_the_tests.pth").write_text("\n".join(of_tests))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the repository, with a model, and variables that name nothing of the repository."""
    set_kernel_variables(monkeypatch, tmp_path, None)
    write_tiny_llama(tmp_path / "tiny")
    return tmp_path


def test_wheel_and_source_have_every_config_and_data_file(built: Path):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    configs = {path.relative_to(REPO).as_posix() for path in places.CONFIGS.rglob("*.py")}
    assert {f"aligner_jax/{name}" for name in configs} <= in_wheel
    assert {*configs, "setup.py"} <= in_source
    data = {path.relative_to(REPO).as_posix() for path in (REPO / "aligner_jax").rglob("*")
            if path.suffix in (".py", ".jsonl", ".yaml", ".typed")}  # fmt: skip
    assert data <= in_wheel
    assert data <= in_source
    assert {name.partition("/")[0] for name in in_wheel} == {
        "aligner_jax",
        f"{wheel.name.rpartition('-py3')[0]}.dist-info",
    }


def test_the_console_script_lists_the_commands(installed: Path, elsewhere: Path):
    done = subprocess.run([installed / "bin" / "aligner-jax", "--help"], cwd=elsewhere, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  aligner-jax COMMAND --help\n" in done.stdout
    assert "\n  train      Trains an adapter over a frozen base.\n" in done.stdout


def test_a_run_is_trained_by_the_name_of_its_config(installed: Path, elsewhere: Path):
    """The config and its data are those of the wheel."""
    model = ["--config.base.path=tiny", "--config.base.model=None", "--config.adapter.start_layer=1"]
    short = [
        "--config.steps=2",
        "--config.report.form=None",
        "--config.report.samples=0",
        "--config.report.max_new_tokens=1",
    ]
    command = [installed / "bin" / "aligner-jax", "train", "--config=quickstart", *model, *short]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data: aligner_jax/data/quickstart/train.jsonl" in done.stdout
    assert (elsewhere / "runs" / "quickstart" / "adapter.safetensors").is_file()


def test_the_first_notebook_runs(installed: Path, elsewhere: Path):
    kernel = elsewhere / "jupyter_data_dir" / "kernels" / "wheel"
    kernel.mkdir(parents=True)
    argv = [str(installed / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "wheel", "language": "python"}))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "install" in tags:
            cell.source = ""
        if "parameters" in tags:
            cell.source = _small(cell.source, elsewhere / "tiny")
    notebook.cells.append(nbformat.v4.new_code_cell("import aligner_jax; print(aligner_jax.__file__)"))
    folder = elsewhere / "work"
    folder.mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="wheel", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert Path(outputs[-1].text.strip()).is_relative_to(installed)


def _small(parameters: str, base: Path) -> str:
    """Returns the cell with other values for the parameters that are of size."""
    names = {
        target.id
        for node in ast.parse(parameters).body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    small = {**SMALL, "base_path": str(base)}
    assert "base_path" in names
    return "\n".join([parameters, *(f"{name} = {small[name]!r}" for name in sorted(names & small.keys()))])
