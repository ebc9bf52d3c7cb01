"""Small files that stand where pages name a model, an adapter or data, and the Python blocks of pages."""

import json
import re
import shutil
from pathlib import Path

import places

from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.weights.base import Base, load_base
from scripts.lib.tiny_llama import write_tiny_llama
from scripts.site.markdown import Block, blocks

MODEL = "path/to/model"
MODELS = (MODEL, "models/SmolLM2-135M-Instruct.Q4_1.gguf")
"""Paths under which pages name a base."""

_FILE = r"""["']([\w./-]+\.(?:safetensors|jsonl?))["']"""
_SHORTER = {
    r"\[:\d+\]": "[:2]",
    r"""(["']?\bsteps["']?\s*[:=]\s*)[\d_]+""": r"\g<1>2",
    r"""(["']?\bmax_new_tokens["']?\s*[:=]\s*)\d+""": r"\g<1>2",
    r"""(["']?\bbatch_size["']?\s*[:=]\s*)\d+""": r"\g<1>2",
}


def furnish(folder: Path) -> Base:
    """Puts a random model where pages name one, and the package's and the configs' folders beside it; returns it."""
    tiny = folder / MODEL
    tiny.parent.mkdir(parents=True)
    write_tiny_llama(tiny)
    for name in ("aligner_jax", "configs"):
        (folder / name).symlink_to(places.ROOT / name)
    return load_base(tiny)


def python_blocks(text: str) -> list[Block]:
    """Returns the Python blocks of a page, but for those that are whole files (docs/extending.md)."""
    found = [block for block in blocks(text) if block.language == "python"]
    return [block for block in found if not block.text.startswith('"""')]


def shortened(code: str, server: str) -> str:
    """Returns a page's code with the small model in place of the base, and with few steps and tokens.

    Args:
      code: the code.
      server: URL in place of that of a server of one's own.
    """
    code = code.replace("http://127.0.0.1:8000/v1", server)
    for model in MODELS:
        code = code.replace(model, MODEL)
    for pattern, few in _SHORTER.items():
        code = re.sub(pattern, few, code)
    return code


def make_named_files(code: str, folder: Path, base: Base) -> None:
    """Writes the adapters and data that code reads and that do not exist; files that the code itself saves are not."""
    for found in re.finditer(_FILE, code):
        file = folder / found[1]
        before = code[: found.start()].rpartition("\n")[2]
        if file.exists() or re.search(r"save\w*\(|\bout\b|write|workdir", before):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_adapter(init_adapter("aligner", base.config), file, base=base)
        elif file.suffix == ".json":
            rows = [{"instruction": f"Name number {i}.", "input": "", "output": f"It is {i}."} for i in range(16)]
            file.write_text(json.dumps(rows))
        else:
            shutil.copyfile(places.ROOT / "aligner_jax" / "data" / "quickstart" / "heldout.jsonl", file)
