"""Writes adapter folders with Hugging Face PEFT over the tiny models of tests/goldens/, and PEFT's logits.

    ENV/bin/pip install peft    # in addition to make_goldens.py's packages
    ENV/bin/python tests/goldens/make/golden_peft.py                      # writes tests/goldens/peft/
    ENV/bin/python tests/goldens/make/golden_peft.py --check FOLDER …     # reads adapters that others wrote

The committed files come from peft 0.21.2, torch 2.13.0 and transformers 5.23.0, in float32. A folder to check holds an
adapter whose base_model_name_or_path is a model of tests/goldens/models, and an expected.npz of ids and logits, like
the folders written here. The largest difference to PEFT's logits is printed, and must be below 1e-4. Nothing here
imports aligner_jax.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[3]
MODELS = "tests/goldens/models/"
GOLDENS = ROOT / "tests" / "goldens" / "peft"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# All have grouped queries; wide_head has biases, and heads that are together wider than the model. PEFT cannot run
# AdaptionPrompt on it.
CASES = {
    "lora": ("wide_head", LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=ALL, task_type="CAUSAL_LM")),
    "rslora": (
        "llama3",
        LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    ),
    "adaption_prompt": ("llama3", AdaptionPromptConfig(adapter_len=3, adapter_layers=2, task_type="CAUSAL_LM")),
}


def base_model(name: str) -> torch.nn.Module:
    """Returns the model at a path below the repository's root, in float32."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()


def logits_of(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def write(name: str, model_name: str, config: PeftConfig) -> None:
    """Writes a folder with a random adapter and expected.npz: ids, logits and the base's logits."""
    rng = np.random.default_rng(sorted(CASES).index(name) + 20)
    base = base_model(MODELS + model_name)
    ids = rng.integers(0, base.config.vocab_size, (2, 24))
    plain = logits_of(base, ids)
    model = get_peft_model(base, config).eval()
    trained = [(key, x) for key, x in sorted(model.named_parameters()) if "lora_" in key or "adaption_" in key]
    with torch.no_grad():
        for key, x in trained:
            spread = 0.5 if key.endswith("adaption_gate") else 1.0 if "adaption_" in key else x.shape[1] ** -0.5
            x.copy_(torch.tensor(spread * rng.standard_normal(x.shape)))
    logits = logits_of(model, ids)
    folder = GOLDENS / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()  # The model card is an empty template.
    # PEFT saves sets in arbitrary order.
    saved = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(saved["target_modules"], list):
        saved["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    np.savez(folder / "expected.npz", ids=ids, logits=logits, base_logits=plain)
    print(f"{name}: {len(trained)} tensors, changes logits by up to {np.abs(logits - plain).max():.2f}")
    check(folder)


def check(folder: Path) -> None:
    """Loads an adapter with PEFT and compares its logits with the folder's."""
    expected = np.load(folder / "expected.npz")
    config = PeftConfig.from_pretrained(folder)
    model = PeftModel.from_pretrained(base_model(config.base_model_name_or_path), folder).eval()
    gap = float(np.abs(logits_of(model, expected["ids"]) - expected["logits"]).max())
    print(f"{folder.name}: {config.peft_type.value}, largest difference to PEFT {gap:.1e}")
    assert gap < 1e-4, f"{folder}: PEFT computes other logits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, nargs="+", metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = [folder.resolve() for folder in arguments.check or []]
    os.chdir(ROOT)  # base_model_name_or_path is relative to it.
    for folder in folders:
        check(folder)
    if not folders:
        for name, (model_name, config) in CASES.items():
            write(name, model_name, config)


if __name__ == "__main__":
    main()
