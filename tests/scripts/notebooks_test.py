"""Saving notebooks with outputs: what is kept of them, and the link to Colab."""

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from scripts import notebooks

KNOBS = 'steps = 48  # of training\nbase_path = "models/x.gguf"'


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    tags = {"install": '%pip install -q "{requirement}"', "parameters": KNOBS, "runtime": "print(1)"}
    cells = [new_code_cell(source, metadata={"tags": [tag]}) for tag, source in tags.items()]
    return new_notebook(cells=[new_markdown_cell("# A title"), *cells])


def _png(width: int) -> str:
    written = io.BytesIO()
    Image.effect_noise((width, width // 2), 90).save(written, format="png")
    return base64.b64encode(written.getvalue()).decode()


def _line_of_rich(line: str) -> nbformat.NotebookNode:
    html = f'<pre style="white-space:pre;overflow-x:auto;line-height:normal">{line}</pre>\n'
    return new_output("display_data", data={"text/plain": line, "text/html": html})


def test_parameters_are_set_by_name(notebook):
    notebooks.set_parameters(notebook, {"steps": "2", "base_path": r"'C:\x'"})
    assert notebooks.tagged(notebook, "parameters").source == "steps = 2\nbase_path = 'C:\\x'"
    with pytest.raises(KeyError, match="rate is no parameter"):
        notebooks.set_parameters(notebook, {"rate": "1"})


def test_outputs_lose_what_belongs_to_one_machine(notebook, tmp_path: Path):
    cell = notebook.cells[3]
    cell.execution_count = 7
    cell.outputs = [
        new_output("stream", name="stdout", text=f"\x1b[31m10 %\r100 %\x1b[0m\nsaved: {tmp_path}/runs/a\n"),
        new_output("stream", name="stdout", text=f"in {notebooks.ROOT}/configs\n"),
        _line_of_rich("compiling the step: done in 0:30\n"),
        new_output("display_data", data={"text/plain": ""}),
        _line_of_rich("step 12/48  loss 2.526  20 tokens/s  lr 1.8e-02  6:55 left\n"),
        new_output("display_data", data={"image/png": _png(2000), "text/plain": "<Figure>"}, metadata={"width": 7}),
        new_output("execute_result", data={"text/plain": f"PosixPath('{tmp_path}/b')"}, execution_count=7),
    ]
    notebooks.tidy(notebook, tmp_path)
    stream, picture, result = cell.outputs
    assert stream.text == (
        "100 %\nsaved: runs/a\nin configs\ncompiling the step: done\nstep 12/48  loss 2.526  lr 1.8e-02\n"
    )
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size == (900, 450)
    assert list(picture.data) == ["image/png"]
    assert result.data["text/plain"] == "PosixPath('b')"
    assert cell.execution_count is result.execution_count is None
    assert notebooks.has_outputs(notebook)


def test_a_notebook_without_pictures_has_no_outputs(notebook):
    assert not notebooks.has_outputs(notebook)


def test_the_link_to_colab_needs_a_public_repository(notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[project.urls]\nRepository = "https://github.com/org/aligner.git"\n')
    notebooks.set_badge(notebook, "pod")
    page = "https://colab.research.google.com/github/org/aligner/blob/main/notebooks/pod.ipynb"
    assert f"({page})\n\n# A title" in notebook.cells[0].source
    notebooks.set_badge(notebook, "pod")
    assert notebook.cells[0].source.count("Open in Colab") == 1
    project.write_text("[project]\n")
    notebooks.set_badge(notebook, "pod")
    assert notebook.cells[0].source == "# A title"


def test_unknown_notebooks_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("sys.argv", ["notebooks", "pods"])
    with pytest.raises(SystemExit):
        notebooks.main()
    assert "there is no notebook pods; there are quickstart, own_data" in capsys.readouterr().err
