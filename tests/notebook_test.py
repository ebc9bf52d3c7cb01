"""The notebooks, executed on a model small enough for a test, without the install cell."""

import ast
import json
from pathlib import Path

import nbformat
import places
import pytest
from notebook_kernels import set_kernel_variables

from scripts import notebooks

REPO = places.ROOT
MACHINE_PATHS = ("/work/", "/root/", "/home/", "/tmp/", "/opt/")


@pytest.fixture(params=notebooks.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A notebook's name."""
    return request.param


def test_a_notebook_begins_with_its_title_and_is_small(name: str):
    notebook = notebooks.read(name)
    nbformat.validate(notebook)
    title = notebook.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith(notebooks.badge(name) + "# ")
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    content = path.read_text(encoding="utf-8")
    assert [text for text in MACHINE_PATHS if text in content] == []


def test_outputs_are_saved_with_a_picture(name: str):
    assert notebooks.has_outputs(notebooks.read(name))


def test_one_line_installs_the_package_and_nothing_else_is_installed(name: str):
    notebook = notebooks.read(name)
    install = notebooks.tagged(notebook, "install")
    lines = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith(("%", "!"))]
    assert lines == ['%pip install -q "{requirement}"']
    assert lines[0] in install.source
    assert notebook.cells.index(install) == 1


def test_knobs_are_in_one_cell_and_the_machine_is_looked_at_next(name: str):
    notebook = notebooks.read(name)
    parameters, runtime = (notebooks.tagged(notebook, tag) for tag in ("parameters", "runtime"))
    assert all(isinstance(node, ast.Assign) for node in ast.parse(parameters.source).body)
    assert notebook.cells.index(runtime) == notebook.cells.index(parameters) + 1
    assert "machine = find_machine()\nprint(machine)" in runtime.source


def _requirement(notebook: nbformat.NotebookNode, project: str = "") -> str:
    """Runs the cell "install" without its pip line; returns what pip would be given."""
    source = notebooks.tagged(notebook, "install").source.replace('PROJECT = ""', f"PROJECT = {project!r}")
    variables: dict[str, str] = {}
    exec(source.replace("%pip", "# %pip"), variables)
    return variables["requirement"]


