"""The page of all fields of configs."""

from collections.abc import Iterable

from aligner_jax.evals.interface import EvaluateConfig
from aligner_jax.evals.run import EVALUATIONS
from aligner_jax.peft import METHODS
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.objectives import OBJECTIVES
from scripts.site.reference.fields import Field, fields_of
from scripts.site.reference.meanings import MEANINGS
from scripts.site.reference.text import code, prose, table

HEAD = """# Config fields

A config is a Python file with a function `get_config()`. Every field can be set in the file or on the command line, as
`--config.optim.lr=1e-3`; `=None` unsets a field, and a field without a default must be set. A name that does not exist
is an error that suggests the nearest one.

## Training
"""


def config_page() -> str:
    """Returns the page, in Markdown."""
    parts = [HEAD]
    for section, fields in by_section(list(fields_of(TrainConfig, "config"))).items():
        parts += [f"### {code(section)}" if section != "config" else "### The run", rows(fields)]
    parts += ["## Options of methods\n\nFields of `config.adapter`, by `config.adapter.method`.\n"]
    for name, method in METHODS.items():
        parts += [f"### Method {code(name)}", rows(fields_of(method.options, "config.adapter"))]
    parts += ["## Options of objectives\n\nFields of `config.objective`, by `config.objective.name`.\n"]
    for name, objective in OBJECTIVES.items():
        parts += [f"### Objective {code(name)}", rows(fields_of(objective.options, "config.objective"))]
    parts += ["## Evaluation\n\n`config.base` and `config.mesh` are those of training.\n"]
    shared = [f for f in fields_of(EvaluateConfig, "config") if not f.name.startswith(("config.base.", "config.mesh."))]
    parts += [rows(shared)]
    for name, evaluation in EVALUATIONS.items():
        parts += [f"### Evaluation {code(name)}", rows(fields_of(evaluation.options, "config.evaluation"))]
    return "\n".join(parts)


def by_section(fields: list[Field]) -> dict[str, list[Field]]:
    """Returns the fields by the name of their section."""
    found: dict[str, list[Field]] = {}
    for field in fields:
        found.setdefault(field.name.rpartition(".")[0], []).append(field)
    return found


def rows(fields: Iterable[Field]) -> str:
    """Returns the table of these fields."""
    lines = [
        [
            code(field.name.removeprefix("config.")),
            prose(field.kind),
            code(field.default) if field.default else "required",
            prose(field.allowed),
            prose(field.meaning) or MEANINGS.get(field.name, ""),
        ]
        for field in fields
    ]
    return "\n" + table(["field", "type", "default", "range", "meaning"], lines) if lines else "No options.\n"
