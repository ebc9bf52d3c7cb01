"""The notebook, executed on a model small enough for a test, with its install cell left out."""

import json
import os
from importlib.resources import files
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

REPO = Path(__file__).parents[1]
NOTEBOOK = REPO / "notebooks" / "quickstart.ipynb"

PARAMETERS = """
base_path = {base!r}
num_tokens = 2
learning_rate = 2e-2
steps = 12
batch_size = 2
sequence_length = 160
num_answers = 2
max_new_tokens = 4
"""
# Read by the test at the end, out of the same interpreter that ran the notebook.
RESULTS = """
import json
print(json.dumps({"losses": losses, "before": before, "after": after, "num_params": loaded.num_params, "same": same,
                  "answers": answers, "gradients": {name: float(abs(leaf).max()) for name, leaf in gradient.items()},
                  "equal_logits": bool((plain_btv == adapted_btv).all())}))
"""


def _read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def _cell(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def _tokenizer(folder: Path) -> int:
    """A byte-level BPE of the quickstart's data with a small chat template; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (files("aligner_jax.data.quickstart") / "train.jsonl").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    turn = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    template = (
        "{% for m in messages %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A Hugging Face folder of a random Llama with 4 layers, and a tokenizer of its own."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    vocab, d, f, n, k, h, num_layers = _tokenizer(folder), 32, 48, 4, 2, 8, 4
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": d,
        "intermediate_size": f, "num_hidden_layers": num_layers, "num_attention_heads": n, "num_key_value_heads": k,
        "head_dim": h, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    projections = {
        "self_attn.q_proj": (n * h, d), "self_attn.k_proj": (k * h, d), "self_attn.v_proj": (k * h, d),
        "self_attn.o_proj": (d, n * h), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    random = np.random.default_rng(0)
    weights = {"model.embed_tokens.weight": random.normal(size=(vocab, d)), "model.norm.weight": np.ones(d)}
    for layer in range(num_layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(d)
        for name, shape in projections.items():
            weights[f"model.layers.{layer}.{name}.weight"] = random.normal(size=shape) / np.sqrt(shape[1])
    save_file({name: x.astype(np.float32) for name, x in weights.items()}, folder / "model.safetensors")
    return folder


def test_it_is_committed_without_outputs():
    notebook = _read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None, cell.source


def test_one_line_installs_the_package_and_nothing_else_is_installed():
    notebook = _read()
    installs = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith(("%", "!"))]
    assert len(installs) == 1
    assert installs[0].startswith("%pip install")
    assert "aligner_jax" in installs[0]
    assert installs[0] in _cell(notebook, "install").source


def test_it_trains_and_plots(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # most of the time goes into compiling
    monkeypatch.setenv("PYTHONPATH", str(REPO))

    notebook = _read()
    _cell(notebook, "install").source = ""
    _cell(notebook, "parameters").source = PARAMETERS.format(base=str(tiny_model))
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    results = json.loads(outputs[-1].text)
    assert results["num_params"] == 2 * 32 + (4 - 2) * 4
    assert results["equal_logits"]
    assert results["gradients"]["tokens_pd"] == 0 < results["gradients"]["gates_ln"]
    assert len(results["losses"]) == 12
    assert results["after"] < results["before"] - 0.05
    assert {name: len(texts) for name, texts in results["answers"].items()} == {"base": 2, "with adapter": 2}
    assert results["same"]
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4 * results["num_params"] + 2000