def test_a_clone_is_installed_itself_and_elsewhere_the_named_project(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notebook = notebooks.read(name)
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.chdir(REPO / "notebooks")
    assert _requirement(notebook).startswith(f"{REPO}[hub")
    monkeypatch.chdir(tmp_path)
    assert _requirement(notebook).startswith("aligner_jax[hub")
    assert _requirement(notebook, "git+https://example.org/x").endswith("] @ git+https://example.org/x")
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert "tpu" in _requirement(notebook)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the interpreter that runs a notebook."""
    set_kernel_variables(monkeypatch, tmp_path, REPO)


def _run(name: str, folder: Path, **parameters: object) -> tuple[nbformat.NotebookNode, dict]:
    """Executes a notebook with small parameters; returns it and the variables that the cell `results` asks for."""
    notebook = notebooks.read(name)
    results = parameters.pop("results")
    notebooks.set_parameters(notebook, {key: repr(value) for key, value in parameters.items()})
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({results}))"))
    notebooks.execute(notebook, folder, timeout=240)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    return notebook, json.loads(outputs[-1].text)


def _num_pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.usefixtures("kernel")
def test_pod_plans_slices(tiny_model: Path, tmp_path: Path):
    small = f"--config.base.path={tiny_model} --config.data.sequence_length=128 --config.data.batch_size=8"
    notebook, found = _run(
        "pod", tmp_path, config=str(REPO / "configs" / "llama7b_alpaca.py"), model="smollm2_135m", overrides=small,
        topologies=["v5e:2x4"], search_on="v5e:2x4", results="{'plans': plans, 'best': best}",
    )  # fmt: skip
    (plan,) = found["plans"]
    assert (plan["topology"], plan["devices"], plan["fits"], plan["remat"]) == ("v5e:2x4", 8, True, "full")
    assert found["best"]["remat"] == "none"
    assert found["best"]["peak_bytes"] > plan["peak_bytes"]
    assert _num_pictures(notebook) == 2


@pytest.mark.usefixtures("kernel")
def test_many_adapters_have_one_base(tiny_model: Path, tmp_path: Path):
    notebook, found = _run(
        "many_adapters", tmp_path, base_path=str(tiny_model), steps=12, sequence_length=160, num_questions=2,
        max_new_tokens=4, num_stored=3,
        results="{'dial': list(dial.values()), 'opened': list(opened), 'sums': len(sums), 'names': names, "
        "'size': size, 'answers': answers, 'losses': [[x['loss'] for x in run.metrics] for run in runs.values()]}",
    )  # fmt: skip
    assert found["dial"][0] < found["dial"][4]
    assert len(found["dial"]) == 7
    assert (len(found["opened"]), found["sums"]) == (5, 6)
    assert found["names"] == ["closing", "opening", "opening_0", "opening_1", "opening_2"]
    assert found["size"] == 5 * 4 * (32 + (4 - 2) * 4)
    assert list(found["answers"]) == ["tiny", "opening", "opening@0.5", "closing", "opening+closing"]
    assert all(sum(losses[-2:]) < sum(losses[:2]) for losses in found["losses"])
    assert _num_pictures(notebook) == 1


@pytest.mark.usefixtures("kernel")
def test_look_inside_shows_every_figure(tiny_model: Path, tmp_path: Path):
    notebook, found = _run(
        "look_inside", tmp_path, base_path=str(tiny_model), steps=12, sequence_length=160, num_examples=4,
        results="{'sizes': [run.adapter.num_params for run in runs.values()], 'printed': printed, "
        "'losses': [[line['loss'] for line in run.metrics] for run in runs.values()]}",
    )  # fmt: skip
    assert found["sizes"] == [32 + (4 - 2) * 4, 4 * 8 * ((32 + 32) + (32 + 16))]
    assert all(sum(losses[-2:]) < sum(losses[:2]) for losses in found["losses"])
    assert "analysis/index.html" in found["printed"]
    assert _num_pictures(notebook) == 5
    assert "content" in (tmp_path / "analysis" / "form_and_knowledge.csv").read_text()


@pytest.mark.usefixtures("kernel")
def test_exports_are_the_adapter(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PEER_PYTHON", "")
    notebook, found = _run(
        "export", tmp_path, base_path=str(tiny_model), steps=12, num_questions=2, max_new_tokens=4,
        results="{'difference': difference, 'effect': float(abs(adapted_bv - base_bv).max()), 'verdict': verdict, "
        "'attention_bias': settings['attention_bias'], 'gguf': gguf.stat().st_size}",
    )  # fmt: skip
    assert found["effect"] > 0.01
    assert found["difference"] < 1e-4
    assert found["attention_bias"] is True
    assert "adapter active" in found["verdict"]
    assert found["gguf"] > 10_000
    assert (tmp_path / "export" / "peft" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "export" / "adapter" / "README.md").is_file()
    assert _num_pictures(notebook) == 1


@pytest.mark.usefixtures("kernel")
def test_quickstart_trains_and_plots(tiny_model: Path, tmp_path: Path):
    notebook, found = _run(
        "quickstart", tmp_path, base_path=str(tiny_model), num_tokens=2, learning_rate=2e-2, steps=12, batch_size=2,
        sequence_length=160, num_answers=2, max_new_tokens=4,
        results="{'losses': losses, 'before': before, 'after': after, 'num_params': loaded.num_params, 'same': same, "
        "'answers': answers, 'gradients': {name: float(abs(leaf).max()) for name, leaf in gradient.items()}, "
        "'equal_logits': bool((plain_btv == adapted_btv).all())}",
    )  # fmt: skip
    assert found["num_params"] == 2 * 32 + (4 - 2) * 4
    assert found["equal_logits"]
    assert found["gradients"]["tokens_pd"] == 0 < found["gradients"]["gates_ln"]
    assert len(found["losses"]) == 12
    assert found["after"] < found["before"] - 0.05
    assert {name: len(texts) for name, texts in found["answers"].items()} == {"base": 2, "with adapter": 2}
    assert found["same"]
    assert _num_pictures(notebook) == 2
    assert (tmp_path / "runs" / "quickstart" / "adapter.safetensors").stat().st_size < 4 * found["num_params"] + 3500


@pytest.mark.usefixtures("kernel")
def test_own_data_is_a_csv(tiny_model: Path, tmp_path: Path):
    notebook, found = _run(
        "own_data", tmp_path, base_path=str(tiny_model), steps=12, batch_size=2, max_new_tokens=4, num_answers=2,
        results="{'before': before, 'after': after, 'answers': answers, 'heldout': [x['step'] for x in heldout]}",
    )  # fmt: skip
    assert found["after"] < found["before"] - 0.05
    assert found["heldout"] == [3, 6, 9, 12]
    assert {name: len(texts) for name, texts in found["answers"].items()} == {"base": 2, "with adapter": 2}
    assert len((tmp_path / "help_desk.csv").read_text(encoding="utf-8").splitlines()) == 1 + 12 * 6
    assert _num_pictures(notebook) == 1


@pytest.mark.usefixtures("kernel")
def test_two_stages_prefer_more_and_more(tiny_model: Path, tmp_path: Path):
    notebook, found = _run(
        "two_stages", tmp_path, base_path=str(tiny_model), sft_steps=8, dpo_steps=8, num_heldout=4, num_answers=2,
        max_new_tokens=4, sequence_length=480,
        results="{'margins': margins, 'accuracy': dpo.report['after']['accuracy'], 'sft': sft.report, "
        "'rewards': [x['margin'] for x in dpo.metrics if 'margin' in x]}",
    )  # fmt: skip
    assert list(found["margins"]) == ["base", "after SFT", "after DPO"]
    assert sum(found["margins"]["after DPO"]) > sum(found["margins"]["after SFT"])
    assert found["sft"]["after"]["heldout_loss"] < found["sft"]["before"]["heldout_loss"]
    assert found["accuracy"] > 0.5
    # Sums of hundreds of log-probabilities in float32.
    assert found["rewards"][0] == pytest.approx(0, abs=1e-4)
    assert found["rewards"][-1] > 0.01
    assert _num_pictures(notebook) == 2
