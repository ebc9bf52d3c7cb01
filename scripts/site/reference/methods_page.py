"""The page of methods, with the exact number of trained parameters of published architectures."""

import inspect
import math
import sys

from aligner_jax.model.config import llama_config
from aligner_jax.peft import METHODS
from aligner_jax.peft.methods import complete_options
from scripts.site.reference.text import code, paragraphs, sections, table

MODELS = {"llama_7b": "LLaMA-7B", "llama_13b": "LLaMA-13B", "llama3_8b": "Llama-3-8B", "smollm2_135m": "SmolLM2-135M"}
MORE = [("aligner", {"num_tokens": 10}), ("aligner", {"num_tokens": 100})]
"""Settings beside the defaults that the paper has."""

HEAD = """# Methods

The field `config.adapter.method`, and the first argument of `aj.init_adapter`. The numbers of trained parameters are
computed from the shapes of the arrays, with the method's defaults unless the row says otherwise.
"""


def methods_page() -> str:
    """Returns the page, in Markdown."""
    settings = [(method, {}) for method in METHODS if method != "sum"] + MORE
    lines = []
    for method, options in sorted(settings, key=lambda each: list(METHODS).index(each[0])):
        said = ", ".join(code(f"{name}={value}") for name, value in options.items())
        lines.append([code(method), said, *(f"{count(method, model, options):,}" for model in MODELS)])
    parts = [HEAD, table(["method", "options", *MODELS.values()], lines)]
    for name, method in METHODS.items():
        module = inspect.getdoc(sys.modules[method.shapes.__module__])
        parts += [f"## {code(name)}\n", paragraphs(sections(module)[""])]
        arrays = ", ".join(code(array) for array in shapes(name, "llama_7b", {}))
        if name not in ("full", "sum"):
            parts += [f"Trained arrays: {arrays}.\n"]
    return "\n".join(parts)


def shapes(method: str, model: str, options: dict) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a method's trained arrays for a published architecture."""
    config = llama_config(model)
    return METHODS[method].shapes(complete_options(method, config, options), config)


def count(method: str, model: str, options: dict) -> int:
    """Returns the number of trained parameters."""
    return sum(math.prod(shape) for shape in shapes(method, model, options).values())
