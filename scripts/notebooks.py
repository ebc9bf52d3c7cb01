"""Executes notebooks on the real model, and saves them with their outputs.

    python -m scripts.notebooks NAME [NAME …] [--folder=DIR] [--set=PARAMETER=VALUE …]
    python -m scripts.notebooks --check

A notebook runs in DIR (default: a new temporary folder, with the clone's models/), without its cell "install": what it
imports is this clone. Saved are its cells as they were, what they printed, without paths of this machine, and pictures
of at most 900 pixels in width. With --set, for trying a notebook out, it is written to DIR instead. With --check
nothing runs: notebooks without outputs are named, and the status is 1.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("quickstart", "own_data", "two_stages", "look_inside", "many_adapters", "export", "pod")
"""Names of the notebooks, in their order."""
WIDTH = 900
_COLOURS = 256
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TIMES = re.compile(r"  [\d,.]+ tokens/s|  \d+:[\d:]+ left|(?<=: done) in \d+:[\d:]+")
_RICH = '<pre style="white-space:pre;overflow-x:auto;'
_BADGE = re.compile(r"\[!\[Open in Colab\].*\n\n?")


def read(name: str) -> NotebookNode:
    """Returns a notebook of `NAMES`."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    """Returns the only cell that has a tag."""
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def set_parameters(notebook: NotebookNode, values: dict[str, str]) -> None:
    """Sets parameters of a notebook, whose values are Python expressions.

    Raises:
      KeyError: the cell "parameters" has no such parameter.
    """
    cell = tagged(notebook, "parameters")
    for name, value in values.items():
        source, found = re.subn(rf"(?m)^{name} = .*$", lambda _, to=f"{name} = {value}": to, cell.source)
        if found != 1:
            raise KeyError(f"{name} is no parameter of the notebook")
        cell.source = source


def execute(notebook: NotebookNode, folder: Path, *, timeout: int = 3600) -> None:
    """Executes a notebook in a folder; its cell "install" does nothing."""
    install = tagged(notebook, "install")
    source, install.source = install.source, ""
    try:
        nbclient.NotebookClient(
            notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}, record_timing=False
        ).execute()
    finally:
        install.source = source


def tidy(notebook: NotebookNode, folder: Path) -> None:
    """Leaves out of the outputs what belongs to this run alone: paths, times of progress, counts, large pictures."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "text" in output:
                output.text = _plain(output.text, folder)
            data = output.get("data", {})
            for kind in ("text/plain", "text/html"):
                if kind in data:
                    data[kind] = _plain(data[kind], folder)
            if "image/png" in data:
                data["image/png"] = _small(data["image/png"])
                data.pop("text/plain", None)
                output.metadata = {}
    if "language_info" in notebook.metadata:
        notebook.metadata.language_info = {"name": "python"}


def badge(name: str) -> str:
    """Returns the line of a notebook's link to Colab; empty as long as pyproject.toml names no repository."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    repository = urls.get("Repository", "").removesuffix("/").removesuffix(".git")
    path = repository.removeprefix("https://github.com/")
    if path == repository:
        return ""
    page = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})\n\n"


def set_badge(notebook: NotebookNode, name: str) -> None:
    """Puts the link to Colab before a notebook's title, or takes it away."""
    title = notebook.cells[0]
    title.source = badge(name) + _BADGE.sub("", title.source)


def has_outputs(notebook: NotebookNode) -> bool:
    """Returns True if a notebook was saved with outputs, a picture among them."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return any("image/png" in output.get("data", {}) for output in outputs)


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Returns outputs with the parts of a stream in one piece; lines that rich displays as HTML are of the stream."""
    joined: list[NotebookNode] = []
    for output in outputs:
        data = output.get("data", {})
        if data.get("text/html", "").startswith(_RICH) or data == {"text/plain": ""}:
            output = nbformat.v4.new_output("stream", name="stdout", text=data["text/plain"])
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _plain(text: str, folder: Path) -> str:
    text = _TIMES.sub("", _ESCAPES.sub("", text))
    for path in (folder, ROOT, Path.home()):
        text = text.replace(f"{path.resolve()}/", "").replace(f"{path}/", "")
    # A line that a bar has written over is not shown.
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _small(png: str) -> str:
    """Returns a picture of at most `WIDTH` pixels in width and few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        written, format="png", optimize=True
    )
    return base64.b64encode(written.getvalue()).decode()


def _save(name: str, folder: Path, parameters: dict[str, str]) -> None:
    notebook = read(name)
    set_parameters(notebook, parameters)
    if not (folder / "models").exists():
        (folder / "models").symlink_to((ROOT / "models").resolve())
    began = time.monotonic()
    execute(notebook, folder)
    tidy(notebook, folder)
    set_badge(notebook, name)
    path = (folder if parameters else FOLDER) / f"{name}.ipynb"
    nbformat.write(notebook, path)
    print(f"{name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--folder", type=Path, help="where notebooks run (default: a temporary folder each)")
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE", help="another value")
    parser.add_argument("--check", action="store_true", help="name the notebooks that have no outputs")
    args = parser.parse_args()
    if args.check:
        without = [name for name in NAMES if not has_outputs(read(name))]
        print("\n".join(f"{name}: no outputs" for name in without) or "all have outputs")
        return int(bool(without))
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"there is no notebook {min(unknown)}; there are {', '.join(NAMES)}")
    if args.set and args.folder is None:
        parser.error("--set writes the notebook to --folder, which is not given")
    # Kernels find the clone, and the programs of this environment.
    os.environ["PYTHONPATH"] = str(ROOT)
    parameters = dict(text.split("=", 1) for text in args.set)
    for name in args.names:
        with tempfile.TemporaryDirectory(prefix="notebook_") as temporary:
            folder = args.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            _save(name, folder, parameters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
